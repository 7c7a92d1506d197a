"""The owner of a run's folder: one process at a time, whose host, job and start are known to others.

`run.dir/owner.json` is locked by rank 0 for as long as it runs, and touched every few seconds. The kernel frees the
lock of a process that dies. Where a network disk keeps locks to one host, the touching shows that an owner elsewhere
lives. A job that Slurm has started again ends what is left of its earlier start, on a node that Slurm has given up: it
writes another token, and the owner, which reads the file as often as it touches it, ends.
"""

import errno
import fcntl
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lcm.errors import MachineError, UserError
from lcm.files import disk_errors
from lcm.training.environment import whereabouts

OWNER = "owner.json"
BEAT = 5.0
"""Seconds between two signs of life of an owner."""
GRACE = 36
"""Beats in which an earlier start of the same job ends, once it is told to; a disk may show it the file late."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Owner:
    """Rank 0's hold on a run's folder; `claimed` makes one.

    record: host, job, process, attempt, since, and the step of the newest checkpoint that was written
    """

    def __init__(self, path: Path, descriptor: int, attempt: int, saved: int) -> None:
        host, job, restart = whereabouts()
        self.path, self._descriptor = path, descriptor
        self.record: dict[str, Any] = {
            "host": host, "job": job, "process": os.getpid(), "attempt": attempt, "restart": restart,
            "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC", "saved": saved, "ended": False,
            "token": secrets.token_hex(8),
        }  # fmt: skip
        self._stopped = threading.Event()
        self._write()
        threading.Thread(target=self._live, daemon=True, name="lcm-owner").start()

    def wrote(self, step: int) -> None:
        """Note that a checkpoint of this step is on disk."""
        self.record["saved"] = max(step, self.record["saved"])
        self._write()

    def describe(self) -> str:
        """'2026-12-01 02:45:03 UTC, node0, process 4711, job 17, attempt 2'"""
        return f"{self.record['since']}, {_place(self.record)}, attempt {self.record['attempt']}"

    def end(self) -> None:
        self._stopped.set()
        self.record["ended"] = True
        with suppress(UserError, OSError):
            self.check()
            self._write()

    def _write(self) -> None:
        with disk_errors(self.path):
            _write(self._descriptor, self.record)

    def check(self) -> None:
        """Raises UserError where another process has taken the folder over, which took this one for dead."""
        now = read_owner(self.path.parent)  # empty where the disk is away
        if now and now.get("token") != self.record["token"]:
            raise UserError(f"run.dir={self.path.parent}: {_place(now) or 'somebody'} has taken it over; this run ends")

    def _live(self) -> None:
        while not self._stopped.wait(BEAT):
            try:
                self.check()
                os.utime(self._descriptor)
            except UserError as error:
                if self._stopped.is_set():
                    return
                print(f"lcm train: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            except OSError:  # a disk that is away for a moment
                continue


@contextmanager
def claimed(folder: Path) -> Iterator[Owner]:
    """Own the folder during the block. Raises UserError where another process does, naming it.

    An earlier start of the same job is ended first: MachineError where it cannot be.
    """
    fresh = not folder.exists()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, sure = _locked(folder)
    try:
        before = read_owner(folder)
        here = whereabouts()[0]
        if before and not before.get("ended", True):
            if not sure or before.get("host") != here:
                _refuse_if_alive(folder, before, descriptor)
            line = (
                f"run.dir={folder}: {_place(before)}, its owner since {before.get('since')}, has died; taking it over"
            )
            print(f"lcm train: {line}", file=sys.stderr)
        owner = Owner(folder / OWNER, descriptor, int(before.get("attempt", 0)) + 1, int(before.get("saved", 0)))
        try:
            yield owner
        finally:
            owner.end()
    finally:
        if fresh and [path.name for path in folder.iterdir()] == [OWNER]:  # refused before anything was written
            (folder / OWNER).unlink()
            folder.rmdir()
        os.close(descriptor)


def check_free(folder: Path) -> None:
    """Raises UserError where a process owns the folder. Writes nothing."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        descriptor = os.open(folder / OWNER, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if not _outlived(read_owner(folder)):
                raise _taken(folder) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        finally:
            os.close(descriptor)


