"""How far a preparation is: a bar on a terminal, now and then a line elsewhere."""

import time
from typing import Protocol, TextIO, cast, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

TYPICAL = 88
"""Characters a sentence (paper App. A): what the time left is reckoned with until the first shard is done."""


@runtime_checkable
class Writer(Protocol):
    """Where progress goes, such as sys.stderr."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> None: ...
    def isatty(self) -> bool: ...


class PrepareProgress:
    """Sentences a second, and the time left.

    total_bytes: of all input files, as they lie on the disk
    every:       seconds between two lines where `out` is no terminal
    """

    def __init__(self, out: Writer, total_bytes: int, every: float = 15.0) -> None:
        self.out = out
        self.total_bytes = total_bytes
        self.every = every
        self.encoded = 0
        """Sentences, in this run."""
        self._resumed = self._finished = 0
        self._read_bytes = self._read_characters = self._finished_characters = 0
        self._started = self._shown = time.monotonic()
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.description}"),
            console=Console(file=cast(TextIO, out)),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task("", total=1.0)

    def start(self) -> None:
        """The clock runs from here."""
        self._started = self._shown = time.monotonic()
        if self.out.isatty():
            self._bar.start()

    def close(self) -> None:
        if self.out.isatty():
            self._bar.stop()

    def read(self, characters: int, bytes_read: int) -> None:
        """So many characters were read since the last call; the reading stands at this byte."""
        self._read_characters += characters
        self._read_bytes = bytes_read

    def report(self, sentences: int) -> None:
        """So many sentences were encoded since the last call."""
        self.encoded += sentences
        if self.out.isatty():
            self._bar.update(self._task, completed=self.fraction, description=str(self), refresh=True)
        elif time.monotonic() - self._shown > self.every:
            self._shown = time.monotonic()
            print(f"lcm prepare: {self}", file=self.out, flush=True)

    def finished(self, sentences: int, characters: int, resumed: bool) -> None:
        """A shard is done: by an earlier run, or by this one, whose sentences `told` has counted."""
        self._finished += sentences
        self._finished_characters += characters
        self._resumed += sentences if resumed else 0

    @property
    def fraction(self) -> float:
        """Of all sentences that the input will give, as far as one can know."""
        if not self.total_bytes or not self._read_bytes or not self._read_characters:
            return 0.0
        characters = self._read_characters * self.total_bytes / self._read_bytes
        a_sentence = self._finished_characters / self._finished if self._finished else TYPICAL
        return min(1.0, (self._resumed + self.encoded) * a_sentence / characters)

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
