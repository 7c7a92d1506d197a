"""Who is being waited for: where a step takes too long, the process that is behind is named, and the run ends.

Processes wait for one another in the middle of a step, on a GPU without a word. So a thread of each looks at the clock,
and at a board (torch's store) on which all write which step they are in.
"""

import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from torch.distributed.distributed_c10d import PrefixStore, _get_default_store


class Place(NamedTuple):
    """Where a process is: its machine, the steps it has done, and whether it reads (0) or is in a step (1)."""

    host: str
    step: int
    phase: int


class Watch:
    """Of one process, from `start` to `stop`; `beat` whenever it gets somewhere.

    seconds: how long there may be no beat
    """

    def __init__(self, rank: int, processes: int, seconds: float, give_up: Callable[[str], None]) -> None:
        """give_up: what is called with a line that says who is waited for, in the watching thread."""
        self.rank, self.processes, self.seconds, self.give_up = rank, processes, seconds, give_up
        self._board = PrefixStore("lcm/watch", _get_default_store())
        self._round = seconds / 10
        self._last = time.monotonic()
        self._over = threading.Event()

    def start(self, step: int) -> None:
        self.beat(step, reads=True)
        for work in (self._live, self._look):
            threading.Thread(target=work, daemon=True, name=f"lcm-watch{work.__name__}").start()

    def beat(self, step: int, reads: bool) -> None:
        self._last = time.monotonic()
        self._board.set(f"{self.rank}/place", json.dumps(Place(socket.gethostname(), step, int(not reads))))

    def stop(self) -> None:
        self._over.set()

    def _live(self) -> None:
        """A sign of life a round, whatever the main thread does."""
        with suppress(RuntimeError):  # the board is gone, with its process: `_look` has it told
            for count in itertools.count():
                self._board.set(f"{self.rank}/alive", str(count))
                if self._over.wait(self._round):
                    return

    def _look(self) -> None:
        while not self._over.wait(self._round):
            if time.monotonic() - self._last > self.seconds:
                self.give_up(f"no step for {self.seconds:g} s: {self._told()}")
                return

    def _told(self) -> str:
        """Who is waited for. Where the board does not answer, it is the process that keeps it."""
        found: list[str] = []
        asking = threading.Thread(target=lambda: found.extend(self._asked()), daemon=True)
        asking.start()
        asking.join(6 * self._round)
        return found[0] if found else "waited for process 0, which is not to be reached"

    def _asked(self) -> Iterator[str]:
        with suppress(RuntimeError):
            ranks = range(self.processes)
            places = {rank: Place(*json.loads(self._board.get(f"{rank}/place"))) for rank in ranks}
            before = [self._board.get(f"{rank}/alive") for rank in ranks]
            time.sleep(3 * self._round)
            dead = [rank for rank in ranks if self._board.get(f"{rank}/alive") == before[rank]]
            if dead:
                yield f"waited for {_named(places, dead)}, of which there is no sign of life"
                return
            first = max(place[1:] for place in places.values())
            behind = [rank for rank, place in places.items() if place[1:] < first]
            if behind:
                yield f"waited for {_named(places, behind)}"
            else:
                yield f"all {self.processes} processes wait in step {first[0]}, for the network or for their devices"


def _named(places: dict[int, Place], ranks: list[int]) -> str:
    doing = ("reading the batch of", "in")
    return ", ".join(
        f"process {rank} on {places[rank].host} ({doing[places[rank].phase]} step {places[rank].step})"
        for rank in ranks
    )


def end_process(line: str) -> None:
    """The main thread may be where no exception reaches it. Slurm and Lightning's launcher end the other processes."""
    print(f"lcm train: {line}; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
    os._exit(1)
