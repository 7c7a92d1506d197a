"""Signs that a run must end early: SIGTERM (stop), SIGUSR1 (stop and requeue), a rank that hangs.

    SIGUSR1   stop and requeue: `#SBATCH --signal=USR1@…` sends it before the time limit
    SIGTERM   stop: scancel, preemption and the time limit itself send it

A handler only sets a flag, as the other ranks may be anywhere. All ranks act on it together, at the end of a step.
Until training begins there is no step to end: SIGTERM then ends the process at once, as it does without a handler, also
where the ranks wait for one another in code that no handler of Python's interrupts.

Ranks wait for one another in the middle of a step, silently where they do so on a GPU. So each rank has a thread that
watches the clock, and a shared board (torch's store) on which every rank writes the step it is in. When a step takes
longer than `patience`, the thread reports the rank that is behind and ends the run.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import NamedTuple

from lcm.errors import MachineError, UserError

CONTINUE, STOP, REQUEUE = range(3)
"""Requests. The largest one wins."""
_REQUESTS = {signal.SIGTERM: STOP, signal.SIGUSR1: REQUEUE}
_requested = CONTINUE
_listening = False


def listen() -> None:
    """Handle SIGUSR1 as a request from now on: before torch is imported, as it would kill a process without."""
    global _listening
    _listening = True
    signal.signal(signal.SIGUSR1, _record)


def begin() -> None:
    """Handle SIGTERM as a request, too, after `listen`: steps begin, after which a run can stop."""
    if _listening:
        signal.signal(signal.SIGTERM, _record)


def ignore() -> None:
    """Let both signals end the process again, which is what they do without a handler."""
    global _listening
    _listening = False
    for number in _REQUESTS:
        signal.signal(number, signal.SIG_DFL)


def end_with(parent: int) -> None:
    """End this process as soon as its parent process has ended, which says why."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(MachineError.status)

    threading.Thread(target=watch, daemon=True, name="lcm-parent").start()


def _record(number: int, frame: FrameType | None) -> None:
    global _requested
    _requested = max(_requested, _REQUESTS[signal.Signals(number)])


def requested() -> int:
    """The largest request that this process has received."""
    return _requested


def requeue(job: str) -> None:
    """Requeue a Slurm job. Raises UserError with Slurm's reason where it refuses."""
    try:
        result = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        refusal = result.stderr.strip() or result.stdout.strip() if result.returncode else ""
    except OSError as error:
        refusal = str(error)
    if refusal:
        raise UserError(f"scontrol requeue {job}: {refusal}; nothing is lost, so submit the same command again")


class Place(NamedTuple):
    """Position of a rank: its host, its finished steps, and its phase: reading a batch (0) or in a step (1)."""

    host: str
    step: int
    phase: int


class Watchdog:
    """Watches the ranks from one of them. Call `beat` whenever this rank gets somewhere.

    patience: longest time between two beats, in seconds; beyond it, the process ends
    """

    def __init__(self, rank: int, world_size: int, patience: float) -> None:
        self.rank, self.world_size, self.patience = rank, world_size, patience
        from torch.distributed.distributed_c10d import PrefixStore, _get_default_store  # `listen` comes before torch

        self._board = PrefixStore("lcm/watch", _get_default_store())
        self._interval = patience / 10
        self._last = time.monotonic()
        self._stopped = threading.Event()

    def start(self, step: int) -> None:
        self.beat(step, reads=True)
        for work in (self._show_life, self._watch):
            threading.Thread(target=work, daemon=True, name=f"lcm-watch{work.__name__}").start()

    def beat(self, step: int, reads: bool) -> None:
        self._last = time.monotonic()
        self._board.set(f"{self.rank}/place", json.dumps(Place(socket.gethostname(), step, int(not reads))))

    def stop(self) -> None:
        self._stopped.set()

    def _show_life(self) -> None:
        """Write to the board at every interval, whatever the main thread does."""
        with suppress(RuntimeError):  # the board is gone, with rank 0: `_watch` reports that
            for count in itertools.count():
                self._board.set(f"{self.rank}/alive", str(count))
                if self._stopped.wait(self._interval):
                    return

    def _watch(self) -> None:
        """Exit at once when a step takes too long: the main thread may hang where no exception reaches it."""
        while not self._stopped.wait(self._interval):
            if time.monotonic() - self._last > self.patience:
                line = f"lcm train: no step for {self.patience:g} s: {self._diagnosis()}"
                print(f"{line}; the same command resumes from the last checkpoint", file=sys.stderr, flush=True)
                os._exit(MachineError.status)

    def _diagnosis(self) -> str:
        """Name the rank that is behind: rank 0, which holds the board, where the board does not answer."""
        found: list[str] = []
        reader = threading.Thread(target=lambda: found.extend(self._read_board()), daemon=True)
        reader.start()
        reader.join(6 * self._interval)
        return found[0] if found else "waited for rank 0, which cannot be reached"

    def _read_board(self) -> Iterator[str]:
        with suppress(RuntimeError):
            ranks = range(self.world_size)
            places = {rank: Place(*json.loads(self._board.get(f"{rank}/place"))) for rank in ranks}
            before = [self._board.get(f"{rank}/alive") for rank in ranks]
            time.sleep(3 * self._interval)
            if dead := [rank for rank in ranks if self._board.get(f"{rank}/alive") == before[rank]]:
                yield f"waited for {_named(places, dead)}, which shows no sign of life"
                return
            first = max(place[1:] for place in places.values())
            if behind := [rank for rank, place in places.items() if place[1:] < first]:
                yield f"waited for {_named(places, behind)}"
            else:
                yield f"all {self.world_size} ranks wait in step {first[0]}, for the network or for their devices"


def _named(places: dict[int, Place], ranks: list[int]) -> str:
    phases = ("reading the batch of", "in")
    return ", ".join(
        f"rank {rank} on {places[rank].host} ({phases[places[rank].phase]} step {places[rank].step})" for rank in ranks
    )
