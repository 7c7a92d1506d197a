"""Run `lcm` commands in processes with limited time and memory; what no command may end in is a Fault."""

import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from forked import Forked

TRAIN = ("train", "--config", "config.yaml")
LONGER = (*TRAIN, "--trainer.max_steps", "8")
"""Resumes the run. Its rate is constant after the warm-up, so that it trains the same from whichever checkpoint."""
SECONDS = 60
"""A command that takes longer hangs."""
_ONE_AT_A_TIME = threading.Lock()
"""Held by the thread that starts or asks for a process: each start asks for all, and a status can be read only once."""
MEMORY = 6 << 30
"""Bytes of data that a command may have; a number that asks for more must end in one line, too."""


@dataclass(frozen=True)
class Run:
    """A command to run in the folder of a case."""

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    room: int | None = None
    """Bytes beyond which no file can be written, as on a full disk."""


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def succeeded(self) -> bool:
        return self.status == 0

    @property
    def last_line(self) -> str:
        return (self.err.strip().splitlines() or [""])[-1]


class Fault(Exception):
    """Found by a case: something that no command may do."""


Steps = Generator[Run, Result, None]
Case = Callable[[Random, Path, Path], Steps]
"""(random, folder, bench) → the commands to run, one after the other; is sent the result of each. Raises Fault.

bench: what the cases start from, made once; they copy from it
"""


def copied(bench: Path, folder: Path, *names: str) -> None:
    """Copy files and folders of the bench into the folder of a case."""
    for name in names:
        (shutil.copytree if (bench / name).is_dir() else shutil.copy)(bench / name, folder / name)


def result_of(run: Run, folder: Path, number: int) -> Result:
    """Run a command. Raises Fault for a traceback, a signal, a hang, an unknown status, or an error without a line.

    A line that calls its error a fault of lcm is one.
    """
    out, err = folder / f"{number}.out", folder / f"{number}.err"
    with _ONE_AT_A_TIME:
        environment = {"HOME": str(folder), **run.environment}
        process = Forked(_limited, list(run.words), run.room, out=out, err=err, cwd=folder, **environment)
    if (status := _waited(process)) is None:
        raise Fault(f"hangs for {SECONDS} s: {_end_of(err)}")
    result = Result(status, *(path.read_text("utf-8", "replace") if path.exists() else "" for path in (out, err)))
    if "Traceback (most recent call last)" in result.err:
        raise Fault(f"traceback, status {status}: {_end_of(err)}")
    if "a fault of lcm" in result.err:
        raise Fault(f"status {status}: {_end_of(err)}")
    if status not in (0, 1, 2):
        raise Fault(f"status {status}: {_end_of(err)}")
    if status and not result.last_line:
        raise Fault(f"status {status} without a line")
    if status == 1 and not result.last_line.startswith("lcm "):
        raise Fault(f"status 1, and the last line is not the command's own: {_end_of(err)}")
    return result


def _waited(process: Forked) -> int | None:
    """The exit status, or None for a command that hangs, which is then killed."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with _ONE_AT_A_TIME:
            status = process.poll()
        if status is not None:
            return status
        time.sleep(0.02)
    with _ONE_AT_A_TIME:
        process.kill()
        process.wait()
    return None


def _end_of(path: Path) -> str:
    lines = path.read_text("utf-8", "replace").strip().splitlines() if path.exists() else []
    return " / ".join(line.strip() for line in lines[-4:])[-600:]


def _limited(words: list[str], room: int | None) -> None:
    """The `lcm` command in this process, with limited memory and files; `lcm prepare` has a codec without weights."""
    import stub_codec

    from lcm.cli import main
    from lcm.prepare import command, worker

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if room is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    command.load_codec = worker.load_codec = stub_codec.load_stub
    command.Pool = stub_codec.InlinePool
    sys.argv = ["lcm", *words]
    sys.exit(main())
