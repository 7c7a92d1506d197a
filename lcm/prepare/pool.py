"""Worker processes: the standard library's pool, so arranged that no worker outlives the pool or its parent process."""

import multiprocessing as mp
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from threading import RLock, Thread
from typing import Any

import torch

from lcm.codec import Progress
from lcm.errors import UserError

INTERVAL = 0.2
"""Seconds between two looks at the workers' progress."""

Start = Callable[[], Any]
"""Makes, in a worker, the object that does the tasks: `work(task, progress)`. Its attribute `info` describes it."""


class Pool:
    """At most `count` processes, each started when a task finds no idle one.

    starts:   worker i calls starts[i % len(starts)] before its first task
    progress: called in this process with the counts that the workers report while they work
    """

    def __init__(self, starts: Sequence[Start], count: int, progress: Progress) -> None:
        self.count, self.progress = count, progress
        context = mp.get_context("spawn")
        self._counts = context.RawArray("q", count)  # a cell per worker: no lock that a kill could leave held
        self._reported = 0
        self._processes: set[BaseProcess] = set()
        self._executor = ProcessPoolExecutor(count, context, _begin, (starts, context.Value("q"), self._counts))

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()  # a task may have minutes to go
        self._executor.shutdown(cancel_futures=True)

    def info(self) -> Any:
        """The `info` of the first worker, once it has started."""
        return self._result(self._submit(_info))

    def run(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yield results in the order in which they are ready. At most one task is taken ahead of the workers.

        Raises UserError where a worker raises it or dies, and whatever else a worker raises.
        """
        running: set[Future[Any]] = set()
        for task in tasks:
            running.add(self._submit(_perform, task))
            yield from self._ready(running, 0.0)
            while len(running) > self.count:
                yield from self._ready(running, INTERVAL)
        while running:
            yield from self._ready(running, INTERVAL)

    def _ready(self, running: "set[Future[Any]]", timeout: float) -> list[Any]:
        """Remove the futures that are done from `running`, and return their results."""
        done, _ = wait(running, timeout, FIRST_COMPLETED)
        running -= done
        reported, self._reported = self._reported, sum(self._counts)
        if self._reported > reported:
            self.progress(self._reported - reported)
        return [self._result(future) for future in done]

    def _submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        # Ctrl-C reaches every process of the terminal; this one alone answers it, and the mask is inherited.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        before = mp.active_children()
        try:
            return self._executor.submit(function, *arguments)
        except BrokenProcessPool as error:
            raise self._obituary() from error
        finally:
            self._processes.update(set(mp.active_children()) - set(before))
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _result(self, future: "Future[Any]") -> Any:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise self._obituary() from error
        except MemoryError as error:
            raise UserError(
                "memory ran out in a worker; run the same command with fewer --workers and it continues"
            ) from error

    def _obituary(self) -> UserError:
        """Why a worker died. The executor then terminates the others."""
        self._executor.shutdown()
        codes = {process.exitcode or 0 for process in self._processes} - {0, -signal.SIGTERM}
        if codes <= {-signal.SIGKILL}:
            return UserError(
                "a worker was killed, most likely because memory ran out; "
                "run the same command with fewer --workers and it continues"
            )
        return UserError(f"a worker ended with status {min(codes)}; run the same command again and it continues")


class _Worker:
    """The state of a worker process."""

    start: Start
    counts: Any
    number: int
    work: Any = None


def _begin(starts: Sequence[Start], started: Any, counts: Any) -> None:
    """Initialize a worker process. The work itself starts with the first task: its errors then reach the parent."""
    Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # so that results are the same bits for any number of workers
    with suppress(ImportError):  # torch.compile shows its progress: tqdm's own lock would outlive a killed worker
        from tqdm import tqdm  # type: ignore[import-untyped]

        tqdm.set_lock(RLock())
    with started.get_lock():
        _Worker.number = started.value
        started.value += 1
    _Worker.start, _Worker.counts = starts[_Worker.number % len(starts)], counts


def _exit_with_parent() -> None:
    parent = mp.parent_process()
    assert parent
    wait_for([parent.sentinel])
    os._exit(1)


def _working() -> Any:
    if _Worker.work is None:
        _Worker.work = _Worker.start()
    return _Worker.work


def _info() -> Any:
    return _working().info


def _perform(task: Any) -> Any:
    return _working()(task, _progress)


def _progress(count: int) -> None:
    _Worker.counts[_Worker.number] += count
