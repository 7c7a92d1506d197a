"""A job and what it takes of each GPU; and, where that is too much, the first change with which it fits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lcm.config import Config
from lcm.errors import UserError
from lcm.plan.memory import STRATEGIES, Usage, usage
from lcm.plan.simulation import simulate
from lcm.training import SLICED, check_strategy, choose

RESERVED = 3 * 2**29
"""Bytes of a GPU that are left to what is not torch's: CUDA's context, cuBLAS, NCCL. An assumption: 1.5 GiB."""
MOST = 4096
"""GPUs that are tried."""


@dataclass(frozen=True)
class Job:
    """A configuration on so many GPUs, of so many bytes each."""

    config: Config
    nodes: int
    gpus: int
    memory: int

    @property
    def processes(self) -> int:
        return self.nodes * self.gpus

    def chosen(self, parameters: int) -> str:
        """The strategy that `lcm train` would take."""
        return choose(self.config.trainer.strategy, parameters, self.memory, self.processes)[0]

    def usage(self, strategy: str | None = None) -> Usage:
        """strategy: instead of the one that `lcm train` would take."""
        settings = self.config.trainer
        name = strategy or self.chosen(simulate(self.config).parameters)
        step = simulate(self.config, sliced=name in SLICED)
        offload = settings.offload and name.startswith("deepspeed")
        return usage(step, name, self.processes, accumulate=settings.accumulate, offload=offload)

    def fits(self, used: Usage) -> bool:
        return used.total + RESERVED <= self.memory

    def with_changes(self, **changes: Any) -> "Job":
        """rows of data; nodes and gpus of the job; the others of trainer."""
        rows = changes.pop("rows", self.config.data.rows)
        nodes, gpus = changes.pop("nodes", self.nodes), changes.pop("gpus", self.gpus)
        data = self.config.data.model_copy(update={"rows": rows})
        trainer = self.config.trainer.model_copy(update=changes)
        return Job(self.config.model_copy(update={"data": data, "trainer": trainer}), nodes, gpus, self.memory)

    def options(self, before: "Job") -> str:
        """What to add to the command line of `before`."""
        ours, theirs = self.config.trainer, before.config.trainer
        told = {
            "--nodes": (self.nodes, before.nodes),
            "--gpus-per-node": (self.gpus, before.gpus),
            "--trainer.strategy": (ours.strategy, theirs.strategy),
            "--trainer.checkpoint_activations": (ours.checkpoint_activations, theirs.checkpoint_activations),
            "--data.rows": (self.config.data.rows, before.config.data.rows),
        }
        changed = {name: str(new).lower() for name, (new, old) in told.items() if new != old}
        return " ".join(f"{name} {value}" for name, value in changed.items())


def first_that_fits(job: Job) -> tuple[Job, Usage] | None:
    """Another strategy, fewer rows, recomputed blocks, more GPUs, all of that; None where nothing does."""
    for other in _alternatives(job):
        try:
            check_strategy(other.chosen(simulate(other.config).parameters), other.config)
        except UserError:
            continue
        if other.fits(used := other.usage()):
            return other, used
    return None


def _alternatives(job: Job) -> Iterator[Job]:
    for strategy in STRATEGIES if job.processes > 1 else ():
        yield job.with_changes(strategy=strategy)
    yield from _with_fewer_rows(job)
    yield (recomputed := job.with_changes(checkpoint_activations=True))
    sliced = job.config.trainer.strategy if job.config.trainer.strategy in SLICED else "fsdp"
    smallest = recomputed.with_changes(rows=1)
    for plain in (job, recomputed, smallest):
        for nodes, gpus in _more_gpus(job):
            yield plain.with_changes(nodes=nodes, gpus=gpus, strategy=sliced)


def _with_fewer_rows(job: Job) -> Iterator[Job]:
    """The most that should fit, and some fewer: a step's memory grows by the same with every row."""
    rows = job.config.data.rows
    if rows == 1:
        return
    one, all_ = (job.with_changes(rows=count).usage().total for count in (1, rows))
    room = job.memory - RESERVED - one
    if room < 0 or all_ <= one:
        return
    most = min(rows - 1, 1 + room * (rows - 1) // (all_ - one))
    for count in dict.fromkeys((most, most * 9 // 10, most // 2, 1)):
        if count:
            yield job.with_changes(rows=count)


def _more_gpus(job: Job) -> Iterator[tuple[int, int]]:
    """(nodes, GPUs of each): nodes are filled up to 8 first, then there are twice as many."""
    nodes, gpus = job.nodes, job.gpus
    if gpus < 8:
        gpus = 8
        yield nodes, gpus
    while nodes * gpus * 2 <= MOST:
        nodes *= 2
        yield nodes, gpus
