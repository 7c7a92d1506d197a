"""Training runs on several ranks of this machine, one run after the other in the same processes."""

import errno
import json
import os
import socket
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import fsspec
import pytest
import torch
from family_runs import train_and_break
from forked import Forked
from synthetic import record_batches

import lcm.training.run
from lcm.config import Config, load_config, save_config
from lcm.data.datamodule import ConceptData
from lcm.training import signals
from lcm.training.deepspeed import ZeRO
from lcm.training.module import LCMModule
from lcm.training.run import train
from lcm.training.start import Start

ENGINES = {"torch": ("ddp", "fsdp"), "deepspeed": ("deepspeed_1", "deepspeed_2", "deepspeed_3")}
"""Strategies of one launch, by engine. DeepSpeed is an extra."""

EVERY_STRATEGY = [
    pytest.param(engine, strategy, id=strategy, marks=[pytest.mark.needs("deepspeed")] if engine == "deepspeed" else [])
    for engine, strategies in ENGINES.items()
    for strategy in strategies
]


def spoiled(rank, step, how):
    original = LCMModule.training_step

    def no_memory(batch):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def training_step(self, batch, batch_idx):
        if (self.global_rank, self.global_step) != (rank, step):
            return original(self, batch, batch_idx)
        if how == "nan":
            return original(self, batch, batch_idx) * float("nan")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.model, "loss", no_memory)
            return original(self, batch, batch_idx)

    return training_step


def read_slowly(rank, step):
    original = ConceptData.micro_batches

    def micro_batches(self):
        for number, micro_batch in enumerate(original(self)):
            if (self.rank, number) == (rank, step):
                time.sleep(600)
            yield micro_batch

    return micro_batches


def full(checkpoint, path):
    raise OSError(errno.ENOSPC, "No space left on device")


def status(name):
    """A number of /proc/self/status, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def measured(method, path):
    """Wrap `method` to write how many bytes its peak is above the memory before it."""

    def run(*arguments):
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = status("VmRSS")
        method(*arguments)
        path.write_text(str(status("VmHWM") - before))

    return run


@dataclass(frozen=True)
class Run:
    """sgd: plain SGD with a learning rate of 1, which subtracts the gradient. breaks: the step of an error.

    spoils: (rank, step, how): a loss that is "nan" or runs out of "memory", a batch that takes long in "reading", a
    checkpoint to "resume" from that is not found, or a full "disk"
    measures: write the memory that building the model takes into RUN_DIR.RANK
    """

    config: Config
    sgd: bool = False
    breaks: int | None = None
    spoils: tuple[int, int, str] | None = None
    measures: bool = False

    def here(self):
        """Train in this process."""
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            if self.config.trainer.compile:
                warnings.simplefilter("ignore")  # torch.compile warns of itself
            if self.sgd:
                patch.setattr(
                    LCMModule, "configure_optimizers", lambda m: torch.optim.SGD(m.model.parameters(), lr=1.0)
                )
            if self.measures:
                path = Path(f"{self.config.run.dir}.{os.environ['LOCAL_RANK']}")
                patch.setattr(LCMModule, "configure_model", measured(LCMModule.configure_model, path))
            if self.spoils is not None and self.spoils[2] == "reading":
                patch.setattr(ConceptData, "micro_batches", read_slowly(*self.spoils[:2]))
            elif self.spoils is not None and self.spoils[2] == "resume":
                if int(os.environ["LOCAL_RANK"]) == self.spoils[0]:
                    patch.setattr(lcm.training.run, "decide", lambda config, world_size: Start(None, 0, ()))
            elif self.spoils is not None and self.spoils[2] == "disk":
                if int(os.environ["LOCAL_RANK"]) == self.spoils[0]:
                    patch.setattr(torch, "save", full)
            elif self.spoils is not None:
                patch.setattr(LCMModule, "training_step", spoiled(*self.spoils))
            if self.breaks is None:
                train(self.config)
            else:
                train_and_break(self.config, self.breaks)


def train_together(runs, folder, processes, timeout=400):
    """Train all runs (name → Run) on several ranks. folder/RUN.RANK.batches lists the batches of each rank."""
    return wait_together(start_together(runs, folder, processes), folder, timeout)


def start_together(runs, folder, processes, listens=False):
    """listens: handle the signals of lcm.training.signals, as `lcm train` does."""
    records = {name: {**asdict(run), "config": str(folder / f"{name}.yaml")} for name, run in runs.items()}
    folder.mkdir(parents=True)
    for name, run in runs.items():
        save_config(run.config, folder / f"{name}.yaml")
    (folder / "runs.json").write_text(json.dumps(records))
    return start(main, str(folder / "runs.json"), folder, processes, LISTENS="1" if listens else "")


def start(function, argument, folder, processes, **environment):
    """Call function(argument) on several ranks, with a rendezvous on a free port."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0", **environment}
    shared["WORLD_SIZE"] = str(processes)
    logs = [folder / f"{rank}.log" for rank in range(processes)]
    return [
        Forked(function, argument, out=log, err=log, LOCAL_RANK=str(rank), **shared) for rank, log in enumerate(logs)
    ]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_together(started, folder, timeout=400):
    """Wait for all ranks, or for the first that fails: the others would hang."""
    end = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process in started):
            failed = any(process.poll() for process in started)
            if failed or time.monotonic() > end:
                break
            time.sleep(0.05)
    finally:
        for process in started:
            process.kill()
            process.wait()
    logs = [(folder / f"{rank}.log").read_text() for rank in range(len(started))]
    assert not any(process.returncode for process in started), "\n\n".join(log[-3000:] for log in logs)
    return logs


def main(path):
    """In each process, with LOCAL_RANK, MASTER_ADDR and MASTER_PORT set."""
    if os.environ["LISTENS"]:
        signals.listen()
    ZeRO.PERSISTENT = 0  # no parameter is so small that it stays whole
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    folder, rank = Path(path).parent, os.environ["LOCAL_RANK"]
    # As on machines of their own: another cache, and servers know who asks (tests/serving.py).
    os.environ["XDG_CACHE_HOME"] = str(folder / f"cache{rank}")
    fsspec.config.conf["http"] = {"headers": {"X-Rank": rank}}
    original = LCMModule.training_step
    for name, record in json.loads(Path(path).read_text()).items():
        LCMModule.training_step = original
        record_batches(folder / f"{name}.{rank}.batches")
        Run(**{**record, "config": load_config(record["config"])}).here()
