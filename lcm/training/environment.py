"""The environment of a run: read, checked and cleared once, before anything starts.

A run's settings come from its configuration. From the environment comes only who started this process (srun, torchrun,
another launcher, or `lcm train` itself), and so which rank it is. Everything else that Lightning or torch would read
there is taken out, with a line; what contradicts the configuration is refused.
"""

import os
import sys
from typing import Literal, NamedTuple

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only

from lcm.config import Config, TrainerConfig
from lcm.errors import UserError
from lcm.training import signals

RANK_VARIABLES = (
    "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE", "JSM_NAMESPACE_RANK", "TORCHELASTIC_RUN_ID",
)  # fmt: skip
"""Variables by which a launcher numbers processes. MASTER_ADDR and MASTER_PORT say where they meet."""
MEETING = ("MASTER_ADDR", "MASTER_PORT")
LAUNCHER = "LCM_LAUNCHER"
"""Set by rank 0 for the ranks that it starts: its process number."""
Starter = Literal["lcm train", "srun", "torchrun", "a launcher"]


class Launch(NamedTuple):
    """The starter of this process, its rank, and the number of ranks. devices: ranks per node."""

    by: Starter
    rank: int
    world_size: int
    devices: int

    def mark(self) -> None:
        """Let the ranks that Lightning starts from here know this process."""
        if self.by == "lcm train" and self.world_size > 1:
            os.environ.setdefault(LAUNCHER, str(os.getpid()))

    def plugin(self) -> ClusterEnvironment:
        """Lightning's own name for it, so that Lightning need not guess."""
        match self.by:
            case "srun":
                return SrunEnvironment(self.world_size)
            case "torchrun":
                return TorchElasticEnvironment()
            case _:
                return OwnEnvironment()


class OwnEnvironment(LightningEnvironment):
    """Ranks of `lcm train` itself or of a launcher. Lightning's own forgets their number after one run."""

    def teardown(self) -> None:
        """Leave WORLD_SIZE for the next run of this process."""


