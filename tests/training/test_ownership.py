"""One process owns a run's folder; others are told who it is, and notice when it is dead."""

import errno
import fcntl
import json
import os
import threading
import time

import pytest
from forked import python

from lcm.errors import MachineError, UserError
from lcm.training import ownership
from lcm.training.checkpoint import AtomicCheckpointIO
from lcm.training.ownership import OWNER, check_free, claimed, read_owner


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(ownership, "BEAT", 0.05)


def left_behind(folder, **changes):
    """The record of an owner that was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "host": os.uname().nodename, "job": "17", "process": 4711, "attempt": 2, "since": "yesterday", "saved": 50,
        "ended": False, "token": "a",
    }  # fmt: skip
    (folder / OWNER).write_text(json.dumps(record | changes))


def test_a_second_process_is_refused_and_told_who_owns_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "node3")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with claimed(tmp_path / "run") as owner:
        since = rf"since {owner.record['since']}: node3, process {os.getpid()}, job 17; wait until it ends"
        with pytest.raises(UserError, match=rf"run.dir=.*run: another lcm train is writing there {since}"):
            claimed(tmp_path / "run").__enter__()
        with pytest.raises(UserError, match=since):
            check_free(tmp_path / "run")
    check_free(tmp_path / "run")


def test_an_owner_that_was_killed_is_noticed_at_once(tmp_path, capsys):
    left_behind(tmp_path)
    with claimed(tmp_path) as owner:
        assert owner.record["attempt"] == 3
        assert owner.record["saved"] == 50
    assert "process 4711, job 17, its owner since yesterday, has died; taking it over" in capsys.readouterr().err
    assert read_owner(tmp_path)["ended"]
    with claimed(tmp_path):
        assert capsys.readouterr().err == "", "the last one ended as it should"


@pytest.mark.parametrize("locks", [True, False], ids=["another host", "a disk without locks"])
@pytest.mark.parametrize("alive", [True, False])
def test_an_owner_whose_lock_is_not_seen_here_is_known_by_its_signs_of_life(alive, locks, tmp_path, monkeypatch):
    left_behind(tmp_path, **({"host": "elsewhere"} if locks else {}))
    if not locks:
        monkeypatch.setattr(ownership.fcntl, "flock", no_locks)
    stop = threading.Event()

    def lives():
        while alive and not stop.wait(0.02):
            os.utime(tmp_path / OWNER)

    thread = threading.Thread(target=lives)
    thread.start()
    try:
        if alive:
            with pytest.raises(UserError, match="another lcm train is writing there since yesterday"):
                claimed(tmp_path).__enter__()
        else:
            with claimed(tmp_path) as owner:
                assert owner.record["attempt"] == 3
    finally:
        stop.set()
        thread.join()


def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


def test_an_owner_shows_signs_of_life(tmp_path):
    with claimed(tmp_path):
        os.utime(tmp_path / OWNER, (0, 0))
        moved = threading.Event()
        for _ in range(200):
            if (tmp_path / OWNER).stat().st_mtime > 0:
                moved.set()
                break
            moved.wait(0.02)
        assert moved.is_set()


def test_an_owner_that_was_taken_for_dead_writes_no_more(tmp_path, monkeypatch):
    """Such as a process whose node was away for a while."""
    monkeypatch.setattr(ownership, "BEAT", 60.0)
    with claimed(tmp_path) as owner:
        io = AtomicCheckpointIO(owner=owner)
        io.save_checkpoint({"global_step": 5}, tmp_path / "last.ckpt")
        assert read_owner(tmp_path)["saved"] == 5
        left_behind(tmp_path, host="node9", process=12, token="b")
        with pytest.raises(UserError, match=r"node9, process 12, job 17 has taken it over; this run ends"):
            io.save_checkpoint({"global_step": 6}, tmp_path / "last.ckpt")
    assert io.load_checkpoint(tmp_path / "last.ckpt", weights_only=True) == {"global_step": 5}
    assert read_owner(tmp_path)["token"] == "b", "the new owner's record stays"


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path):
    with pytest.raises(UserError), claimed(tmp_path / "runs/new"):
        raise UserError("trainer.resume: no such file")
    assert not (tmp_path / "runs/new").exists()


def test_a_check_writes_nothing(tmp_path):
    check_free(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "n'])
def test_a_record_that_is_cut_off_counts_as_none(text, tmp_path):
    (tmp_path / OWNER).write_text(text)
    with claimed(tmp_path) as owner:
        assert owner.record["attempt"] == 1


ORPHAN = """
import errno, os, time
from pathlib import Path
from lcm.training import ownership

def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")

os.environ |= {{"SLURM_JOB_ID": "17", "SLURMD_NODENAME": "node1"}}
ownership.BEAT = 0.05
if not {locks}:
    ownership.fcntl.flock = no_locks
with ownership.claimed(Path({folder!r})) as owner:
    for step in range(1000):
        owner.wrote(step)
        time.sleep(0.06)
"""
"""The first start of job 17, on a node that Slurm has given up and that lives."""


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "a disk without locks"])
def test_a_job_that_is_started_again_ends_its_earlier_start(locks, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    orphan = python(ORPHAN.format(locks=locks, folder=str(folder)), tmp_path / "orphan")
    while read_owner(folder).get("saved", 0) < 2:
        assert orphan.poll() is None
        time.sleep(0.01)
    if not locks:
        monkeypatch.setattr(ownership.fcntl, "flock", no_locks)
    for name, value in (("SLURM_JOB_ID", "17"), ("SLURM_RESTART_COUNT", "1"), ("SLURMD_NODENAME", "node2")):
        monkeypatch.setenv(name, value)
    check_free(folder)
    with claimed(folder) as owner:
        assert orphan.wait(10) == 1, "it may not requeue the job, which would end the new start"
        assert owner.record["attempt"] == 2
        assert owner.record["saved"] >= 2
        assert read_owner(folder)["token"] == owner.record["token"]
    line = f"run.dir={folder}: node1, process {orphan.pid}, job 17, an earlier start of this job, is told to end"
    assert line in capsys.readouterr().err
    taken = f"node2, process {os.getpid()}, job 17 has taken it over; this run ends"
    assert taken in (tmp_path / "orphan.err").read_text()


def test_an_earlier_start_that_does_not_end_is_a_failure_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "GRACE", 4)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    left_behind(tmp_path, restart=0)
    with (tmp_path / OWNER).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(MachineError, match=r"process 4711, job 17, an earlier start .* still holds .* after 0.2 s"):
            claimed(tmp_path).__enter__()
        left_behind(tmp_path, restart=0, job="18")
        with pytest.raises(UserError, match="another lcm train is writing there") as refused:
            claimed(tmp_path).__enter__()
        assert refused.type is UserError, "an owner of another job is not told to end"
        assert read_owner(tmp_path)["token"] == "a"
