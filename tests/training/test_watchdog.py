"""A rank that hangs or dies is reported within the configured time, and the run ends."""

import os
import re
import signal
import time
from types import SimpleNamespace

import lightning as L
import pytest
from ranks import Run, start_together
from synthetic import tiny_config, write_data

from lcm.config import TrainerConfig
from lcm.errors import MachineError
from lcm.training.callbacks import Checkpoints
from lcm.training.checkpoint import latest
from lcm.training.writing import Writing


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def ended(processes, seconds):
    """Exit statuses, once all processes have ended."""
    end = time.monotonic() + seconds
    while any(process.poll() is None for process in processes):
        assert time.monotonic() < end, "they hang"
        time.sleep(0.05)
    return [process.returncode for process in processes]


def started(data, tmp_path):
    settings = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.max_steps=100000", "trainer.patience=4"]
    run = tmp_path / "run"
    processes = start_together({"run": Run(tiny_config(data, run, *settings))}, tmp_path / "logs", 2)
    end = time.monotonic() + 120
    while not latest(run):
        assert time.monotonic() < end
        assert all(process.poll() is None for process in processes), (tmp_path / "logs/0.log").read_text()
        time.sleep(0.05)
    return processes


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_is_reported_by_the_others(rank, data, tmp_path):
    processes = started(data, tmp_path)
    os.kill(processes[rank].pid, signal.SIGSTOP)
    try:
        assert ended([processes[1 - rank]], 60) == [MachineError.status]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    output = (tmp_path / f"logs/{1 - rank}.log").read_text()
    assert f"no step for 4 s: waited for rank {rank}" in output
    assert ("which cannot be reached" if rank == 0 else "no sign of life") in output, "rank 0 holds the board"
    assert "resumes from the last checkpoint" in output
    assert latest(tmp_path / "run")


def test_a_rank_that_reads_for_too_long_is_reported_by_the_others(data, tmp_path):
    """It is alive but behind: the others are in a step for which it has no batch yet."""
    settings = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.patience=4"]
    run = Run(tiny_config(data, tmp_path / "run", *settings), spoils=(1, 5, "reading"))
    processes = start_together({"run": run}, tmp_path / "logs", 2)
    try:
        assert MachineError.status in ended(processes, 120)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    output = "".join((tmp_path / f"logs/{rank}.log").read_text() for rank in (0, 1))
    assert re.search(r"no step for 4 s: waited for rank 1 on \S+ \(reading the batch of step 5\);", output)


def test_a_killed_rank_ends_the_others(data, tmp_path):
    """Here the connection breaks, which ends them at once; on another network they would hang, as above."""
    processes = started(data, tmp_path)
    processes[1].kill()
    assert ended(processes, 60)[0] != 0
    assert latest(tmp_path / "run")
    line = (tmp_path / "logs/0.log").read_text().splitlines()[-1]
    assert re.search(
        r"MachineError: rank 0 on \S+ lost rank 1 on \S+ after step \d+ .*; the same command resumes from", line
    )


def test_an_index_that_one_rank_cannot_read_ends_all_with_one_line(tmp_path):
    """Each rank counts the rows of some shards, and waits for the counts of the others."""
    data = write_data(tmp_path / "data")
    (data / "train-000001.index.npy").write_bytes(b"nothing of the kind")
    run = Run(tiny_config(data, tmp_path / "run", "trainer.devices=2", "trainer.strategy=ddp"))
    processes = start_together({"run": run}, tmp_path / "logs", 2)
    assert ended(processes, 120) == [1, 1]
    output = [(tmp_path / f"logs/{rank}.log").read_text().splitlines()[-1] for rank in (0, 1)]
    for line in ("another rank cannot read an index", "train-000001.index.npy: not an index; delete it"):
        assert sum(line in last for last in output) == 1


@pytest.mark.parametrize(("hook", "last"), [("teardown", "fit"), ("on_exception", Exception())])
def test_nobody_watches_when_training_has_ended(hook, last, tmp_path):
    """Or the watchdog would end a process that goes on with something else."""
    stopped, callback = [], Checkpoints(tmp_path, TrainerConfig(), Writing(0))
    callback.watchdog = SimpleNamespace(stop=lambda: stopped.append(True))
    getattr(callback, hook)(L.Trainer(logger=False, accelerator="cpu"), L.LightningModule(), last)
    assert stopped == [True]