def read_owner(folder: Path) -> dict[str, Any]:
    """The record of the folder's present or last owner; empty where there is none."""
    with suppress(OSError, ValueError):
        record = json.loads((folder / OWNER).read_bytes())
        if isinstance(record, dict):
            return record
    return {}


def _locked(folder: Path) -> tuple[int, bool]:
    """An open, locked owner.json, and whether the disk has locks at all."""
    end = time.monotonic() + 1.0  # a check holds the lock for a moment
    earlier: _Earlier | None = None
    while True:
        descriptor = os.open(folder / OWNER, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if earlier is None and _outlived(before := read_owner(folder)):
                earlier, end = _Earlier(folder, before), time.monotonic() + GRACE * BEAT
            if earlier is not None:
                earlier.tell(descriptor)
            os.close(descriptor)
            if time.monotonic() > end:
                raise _taken(folder) if earlier is None else earlier.remains() from None
            time.sleep(min(0.1, BEAT))
            continue
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            return descriptor, False
        with suppress(FileNotFoundError):  # another process may have removed the file that we have locked
            if os.path.samestat(os.fstat(descriptor), (folder / OWNER).stat()):
                return descriptor, True
        os.close(descriptor)


def _refuse_if_alive(folder: Path, before: dict[str, Any], descriptor: int) -> None:
    """Watch for signs of life of an owner on another host, whose lock may not be seen here."""
    print(f"lcm train: run.dir={folder}: waiting to see whether {_place(before)} still writes there", file=sys.stderr)
    earlier, begun = _Earlier(folder, before) if _outlived(before) else None, time.monotonic()
    if earlier is not None:
        earlier.tell(descriptor)
    last, end = os.fstat(descriptor).st_mtime_ns, begun + 3 * BEAT
    while time.monotonic() < end:
        time.sleep(BEAT / 5)
        if os.stat(folder / OWNER).st_mtime_ns == last:
            continue
        if earlier is None:
            raise _taken(folder)
        if time.monotonic() > begun + GRACE * BEAT:
            raise earlier.remains()
        earlier.tell(descriptor)
        last, end = os.fstat(descriptor).st_mtime_ns, time.monotonic() + 3 * BEAT


def _outlived(record: dict[str, Any]) -> bool:
    """True for an owner that is an earlier start of this process's own job, which Slurm has started again."""
    _, job, restart = whereabouts()
    return bool(job) and record.get("job") == job and record.get("restart") in range(restart)


class _Earlier:
    """An earlier start of this job that still owns the folder, such as one on a node that Slurm has given up."""

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder, self.place, self.token = folder, _place(record), secrets.token_hex(8)
        print(
            f"lcm train: run.dir={folder}: {self.place}, an earlier start of this job, is told to end", file=sys.stderr
        )

    def tell(self, descriptor: int) -> None:
        """Put a new token into its record, again where it has written since."""
        now = read_owner(self.folder)
        if now and now.get("token") != self.token:
            host, job, restart = whereabouts()
            mine = {"host": host, "job": job, "process": os.getpid(), "restart": restart}
            _write(descriptor, now | mine | {"token": self.token, "ended": True})

    def remains(self) -> MachineError:
        return MachineError(
            f"run.dir={self.folder}: {self.place}, an earlier start of this job, has been told to end and still holds "
            f"the folder after {GRACE * BEAT:g} s; end it, or wait until its node is gone, and run the same command"
        )


def _write(descriptor: int, record: dict[str, Any]) -> None:
    text = json.dumps(record).encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))


def _taken(folder: Path) -> UserError:
    record = read_owner(folder)
    since = f" since {record['since']}" if "since" in record else ""
    return UserError(
        f"run.dir={folder}: another lcm train is writing there{since}: {_place(record) or 'it has not said where'}; "
        "wait until it ends, end it, or choose another run.dir"
    )


def _place(record: dict[str, Any]) -> str:
    """'node0, process 4711, job 17'"""
    named = [str(record["host"])] if record.get("host") else []
    return ", ".join(named + [f"{name} {record[name]}" for name in ("process", "job") if record.get(name)])
