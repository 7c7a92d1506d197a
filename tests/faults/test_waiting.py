"""A process that hangs, or that is gone, is named within the time that the configuration allows."""

import os
import signal
import time

import pytest
from ranks import Run, start_together
from synthetic import tiny_config, write_data

from lcm.checkpoint import latest


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def ended(processes, seconds):
    """Exit statuses, once all but the stopped one have ended."""
    end = time.monotonic() + seconds
    while any(process.poll() is None for process in processes):
        assert time.monotonic() < end, "they wait for ever"
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
def test_a_process_that_hangs_is_named_by_the_others(rank, data, tmp_path):
    processes = started(data, tmp_path)
    os.kill(processes[rank].pid, signal.SIGSTOP)
    try:
        assert ended([processes[1 - rank]], 60) == [1]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    told = (tmp_path / f"logs/{1 - rank}.log").read_text()
    where = ", which is not to be reached" if rank == 0 else " on "  # the first one keeps the board
    assert f"no step for 4 s: waited for process {rank}{where}" in told
    assert "goes on from the last checkpoint" in told
    assert latest(tmp_path / "run")


def test_a_process_that_is_gone_ends_the_others(data, tmp_path):
    """Here the connection breaks, which ends them at once; over another network they would wait, as above."""
    processes = started(data, tmp_path)
    processes[1].kill()
    assert ended(processes, 60)[0] != 0
    assert latest(tmp_path / "run")
