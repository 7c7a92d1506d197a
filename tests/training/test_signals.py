"""On a signal a run stops between two steps, with a checkpoint, and resumes where it stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from ranks import Run, free_port, start_together, wait_together
from same_run import assert_same_run
from synthetic import tiny_config, write_data

from lcm.config import save_config
from lcm.errors import UserError
from lcm.training import signals
from lcm.training.checkpoint import latest, open_checkpoint
from lcm.training.module import LCMModule
from lcm.training.run import main, train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A fake scontrol that records its arguments, and the number of a Slurm job."""

    def write(script):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "scontrol").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        return tmp_path / "called"

    return write


def started(config, path, **environment):
    """`lcm train` in another process."""
    save_config(config, path)
    return forked.lcm(["train", "--config", str(path)], path, **environment)


def listens(process, number):
    """True if the process handles this signal: a bit of a mask in /proc."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def until(done, seconds=60.0):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def steps_logged(run):
    path = run / "metrics.csv"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_a_signal_during_the_imports_is_not_lost(data, tmp_path, scontrol):
    """It would kill a process that has no handler yet."""
    called = scontrol(f'echo "$@" >> {tmp_path}/called')
    config = tiny_config(data, tmp_path / "run")
    save_config(config, tmp_path / "run.yaml")
    command = [sys.executable, "-m", "lcm.cli", "train", "--config", str(tmp_path / "run.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    until(lambda: listens(process, signal.SIGUSR1))
    imported = Path(f"/proc/{process.pid}/maps").read_text()
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=120)
    assert "libtorch" not in imported, "the handler is installed before torch is loaded"
    assert process.returncode == 0, err
    assert called.read_text() == "requeue 17\n"
    assert open_checkpoint(latest(tmp_path / "run"))["global_step"] == 1
    assert "job 17 is queued again" in err


def test_a_run_requeued_twice_equals_an_uninterrupted_run(data, tmp_path, scontrol):
    called = scontrol(f'echo "$@" >> {tmp_path}/called')
    settings = ["trainer.max_steps=300", "trainer.checkpoint_every=1000", "trainer.validate_every=50", "data.workers=2"]
    straight, leaves = (tiny_config(data, tmp_path / name, *settings) for name in ("straight", "leaves"))
    Run(straight).here()
    left_at = []
    for rows in (40, 140):
        process = started(leaves, tmp_path / f"leaves{rows}.yaml")
        until(lambda p=process, n=rows: steps_logged(tmp_path / "leaves") > n or p.poll() is not None)
        process.send_signal(signal.SIGUSR1)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        left_at.append(open_checkpoint(latest(tmp_path / "leaves"))["global_step"])
    assert 40 <= left_at[0] < left_at[1] < 300, "it stopped and resumed twice"
    assert called.read_text() == "requeue 17\n" * 2
    Run(leaves).here()
    assert_same_run(tmp_path / "straight", tmp_path / "leaves")


@pytest.mark.parametrize(
    ("number", "job", "said"),
    [
        (signal.SIGTERM, "17", "asked to stop by SIGTERM, and did after step"),
        (signal.SIGUSR1, "", "asked to stop by SIGUSR1, and did after step"),
    ],
)
def test_a_run_that_cannot_be_requeued_saves_and_says_how_to_resume(number, job, said, data, tmp_path, scontrol):
    called = scontrol(f'echo "$@" >> {tmp_path}/called')
    run = tmp_path / "run"
    process = started(tiny_config(data, run, "trainer.max_steps=5000"), tmp_path / "run.yaml", SLURM_JOB_ID=job)
    until(lambda: steps_logged(run) > 3 or process.poll() is not None)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said in err.splitlines()[-1]
    assert f"resumes from {latest(run)}" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not called.exists()


def test_slurm_s_refusal_to_requeue_is_reported(data, tmp_path, scontrol):
    scontrol("echo 'Access/permission denied' >&2; exit 1")
    run = tmp_path / "run"
    process = started(tiny_config(data, run, "trainer.max_steps=5000"), tmp_path / "run.yaml")
    until(lambda: steps_logged(run) > 3 or process.poll() is not None)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "scontrol requeue 17: Access/permission denied; nothing is lost" in err.splitlines()[-1]
    assert latest(run)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(strategy, data, tmp_path, scontrol):
    called = scontrol(f'echo "$@" >> {tmp_path}/called')
    run, settings = tmp_path / "run", ["trainer.devices=2", f"trainer.strategy={strategy}", "trainer.max_steps=5000"]
    processes = start_together({"run": Run(tiny_config(data, run, *settings))}, tmp_path / "logs", 2, listens=True)
    until(lambda: steps_logged(run) > 5 or any(p.poll() is not None for p in processes))
    processes[1].send_signal(signal.SIGUSR1)
    wait_together(processes, tmp_path / "logs")
    step = open_checkpoint(latest(run))["global_step"]
    for rank in (0, 1):
        lines = (tmp_path / f"logs/run.{rank}.batches").read_text().splitlines()
        assert int(lines[-1].split()[0]) == step - 1
    assert called.read_text() == "requeue 17\n", "one rank requeues the job for all"


@pytest.fixture
def handlers():
    """Handlers of both signals are put back afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    signals.ignore()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_check_ends_at_once_on_a_signal(data, tmp_path, capsys, handlers):
    """It has no step to stop after."""
    save_config(tiny_config(data, tmp_path / "run"), tmp_path / "run.yaml")
    signals.listen()
    assert main(["--config", str(tmp_path / "run.yaml"), "--check"]) == 0
    assert {signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)} == {signal.SIG_DFL}


def test_sigterm_ends_a_process_at_once_until_steps_begin(data, tmp_path, handlers, monkeypatch):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signals.listen()
    found = []

    def setup(self, stage):
        found.append(signal.getsignal(signal.SIGTERM))

    monkeypatch.setattr(LCMModule, "setup", setup)
    train(tiny_config(data, tmp_path / "run", "trainer.max_steps=1"))
    assert found == [signal.SIG_DFL]
    assert signal.getsignal(signal.SIGTERM) == signals._record


def test_sigterm_ends_ranks_that_wait_for_one_another(data, tmp_path):
    """In code that no handler of Python's interrupts. Here rank 1 never comes."""
    config = tiny_config(data, tmp_path / "run", "trainer.devices=2", "trainer.strategy=ddp")
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    process = started(config, tmp_path / "run.yaml", LOCAL_RANK="0", **shared)
    until(lambda: "2 processes, ddp" in process.err.read_text() if process.err.exists() else False)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM


def test_a_rank_ends_with_the_process_that_started_it():
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport os, time\nfrom lcm.training import signals\n"
    child = f"{program}signals.end_with(os.getppid()); print('watches', flush=True); time.sleep(60)"
    parent = (
        f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    lines = {process.stdout.readline().strip(), process.stdout.readline().strip()}
    (number,) = lines - {"watches"}
    process.kill()
    process.wait()
    until(
        lambda: not Path(f"/proc/{number}").exists() or "Z (zombie)" in Path(f"/proc/{number}/status").read_text(), 20
    )


def test_a_request_to_requeue_outranks_one_to_stop(monkeypatch, handlers):
    monkeypatch.setattr(signals, "_requested", signals.CONTINUE)
    signals.listen()
    signals.begin()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert signals.requested() == signals.REQUEUE


def test_a_missing_scontrol_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"scontrol requeue 17: .*No such file"):
        signals.requeue("17")
