"""Processes that have torch, Lightning and lcm imported when they begin: importing takes longer than most tests.

multiprocessing's fork server imports once, runs nothing itself, and forks. A process whose own start is tested must be
started by subprocess instead.
"""

import atexit
import ctypes
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

TESTS = Path(__file__).parent
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lcm.training.run", "lcm.prepare", "lcm.inference", "lcm.evaluation", "ranks"])

MALLOC = {-1: 65536, -3: 65536, -8: 1}
"""M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX: what is freed goes back to the machine at once, so that the memory
that a process takes can be measured."""


class Forked:
    """A process that calls `target(*arguments)`, with the methods of subprocess.Popen that tests need.

    out, err: files for what it prints
    """

    def __init__(
        self, target: Callable[..., object], *arguments: object, out: Path, err: Path, cwd: Path | None = None,
        **environment: str,
    ) -> None:  # fmt: skip
        self.out, self.err = out, err
        shared = {**os.environ, **environment}
        self._process = CONTEXT.Process(target=_begin, args=(target, arguments, out, err, cwd or Path.cwd(), shared))
        with _searched():
            self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    returncode = property(poll)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it printed, once it has ended."""
        self.wait(timeout)
        return self.out.read_text(), self.err.read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def lcm(words: list[str], printed: Path, cwd: Path | None = None, **environment: str) -> Forked:
    """The `lcm` command. printed: a path to which .out and .err are added"""
    return Forked(_lcm, words, out=Path(f"{printed}.out"), err=Path(f"{printed}.err"), cwd=cwd, **environment)


def printed_by(process: Forked, what: str) -> str:
    """Run a process that must not fail, and return its stdout."""
    out, err = process.communicate()
    assert process.returncode == 0, f"{what}\n{err}"
    return out


def python(program: str, printed: Path, cwd: Path | None = None) -> Forked:
    """The lines of a Python program."""
    return Forked(exec, program, {}, out=Path(f"{printed}.out"), err=Path(f"{printed}.err"), cwd=cwd)


def _lcm(words: list[str]) -> None:
    from lcm.cli import main

    sys.argv = ["lcm", *words]
    sys.exit(main())


def _begin(target, arguments, out, err, cwd, environment) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, path in ((1, out), (2, err)):
        with path.open("a") as file:
            os.dup2(file.fileno(), number)
    for setting in MALLOC.items():
        ctypes.CDLL(None).mallopt(*setting)
    torch.set_num_threads(1)
    target(*arguments)


class _searched:
    """Let the server, which starts with the first process, find the modules of the tests."""

    def __enter__(self) -> None:
        self.before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), self.before or ""])

    def __exit__(self, *error: object) -> None:
        if self.before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = self.before


@atexit.register
def _end() -> None:
    """Kill processes that a failed test left behind, which would be waited for."""
    for process in multiprocessing.active_children():
        process.kill()
