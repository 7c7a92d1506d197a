"""Documents → shards, by input order alone; the account of finished shards; and the progress, which both report to."""

import sys
import time
from collections.abc import Iterator
from itertools import chain

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from lcm.data.manifest import SPLITS, ShardRecord
from lcm.data.shards import shard_name
from lcm.errors import UserError
from lcm.ledger import Entries, Ledger, described
from lcm.prepare.hub import DatasetRows
from lcm.prepare.inputs import Inputs, origins
from lcm.prepare.options import PrepareOptions
from lcm.prepare.resume import Finished, Request, ShardTask
from lcm.prepare.rows import Columns, Document, Refused, split_of
from lcm.prepare.sources import Sources

TYPICAL = 88
"""Characters per sentence (paper App. A), for the estimate of the time left until the first shard is done."""


class PrepareProgress:
    """Sentences per second, and the time left.

    total_bytes: size of all input files, as stored on disk
    every:       seconds between two lines where stderr is no terminal
    """

    def __init__(self, total_bytes: int, every: float = 15.0) -> None:
        self._out = sys.stderr  # rich puts another in its place while the bar is shown
        self.total_bytes, self.every = total_bytes, every
        self.encoded = 0
        """Sentences encoded in this run."""
        self._resumed = self._finished = 0
        self._read_bytes = self._read_characters = self._finished_characters = 0
        self._started = self._shown = time.monotonic()
        columns = (BarColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=Console(file=self._out), auto_refresh=False, transient=True)
        self._task = self._bar.add_task("", total=1.0)

    def start(self) -> None:
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
        seconds, done, fraction = time.monotonic() - self._started, self._resumed + self.encoded, self.fraction
        speed = self.encoded / seconds if seconds else 0.0
        line = f"{done:,} sentences · {speed:,.0f}/s · {fraction:.0%}"
        return f"{line} · {_duration((done / fraction - done) / speed)} left" if speed and fraction else line


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Sharding:
    """Deals documents out to shards, and keeps the notes of finished shards.

    A shard is full when it reaches `options.shard_documents` or `options.shard_characters`.
    """

    def __init__(
        self,
        sources: Sources | DatasetRows,
        inputs: Inputs,
        options: PrepareOptions,
        request: Request,
        progress: PrepareProgress,
    ) -> None:
        self.sources, self.inputs, self.progress = sources, inputs, progress
        self.options, self.request = options, request
        self.notes: dict[str, Finished] = {}
        """Notes of finished shards, by name."""
        self.names: dict[str, list[str]] = {split: [] for split in SPLITS}
        """Names of the shards of each split, in input order."""
        self._refused = Ledger()
        self._pending: dict[str, list[tuple[int, Document]]] = {split: [] for split in SPLITS}
        self._characters = dict.fromkeys(SPLITS, 0)

    def tasks(self, notes: dict[str, Finished]) -> Iterator[ShardTask]:
        """Yield the shards to make, in input order: neither those in `notes` nor those of other parts.

        Raises InputChanged before a shard is made of a file that has changed since it was hashed.
        """
        part, parts = self.options.share
        made_of = origins(self.request.options, self.inputs.files)
        for split in self._full():
            last = self.sources.file
            self.inputs.check(last)
            number = sum(map(len, self.names.values()))
            task = ShardTask(shard_name(split, len(self.names[split])), made_of[last + 1], tuple(self._pending[split]))
            self._pending[split], self._characters[split] = [], 0
            self.names[split].append(task.name)
            if task.name in notes:
                self.finished(notes[task.name], resumed=True)
            elif number % parts == part:
                yield task
        self.inputs.check(len(self.inputs.files) - 1)

    def _full(self) -> Iterator[str]:
        """Read all documents; yield the split whose pending shard is full, or complete at the end."""
        most_documents, most_characters = self.options.shard_documents, self.options.shard_characters
        number = 0
        for item in self.sources:
            if isinstance(item, Refused):
                self._refused.add(item.reason, item.example)
                continue
            split = item.split or split_of(item.id)
            characters = item.characters
            self._pending[split].append((number, item))
            self._characters[split] += characters
            number += 1
            self.progress.read(characters, self.sources.bytes_read)
            if len(self._pending[split]) >= most_documents or self._characters[split] >= most_characters:
                yield split
        yield from (split for split, documents in self._pending.items() if documents)

    def finished(self, note: Finished, resumed: bool = False) -> None:
        """Add the note of a shard, made by a worker just now or by an earlier run."""
        self.notes[note.name] = note
        self.progress.finished(note.sentences, note.characters, resumed)

    def missing(self) -> int:
        """Number of shards that other parts still have to make."""
        return sum(name not in self.notes for name in chain(*self.names.values()))

    def splits(self) -> dict[str, tuple[ShardRecord, ...]]:
        """The finished shards of each split that has any, in input order."""
        shards = {split: [self.notes[name].shard for name in names] for split, names in self.names.items()}
        return {split: tuple(filter(None, made)) for split, made in shards.items() if any(made)}

    def emojis(self) -> int:
        return sum(self.notes[name].emojis for name in chain(*self.names.values()))

    def blocks(self) -> int:
        return sum(self.notes[name].blocks for name in chain(*self.names.values()))

    def refused(self) -> Entries:
        """Everything that discovery, the reader and the workers passed over."""
        ledgers = (self.notes[name].refused for name in chain(*self.names.values()))
        return Ledger(self.sources.passed.entries).extend(self._refused.entries, *ledgers).entries

    def check_not_empty(self) -> None:
        """Raise UserError, with the likely reason, where all shards are finished and no document is left."""
        if self.missing() or self.splits():
            return
        columns, seen, refused = self.sources.columns, self.sources.columns_seen, self.refused()
        missing = [column for column in columns.needed if column not in seen]
        if seen and missing:
            option = _option_of(missing[0], columns)
            raise UserError(f"no row has a column '{missing[0]}'; only {', '.join(seen)}; name yours by {option}")
        raise UserError(
            f"no document is left: {described(refused)}" if refused else "--input: the files hold no document"
        )


def _option_of(column: str, columns: Columns) -> str:
    """The option that names a column which no row has."""
    if column in (columns.lang, columns.summary_lang):
        return "--lang-column and --summary-lang-column"
    if column == columns.audio:
        return "--audio-column"
    return "--text-column" if columns.summary is None else "--document-column and --summary-column"
