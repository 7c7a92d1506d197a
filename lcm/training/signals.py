"""Leaving a run before its end, because its time is up or another job goes first.

    listen()            before anything heavy is imported: a signal that nobody handles would kill the process
    wish()              what has been asked for since
    requeue()           the Slurm job that this process belongs to starts again where it is

    SIGUSR1   leave and come back: what `#SBATCH --signal=USR1@…` sends before the time limit
    SIGTERM   leave: what scancel, pre-emption and the time limit itself send

A handler only sets a flag: when it runs, the other processes are anywhere. What is done about it, all of them decide
together at the end of a step.
"""

import os
import signal
import subprocess
from types import FrameType

from lcm.errors import UserError

STAY, LEAVE, COME_BACK = range(3)
"""Wishes, of which the largest counts."""

_WISHES = {signal.SIGTERM: LEAVE, signal.SIGUSR1: COME_BACK}
_wish = STAY


def listen() -> None:
    """From now on both signals are wishes."""
    for number in _WISHES:
        signal.signal(number, _note)


def ignore() -> None:
    """From now on both signals end the process again, as they do where nobody listens."""
    for number in _WISHES:
        signal.signal(number, signal.SIG_DFL)


def _note(number: int, frame: FrameType | None) -> None:
    global _wish
    _wish = max(_wish, _WISHES[signal.Signals(number)])


def wish() -> int:
    """The largest of this process."""
    return _wish


def forget() -> None:
    global _wish
    _wish = STAY


def job() -> str | None:
    """Slurm's number of the job that this process belongs to; a task of an array has one of its own."""
    return os.environ.get("SLURM_JOB_ID") or None


def requeue(number: str) -> None:
    """Raises UserError with Slurm's reason where it refuses."""
    try:
        asked = subprocess.run(["scontrol", "requeue", number], capture_output=True, text=True, check=False)
        refusal = asked.stderr.strip() or asked.stdout.strip() if asked.returncode else ""
    except OSError as error:
        refusal = str(error)
    if refusal:
        raise UserError(f"scontrol requeue {number}: {refusal}; nothing is lost, so submit the same command again")
