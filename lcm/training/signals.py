"""Stop on SIGTERM, stop and requeue on SIGUSR1.

    listen()       before anything heavy is imported: a signal without a handler would kill the process
    requested()    what the signals since have asked for
    requeue(job)   put this process's Slurm job back into the queue

    SIGUSR1   stop and requeue: `#SBATCH --signal=USR1@…` sends it before the time limit
    SIGTERM   stop: scancel, preemption and the time limit itself send it

A handler only sets a flag, because the other ranks may be anywhere when it runs. All ranks act on it together, at the
end of a step.
"""

import os
import signal
import subprocess
from types import FrameType

from lcm.errors import UserError

CONTINUE, STOP, REQUEUE = range(3)
"""Requests. The largest one wins."""

_REQUESTS = {signal.SIGTERM: STOP, signal.SIGUSR1: REQUEUE}
_requested = CONTINUE


def listen() -> None:
    """Handle both signals as requests from now on."""
    for number in _REQUESTS:
        signal.signal(number, _record)


def ignore() -> None:
    """Let both signals end the process again, which is what they do without a handler."""
    for number in _REQUESTS:
        signal.signal(number, signal.SIG_DFL)


def _record(number: int, frame: FrameType | None) -> None:
    global _requested
    _requested = max(_requested, _REQUESTS[signal.Signals(number)])


def requested() -> int:
    """The largest request that this process has received."""
    return _requested


def reset() -> None:
    """Forget all requests."""
    global _requested
    _requested = CONTINUE


def slurm_job() -> str | None:
    """Number of the Slurm job that this process belongs to; each task of an array has its own."""
    return os.environ.get("SLURM_JOB_ID") or None


def requeue(job: str) -> None:
    """Requeue a Slurm job. Raises UserError with Slurm's reason where it refuses."""
    try:
        result = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        refusal = result.stderr.strip() or result.stdout.strip() if result.returncode else ""
    except OSError as error:
        refusal = str(error)
    if refusal:
        raise UserError(f"scontrol requeue {job}: {refusal}; nothing is lost, so submit the same command again")
