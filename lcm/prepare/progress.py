"""Progress of `lcm prepare`: a bar on a terminal, a line every 15 seconds elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

TYPICAL = 88
"""Characters per sentence (paper App. A), for the estimate of the time left until the first shard is done."""


class PrepareProgress:
    """Sentences per second, and the time left.

    total_bytes: size of all input files, as stored on disk
    every:       seconds between two lines where stderr is no terminal
    """

    def __init__(self, total_bytes: int, every: float = 15.0) -> None:
        self._out = sys.stderr  # rich puts another in its place while the bar is shown
        self.total_bytes = total_bytes
        self.every = every
        self.encoded = 0
        """Sentences encoded in this run."""
        self._resumed = self._finished = 0
        self._read_bytes = self._read_characters = self._finished_characters = 0
        self._started = self._shown = time.monotonic()
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.description}"),
            console=Console(file=self._out),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task("", total=1.0)

    def start(self) -> None:
        """Start the clock, and show the bar."""
        self._started = self._shown = time.monotonic()
        if self._out.isatty():
            self._bar.start()

    def close(self) -> None:
        if self._out.isatty():
            self._bar.stop()

    def read(self, characters: int, bytes_read: int) -> None:
        """Add characters that were read since the last call. bytes_read: position in all input files."""
        self._read_characters += characters
        self._read_bytes = bytes_read

    def report(self, sentences: int) -> None:
        """Add sentences that were encoded since the last call, and show the state when it is time."""
        self.encoded += sentences
        if self._out.isatty():
            self._bar.update(self._task, completed=self.fraction, description=str(self), refresh=True)
        elif time.monotonic() - self._shown > self.every:
            self._shown = time.monotonic()
            print(f"lcm prepare: {self}", file=self._out, flush=True)

    def finished(self, sentences: int, characters: int, resumed: bool) -> None:
        """Add a finished shard. resumed: an earlier run made it, so `report` has not counted its sentences."""
        self._finished += sentences
        self._finished_characters += characters
        self._resumed += sentences if resumed else 0

    @property
    def fraction(self) -> float:
        """Share of all sentences that is done, with the total estimated from the bytes still to read."""
        if not self.total_bytes or not self._read_bytes or not self._read_characters:
            return 0.0
        characters = self._read_characters * self.total_bytes / self._read_bytes
        characters_per_sentence = self._finished_characters / self._finished if self._finished else TYPICAL
        return min(1.0, (self._resumed + self.encoded) * characters_per_sentence / characters)

    def __str__(self) -> str:
        seconds = time.monotonic() - self._started
        speed = self.encoded / seconds if seconds else 0.0
        line = f"{self._resumed + self.encoded:,} sentences · {speed:,.0f}/s · {self.fraction:.0%}"
        if not speed or not self.fraction:
            return line
        total = (self._resumed + self.encoded) / self.fraction
        return f"{line} · {_duration((total - self._resumed - self.encoded) / speed)} left"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
