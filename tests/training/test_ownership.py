"""One process owns a run's folder; others are told who it is, and notice when it is dead."""

import errno
import json
import os
import threading

import pytest

from lcm.errors import UserError
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
