"""The last words of a run on several ranks: one line a job, by the rank that knows the cause.

A rank that ends by an error of its own says so, unless another one has said the same. A rank that has only lost its
peers is quiet where one of them has spoken; else one of those that are left names the ranks that are silent.
"""

import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
from lightning.fabric.strategies.launchers import subprocess_script
from torch.distributed import DistError

from lcm.errors import MachineError, UserError
from lcm.training.checkpoint import latest

LOST = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL", "Socket closed",
    "recvValue failed", "sendBytes failed", "failed to recv", "pair closure",
)  # fmt: skip
"""Words of the errors by which gloo, NCCL and torch's store tell that another rank is gone."""
SILENCE = 2.0
"""Seconds in which the ranks that are left make themselves heard."""


def last_words(error: Exception, trainer: L.Trainer, folder: Path) -> Exception:
    """The error for this rank to end with: an empty one where another rank says why."""
    if trainer.world_size == 1:
        return error
    rank, host = trainer.global_rank, socket.gethostname()
    if isinstance(error, UserError):
        first = _in_time(lambda: _post(rank, str(error)))
        _linger(rank)
        return error if first is not False else UserError("")
    text = str(error)
    if "EADDRINUSE" in text:
        return UserError(
            f"MASTER_PORT={os.environ.get('MASTER_PORT')}: another process of {host} listens there; unset it"
        )
    if not (isinstance(error, DistError) or (isinstance(error, RuntimeError) and any(word in text for word in LOST))):
        return error
    reason = text.splitlines()[0].rpartition("] ")[2][:120] if text else type(error).__name__
    if not trainer.global_step and not latest(folder) and not _in_time(lambda: bool(_board())):
        meeting = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return MachineError(f"rank {rank} on {host} has not met the other ranks at {meeting} ({reason})")
    silent = _in_time(lambda: _silent(rank, trainer.world_size))
    _linger(rank)
    if silent is None and rank != 1 and trainer.local_rank != 0:  # rank 0 is gone, and these speak
        return _quiet()
    if silent is not None and silent[0]:
        return _quiet()
    who = ", ".join(silent[1]) if silent else "rank 0"
    line = f"rank {rank} on {host} lost {who or 'another rank'} after step {trainer.global_step:,} ({reason})"
    return MachineError(f"{line}: killed, or its node is gone; {what_follows(folder)}")


def what_follows(folder: Path) -> str:
    """The next thing that a person, or Slurm, does."""
    again = f"resumes from {path}" if (path := latest(folder)) else "starts again"
    if job := os.environ.get("SLURM_JOB_ID"):
        return f"job {job} {again} where Slurm queues it again by itself, and so does the same command"
    return f"the same command {again}"


def watch_children() -> None:
    """Let rank 0, when a rank that it has started dies, say so; Lightning would kill rank 0 without a word."""

    def end_all(observer: Any) -> NoReturn:
        children = observer._child_processes
        found = [(rank, child) for rank, child in enumerate(children, 1) if child.returncode]
        for child in children:
            child.kill()
        killed = found[0][1].returncode < 0  # else it has said so itself
        if killed:
            line = f"rank {found[0][0]} was ended by signal {-found[0][1].returncode}; the same command resumes"
            print(f"lcm train: {line}", file=sys.stderr, flush=True)
        os._exit(MachineError.status if killed else 1)

    subprocess_script._ChildProcessObserver._terminate_all = end_all  # type: ignore


def _quiet() -> Exception:
    return MachineError("")


def _board() -> Any:
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    return PrefixStore("lcm/words", _get_default_store())


def _post(rank: int, text: str) -> bool:
    """Say that this rank ends with a line of its own. True if no rank has said the same."""
    board = _board()
    board.add("spoken", 1)
    board.add(f"{rank}/heard", 1)
    return bool(board.add(hashlib.sha256(text.encode()).hexdigest(), 1) == 1)


def _silent(rank: int, world_size: int) -> tuple[bool, list[str]]:
    """Tell if another rank has spoken, and give the names of those that have not been heard."""
    board = _board()
    board.add(f"{rank}/heard", 1)
    end = time.monotonic() + SILENCE
    while True:
        if board.add("spoken", 0):
            return True, []
        silent = [other for other in range(world_size) if not board.add(f"{other}/heard", 0)]
        if time.monotonic() > end or not silent:
            spoke = board.add("turn", 1) > 1
            return spoke, [_name(other) for other in silent]
        time.sleep(SILENCE / 20)


def _name(rank: int) -> str:
    """'rank 1 on node1', by the watchdog's board."""
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    watch = PrefixStore("lcm/watch", _get_default_store())
    with suppress(RuntimeError, ValueError, IndexError):
        if watch.check([f"{rank}/place"]):
            return f"rank {rank} on {json.loads(watch.get(f'{rank}/place'))[0]}"
    return f"rank {rank}"


def _in_time(question: Callable[[], Any]) -> Any:
    """Ask the board; None where rank 0, which holds it, does not answer."""
    found: list[Any] = []

    def ask() -> None:
        with suppress(RuntimeError, ValueError):
            found.append(question())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * SILENCE)
    return found[0] if found else None


def _linger(rank: int) -> None:
    """Keep the board, which dies with rank 0, for those that still look at it."""
    if rank == 0:
        time.sleep(SILENCE / 2)
