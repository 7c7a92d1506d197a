"""Hang watchdog: when a step takes longer than `patience`, report the rank that is behind and end the run.

Ranks wait for one another in the middle of a step, silently where they do so on a GPU. So each rank has a thread that
watches the clock, and a shared board (torch's store) on which every rank writes the step it is in.
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
    """Position of a rank: its host, its finished steps, and its phase: reading a batch (0) or in a step (1)."""

    host: str
    step: int
    phase: int


class Watchdog:
    """Watches the ranks from one of them. Call `beat` whenever this rank gets somewhere.

    patience: longest time between two beats, in seconds
    on_hang:  called in the watching thread, with one line that names the rank that is behind
    """

    def __init__(self, rank: int, world_size: int, patience: float, on_hang: Callable[[str], None]) -> None:
        self.rank, self.world_size, self.patience, self.on_hang = rank, world_size, patience, on_hang
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
        while not self._stopped.wait(self._interval):
            if time.monotonic() - self._last > self.patience:
                self.on_hang(f"no step for {self.patience:g} s: {self._diagnosis()}")
                return

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
            dead = [rank for rank in ranks if self._board.get(f"{rank}/alive") == before[rank]]
            if dead:
                yield f"waited for {_named(places, dead)}, which shows no sign of life"
                return
            first = max(place[1:] for place in places.values())
            behind = [rank for rank, place in places.items() if place[1:] < first]
            if behind:
                yield f"waited for {_named(places, behind)}"
            else:
                yield f"all {self.world_size} ranks wait in step {first[0]}, for the network or for their devices"


def _named(places: dict[int, Place], ranks: list[int]) -> str:
    phases = ("reading the batch of", "in")
    return ", ".join(
        f"rank {rank} on {places[rank].host} ({phases[places[rank].phase]} step {places[rank].step})" for rank in ranks
    )


def end_process(line: str) -> None:
    """Exit at once: the main thread may hang where no exception reaches it. Slurm and Lightning end the other ranks."""
    print(f"lcm train: {line}; the same command resumes from the last checkpoint", file=sys.stderr, flush=True)
    os._exit(1)