class SrunEnvironment(SLURMEnvironment):
    """A task of srun, whatever the job's name. Lightning's own checks are made in `read_environment`, in one line."""

    def __init__(self, tasks: int) -> None:
        self.auto_requeue, self.requeue_signal, self._tasks = False, None, tasks

    def world_size(self) -> int:
        return self._tasks

    @property
    def main_address(self) -> str:
        """The first host of the step, which need not have all hosts of the job."""
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "127.0.0.1")
        return os.environ.setdefault("MASTER_ADDR", self.resolve_root_node_address(nodes))

    @property
    def main_port(self) -> int:
        """A port of the step's own: two steps of a job, and two jobs of a node, do not meet."""
        job, step = _number("SLURM_JOB_ID", 0), _number("SLURM_STEP_ID", 0)
        return int(os.environ.setdefault("MASTER_PORT", str(15_000 + (job + 997 * step) % 10_000)))

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Accept: `read_environment` has compared the numbers of tasks."""


def read_environment(config: Config, checks_only: bool = False) -> Launch:
    """Find out who started this process, and take out of the environment what must not change a run.

    checks_only: for --check and --dry-run, which may run where the command itself would not, such as in a batch script
    Raises UserError, naming variables, where they contradict one another or the configuration: the ranks would wait.
    """
    cleared = [name for name in sorted(os.environ) if name.startswith("PL_")]
    notes = [
        f"{name}={os.environ.pop(name)} is ignored: a run's settings come from its configuration" for name in cleared
    ]
    launch = _launch(config.trainer, checks_only, notes)
    setattr(rank_zero_only, "rank", launch.rank)  # noqa: B010  Lightning has taken it from a variable when it was imported
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1") and os.path.exists("/dev/nvidia0"):
        notes.append("CUDA_VISIBLE_DEVICES hides this machine's GPUs: the run is on its CPUs; unset it to use them")
    if launch.rank == 0:
        for note in notes:
            print(f"lcm train: {note}", file=sys.stderr)
    return launch


def _launch(settings: TrainerConfig, checks_only: bool, notes: list[str]) -> Launch:
    if (parent := os.environ.get(LAUNCHER)) and parent != str(os.getpid()):
        return _child(settings, int(parent))
    if parent:  # an earlier run of this process, whose variables Lightning has left here
        _clear((*RANK_VARIABLES, *MEETING, LAUNCHER))
    tasks = _number("SLURM_STEP_NUM_TASKS", _number("SLURM_NTASKS", 1))
    if "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ and tasks > 1:
        _clear(RANK_VARIABLES)
        nodes = _number("SLURM_STEP_NUM_NODES", _number("SLURM_NNODES", 1))
        devices = _devices(settings, tasks // nodes, f"srun started {tasks} on {nodes} (SLURM_NTASKS)", tasks)
        return Launch("srun", _number("SLURM_PROCID", 0), tasks, devices)
    if "TORCHELASTIC_RUN_ID" in os.environ and {"RANK", "LOCAL_RANK", "WORLD_SIZE", *MEETING} <= os.environ.keys():
        world, local = _number("WORLD_SIZE", 1), _number("LOCAL_WORLD_SIZE", 1)
        devices = _devices(settings, local, f"torchrun started {world} (WORLD_SIZE)", world)
        return Launch("torchrun", _number("RANK", 0), world, devices) if world > 1 else _alone(settings, notes)
    if {"LOCAL_RANK", "WORLD_SIZE", *MEETING} <= os.environ.keys() and {"RANK", "NODE_RANK"} & os.environ.keys():
        world = _number("WORLD_SIZE", 1)
        local = world // settings.nodes
        devices = _devices(settings, local, f"WORLD_SIZE={world} says that a launcher started {world}", world)
        rank = _number("RANK", _number("NODE_RANK", 0) * local + _number("LOCAL_RANK", 0))
        return Launch("a launcher", rank, world, devices) if world > 1 else _alone(settings, notes)
    if (tasks := _number("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" not in os.environ:
        _refuse_without_srun(settings, tasks, checks_only)
    return _alone(settings, notes, checks_only)


def _child(settings: TrainerConfig, parent: int) -> Launch:
    """A rank that rank 0 has started on this host; it ends with it."""
    if os.getppid() != parent:
        raise UserError(f"rank 0, which started this process, has ended; unset {LAUNCHER} where you set it yourself")
    signals.end_with(parent)
    world = _number("WORLD_SIZE", 1)
    rank = _number("NODE_RANK", 0) * (world // settings.nodes) + _number("LOCAL_RANK", 0)
    return Launch("lcm train", rank, world, world // settings.nodes)


def _alone(settings: TrainerConfig, notes: list[str], checks_only: bool = False) -> Launch:
    """Nobody has started other ranks: `lcm train` starts those of this machine itself."""
    devices = settings.devices if isinstance(settings.devices, int) else torch.cuda.device_count() or 1
    found = [name for name in RANK_VARIABLES if name in os.environ]
    by_hand = {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"} <= os.environ.keys() and set(found) <= {"NODE_RANK"}
    if settings.nodes > 1 and not by_hand and not checks_only:
        raise UserError(
            f"trainer.nodes={settings.nodes}: nothing tells this process where the other nodes are; start it by srun "
            "or torchrun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each node"
        )
    if settings.nodes > 1 and by_hand:
        return Launch("lcm train", _number("NODE_RANK", 0) * devices, settings.nodes * devices, devices)
    if found and devices > 1 and not checks_only:
        lacks = [name for name in ("LOCAL_RANK", "WORLD_SIZE", *MEETING) if name not in os.environ]
        raise UserError(
            f"{_shown(found)} in the environment, as if a launcher had started this process, but without "
            f"{' and '.join(lacks) or 'RANK'}: the ranks would wait for one another; unset {' '.join(found)}, and "
            f"lcm train starts all {devices} itself, or start them by torchrun"
        )
    if found := [name for name in (*found, *MEETING) if name in os.environ]:
        notes.append(f"{_shown(found)} in the environment is ignored: no launcher has started this process")
        _clear(tuple(found))
    if torch.cuda.is_available() and devices > (gpus := torch.cuda.device_count()) and not checks_only:
        raise UserError(f"trainer.devices={devices}: this machine has {gpus} GPUs; set trainer.devices={gpus}")
    return Launch("lcm train", 0, settings.nodes * devices, devices)


def _devices(settings: TrainerConfig, local: int, started: str, world: int) -> int:
    """Ranks per node. Raises UserError where the configuration has other numbers than those that were started."""
    devices = local if settings.devices == "auto" else settings.devices
    if settings.nodes * devices == world:
        return devices
    if settings.nodes * local == world:
        way_out = f"set trainer.devices={local}, or leave it out"
    else:
        way_out = f"set trainer.nodes={max(1, world // local)} and trainer.devices={local}"
    raise UserError(
        f"trainer.nodes={settings.nodes} and trainer.devices={settings.devices} make {settings.nodes * devices} "
        f"processes, but {started}; {way_out}"
    )


def _refuse_without_srun(settings: TrainerConfig, tasks: int, checks_only: bool) -> None:
    """Raises UserError in a job of several tasks whose srun was forgotten, or whose variables were left over."""
    if checks_only:  # as slurm/train.sbatch does, before srun
        nodes = _number("SLURM_JOB_NUM_NODES", _number("SLURM_NNODES", 1))
        _devices(settings, tasks // nodes, f"Slurm's job has {tasks} tasks (SLURM_NTASKS)", tasks)
        return
    raise UserError(
        f"SLURM_NTASKS={tasks}: Slurm's job {os.environ.get('SLURM_JOB_ID', '?')} has {tasks} tasks, but srun has not "
        "started this process; start it as 'srun lcm train …' (slurm/train.sbatch does), ask for cores by "
        "--cpus-per-task, or unset SLURM_NTASKS if no job is meant"
    )


def _shown(names: list[str]) -> str:
    return ", ".join(f"{name}={os.environ[name]}" for name in names)


def _clear(names: tuple[str, ...]) -> None:
    for name in names:
        os.environ.pop(name, None)


def _number(name: str, otherwise: int) -> int:
    """A variable that is a number. Raises UserError where it is something else."""
    text = os.environ.get(name, "").strip()
    if text and not text.isdecimal():
        raise UserError(f"{name}={text}: expected a number; unset {name}")
    return int(text) if text else otherwise


def whereabouts() -> tuple[str, str, int]:
    """Host, Slurm job (empty outside of one) and restart of this process, for the lines of a log."""
    host = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
    return host, os.environ.get("SLURM_JOB_ID", ""), _number("SLURM_RESTART_COUNT", 0)
