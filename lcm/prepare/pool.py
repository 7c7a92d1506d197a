"""A few spawned processes with a pipe each. A worker that dies, and a main process that dies, are noticed at once.

The pools of the standard library hang or leave orphans when one side is killed; a pipe's end of file does neither.
"""

import multiprocessing as mp
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import RLock
from typing import Any, Literal, Protocol

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from lcm.errors import UserError

Tell = Callable[[int], None]
"""Says how many more sentences are done."""


class Work(Protocol):
    """What a worker does all day. `info` is told to the main process before the first task."""

    info: Any

    def __call__(self, task: Any, tell: Tell) -> Any: ...


@dataclass(frozen=True)
class _Ready:
    info: Any


@dataclass(frozen=True)
class _Done:
    result: Any


@dataclass(frozen=True)
class _Failed:
    error: str
    users: bool
    """Whether a person can put it right."""


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    state: Literal["starting", "idle", "busy"] = "starting"


class Pool:
    """At most `count` processes, started when there is work for them; at most one task in each and none in between.

    starts:  one is called in each process, in turn; it makes what then does the tasks
    result:  called here with each task's result, in the order they get ready
    tell:    called here with every number that a task tells while it is under way
    """

    def __init__(
        self, starts: Sequence[Callable[[], Work]], count: int, result: Callable[[Any], None], tell: Tell
    ) -> None:
        self.starts = starts
        self.count = count
        self.result = result
        self.tell = tell
        self.info: Any = None
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()

    def first_info(self) -> Any:
        """What the first worker says of itself, once it is up."""
        if not self._workers:
            self._add()
        while self.info is None:
            self._hear()
        return self.info

    def submit(self, task: Any) -> None:
        """Hand a task to a worker; waits while all are busy."""
        while not (idle := self._in_state("idle")):
            # As many start at once as are up: a small job does not wake a large machine, a large job soon does.
            starting, busy = len(self._in_state("starting")), len(self._in_state("busy"))
            if starting < max(1, busy) and starting + busy < self.count:
                self._add()
            self._hear()
        idle[0].state = "busy"
        try:
            idle[0].pipe.send(task)
        except ConnectionError:
            raise _obituary(idle[0].process) from None

    def poll(self) -> None:
        """Deal with the news there are, without waiting for any."""
        self._hear(timeout=0.0)

    def finish(self) -> None:
        """Wait for all results."""
        while self._in_state("busy"):
            self._hear()

    def _in_state(self, state: str) -> list[_Worker]:
        return [worker for worker in self._workers if worker.state == state]

    def _add(self) -> None:
        resource_tracker.ensure_running()  # or the first start does, and unblocks the signal
        ours, theirs = mp.Pipe()
        start = self.starts[len(self._workers) % len(self.starts)]
        process = mp.get_context("spawn").Process(target=_serve, args=(start, theirs), daemon=True)
        # Ctrl-C reaches every process of the terminal; ours alone answers it, and the mask is inherited.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._workers.append(_Worker(process, ours))

    def _hear(self, timeout: float | None = None) -> None:
        """Wait for news of any worker that is not idle, and deal with it."""
        ready = wait([worker.pipe for worker in self._workers if worker.state != "idle"], timeout)
        for worker in [w for w in self._workers if w.pipe in ready]:
            try:
                news = worker.pipe.recv()
            except (EOFError, OSError):
                raise _obituary(worker.process) from None
            match news:
                case int(count):
                    self.tell(count)
                case _Ready(info):
                    self.info = info
                    worker.state = "idle"
                case _Done(result):
                    worker.state = "idle"
                    self.result(result)
                case _Failed(error, users):
                    raise UserError(error) if users else RuntimeError(f"a worker failed:\n{error}")


def _obituary(process: BaseProcess) -> UserError:
    process.join()
    if process.exitcode == -signal.SIGKILL:
        return UserError(
            "a worker was killed, most likely because memory ran out; "
            "run the same command with fewer --workers and it continues"
        )
    return UserError(f"a worker ended with status {process.exitcode}; run the same command again and it continues")


def _serve(start: Callable[[], Work], pipe: Connection) -> None:
    """A worker's life. Ends when the other end of the pipe is gone, whatever became of it."""
    torch.set_num_threads(1)  # so that results are the same bits for any number of workers
    tqdm.set_lock(RLock())  # torch.compile shows its progress: the lock of tqdm's own would outlive a killed worker
    try:
        work = start()
        pipe.send(_Ready(work.info))
        while True:
            pipe.send(_Done(work(pipe.recv(), pipe.send)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)
    except UserError as error:
        pipe.send(_Failed(str(error), users=True))
    except MemoryError:
        pipe.send(_Failed("memory ran out; run the same command with fewer --workers and it continues", users=True))
    except Exception:
        pipe.send(_Failed(traceback.format_exc(), users=False))
