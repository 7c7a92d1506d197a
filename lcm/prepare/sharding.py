"""Deals documents out to shards, by input order alone, and collects the notes of the shards that are done."""

import hashlib
from dataclasses import dataclass, field

from lcm.data import SPLITS, RefusedRecord, ShardRecord, shard_name
from lcm.errors import UserError
from lcm.prepare.pool import Pool
from lcm.prepare.progress import PrepareProgress
from lcm.prepare.rows import Columns, Document, Refused, Rows
from lcm.prepare.worker import Finished, ShardTask, count


@dataclass
class _Pending:
    """The documents of a shard that is not full yet, with their numbers in input order."""

    documents: list[tuple[int, Document]] = field(default_factory=list)
    characters: int = 0


class Dealer:
    """Which document goes to which shard.

    shard_documents, shard_characters: a shard is full when it has either
    share: (which part of the shards is made, of how many parts); None: all of them
    """

    def __init__(
        self,
        shard_documents: int,
        shard_characters: int,
        progress: PrepareProgress,
        share: tuple[int, int] | None = None,
    ) -> None:
        self.shard_documents = shard_documents
        self.shard_characters = shard_characters
        self.progress = progress
        self.share = share
        self.notes: dict[str, Finished] = {}
        self.refused: dict[str, RefusedRecord] = {}
        self.dealt: dict[str, list[str]] = {split: [] for split in SPLITS}
        """Names of the shards of each split, in input order."""
        self._pending = {split: _Pending() for split in SPLITS}

    def deal(self, sources: Rows, notes: dict[str, Finished], pool: Pool) -> None:
        """Have every shard made but those that `notes` calls done. Raises UserError if no document is left."""
        self.progress.start()
        number = 0
        for item in sources:
            if isinstance(item, Refused):
                count(self.refused, item.reason, item.example)
                continue
            split = item.split or split_of(item.id)
            pending = self._pending[split]
            pending.documents.append((number, item))
            pending.characters += item.characters
            number += 1
            self.progress.read(item.characters, sources.bytes_read)
            if len(pending.documents) >= self.shard_documents or pending.characters >= self.shard_characters:
                self._hand_over(split, notes, pool)
        for split, pending in self._pending.items():
            if pending.documents:
                self._hand_over(split, notes, pool)
        pool.finish()
        if not self.lacking() and not self.splits():
            raise UserError(_nothing_left(self.all_refused(), sources))

    def _hand_over(self, split: str, notes: dict[str, Finished], pool: Pool) -> None:
        """A full shard's documents go to a worker, or nowhere if it is done already."""
        task = ShardTask(shard_name(split, len(self.dealt[split])), tuple(self._pending[split].documents))
        self._pending[split] = _Pending()
        number = sum(map(len, self.dealt.values()))
        self.dealt[split].append(task.name)
        if task.name in notes:
            self.finished(notes[task.name], resumed=True)
            pool.poll()
        elif self.share is None or number % self.share[1] == self.share[0]:
            pool.submit(task)

    def lacking(self) -> int:
        """How many shards are still to be made, by other parts."""
        return sum(name not in self.notes for names in self.dealt.values() for name in names)

    def finished(self, note: Finished, resumed: bool = False) -> None:
        """A shard is done: by a worker just now, or by an earlier run."""
        self.notes[note.name] = note
        self.progress.finished(note.sentences, note.characters, resumed)

    def splits(self) -> dict[str, tuple[ShardRecord, ...]]:
        """The finished shards of each split that has any, in input order."""
        shards = {
            split: tuple(shard for name in names if (shard := self.notes[name].shard))
            for split, names in self.dealt.items()
        }
        return {split: records for split, records in shards.items() if records}

    def emojis(self) -> int:
        """Taken out of the texts by the splitter."""
        return sum(self.notes[name].emojis for names in self.dealt.values() for name in names)

    def all_refused(self) -> dict[str, RefusedRecord]:
        """Whatever was left out, by the reader or by a worker, the commonest reason first."""
        refused = dict(self.refused)
        for names in self.dealt.values():
            for name in names:
                for reason, record in self.notes[name].refused.items():
                    count(refused, reason, record.first, record.count)
        return dict(sorted(refused.items(), key=lambda item: (-item[1].count, item[0])))


def split_of(id: str) -> str:
    """The split of a document that does not name its own: one in sixteen for validation, and as many for test."""
    match hashlib.sha1(id.encode("utf-8")).hexdigest()[-1]:
        case "0":
            return "validation"
        case "1":
            return "test"
        case _:
            return "train"


def describe(refused: dict[str, RefusedRecord]) -> str:
    """'3 refused: 2 empty (first: a.jsonl:7), 1 not text (first: …)'"""
    reasons = [f"{record.count:,} {reason} (first: {record.first})" for reason, record in refused.items()]
    return f"{sum(record.count for record in refused.values()):,} refused: {', '.join(reasons)}"


def _nothing_left(refused: dict[str, RefusedRecord], sources: Rows) -> str:
    missing = [column for column in sources.columns.needed if column not in sources.columns_seen]
    if sources.columns_seen and missing:
        return (
            f"no row has a column '{missing[0]}'; only {', '.join(sources.columns_seen)}; "
            f"name yours by {_option_of(missing[0], sources.columns)}"
        )
    return f"no document is left: {describe(refused)}" if refused else "--input: the files hold no document"


def _option_of(column: str, columns: Columns) -> str:
    """What names a column that no row has."""
    if column in (columns.lang, columns.summary_lang):
        return "--lang-column and --summary-lang-column"
    if column == columns.audio:
        return "--audio-column"
    return "--text-column" if columns.summary is None else "--document-column and --summary-column"
