"""Who is being waited for: where a step takes too long, the process that is behind is named, and the run ends.

Processes wait for one another in the middle of a step, on a GPU without a word. So a thread of each looks at the clock,
and at a board (torch's store) on which all write which step they are in.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

ANSWER = 10.0
"""Seconds in which the board answers, where it can."""


class Place(NamedTuple):
    """Where a process is: its machine, and how many steps it has done."""

    host: str
    step: int


class Watch:
    """Of one process, from `start` to `stop`; `beat` at every step and at every batch of a validation.

    seconds: how long there may be no beat
    """

    def __init__(self, rank: int, processes: int, seconds: float, give_up: Callable[[str], None]) -> None:
        """give_up: what is called with a line that says who is behind, in the watching thread."""
        self.rank, self.processes, self.seconds, self.give_up = rank, processes, seconds, give_up
        self._board = PrefixStore("lcm/watch", _get_default_store())
        self._last = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="lcm-watch")

    def start(self, step: int) -> None:
        self.beat(step)
        self._thread.start()

    def beat(self, step: int) -> None:
        self._last = time.monotonic()
        self._board.set(str(self.rank), json.dumps(Place(socket.gethostname(), step)))

    def stop(self) -> None:
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(self.seconds / 10):
            if time.monotonic() - self._last > self.seconds:
                self.give_up(self.told())
                return

    def told(self) -> str:
        """Who is behind, in a line. Where the board does not answer, it is the process that keeps it."""
        found: list[dict[int, Place]] = []
        asking = threading.Thread(target=lambda: found.append(self._places()), daemon=True)
        asking.start()
        asking.join(ANSWER)
        if not found:
            return f"no step for {self.seconds:g} s: waited for process 0, which is not to be reached"
        (places,) = found
        first = max(place.step for place in places.values())
        behind = {rank: place for rank, place in places.items() if place.step < first} or places
        named = ", ".join(f"process {rank} on {place.host} (step {place.step})" for rank, place in behind.items())
        whole = "" if len(behind) < len(places) else ": all wait in the same step, for the network or for a device"
        return f"no step for {self.seconds:g} s: waited for {named}, others are at step {first}{whole}"

    def _places(self) -> dict[int, Place]:
        with suppress(RuntimeError):
            return {rank: Place(*json.loads(self._board.get(str(rank)))) for rank in range(self.processes)}
        raise SystemExit  # of the asking thread, without a word


def end_process(line: str) -> None:
    """The main thread may be where no exception reaches it. Slurm and Lightning's launcher end the other processes."""
    print(f"lcm train: {line}; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
    os._exit(1)
