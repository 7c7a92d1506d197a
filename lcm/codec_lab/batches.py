"""Rows of pieces, and the order in which training meets them: a pure function of the rows, the seed and the step.

Shapes.  B rows · P pieces of the source · Q pieces of the target
"""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from lcm.codec_lab.settings import CorpusSettings

LEAST_WORDS = 3
"""Words in the shortest span that stands for its sentence."""


@dataclass(frozen=True)
class PieceRow:
    """A sentence, which is its own target, or a translation; in pieces without language token and end."""

    source: tuple[int, ...]
    target: tuple[int, ...]
    source_lang: int
    target_lang: int
    sentence: int = -1
    """Number of the training sentence; -1 for a translation."""
    taught: bool = False
    """True if the public encoder has encoded the sentence. Such sentences share batches, so each has company."""

    @property
    def is_translation(self) -> bool:
        return self.sentence < 0

    @property
    def group(self) -> tuple[int, ...]:
        """Equal for rows that may share a batch: all translations; sentences of one length."""
        return () if self.is_translation else (len(self.source), self.taught)

    @property
    def rank(self) -> tuple[int, ...]:
        """Sort key that brings together rows of one group, and translations of about one length."""
        target = len(self.target) if self.is_translation else 0
        return (self.is_translation, len(self.source), target, self.taught)


class PieceBatch(NamedTuple):
    """Rows of one group, padded: pieces beyond a row's length are 0 and mean nothing."""

    source: Int[Tensor, "B P"]
    source_lengths: Int[Tensor, " B"]
    target: Int[Tensor, "B Q"]
    target_lengths: Int[Tensor, " B"]
    source_lang: Int[Tensor, " B"]
    target_lang: Int[Tensor, " B"]
    sentence: Int[Tensor, " B"]
    is_translation: bool


def collate(rows: Sequence[PieceRow]) -> PieceBatch:
    source, source_lengths = padded([row.source for row in rows])
    target, target_lengths = padded([row.target for row in rows])
    names = ("source_lang", "target_lang", "sentence")
    numbers = {name: torch.tensor([getattr(row, name) for row in rows]) for name in names}
    return PieceBatch(source, source_lengths, target, target_lengths, **numbers, is_translation=rows[0].is_translation)


def padded(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "B P"], Int[Tensor, " B"]]:
    """Rows of pieces as one tensor, and their lengths."""
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    full = [row if len(row) == longest else [*row, *[0] * (longest - len(row))] for row in rows]
    return torch.tensor(full, dtype=torch.long).view(len(rows), longest), torch.tensor(lengths)


@dataclass(frozen=True)
class Order:
    """Turns an epoch into batches. A row of more than `data.tokens` target pieces is a batch of its own."""

    data: CorpusSettings
    seed: int
    starts_word: Sequence[bool] = ()
    """For each id, True if a word begins with it; needed for spans."""

    def with_spans(self, rows: Sequence[PieceRow], epoch: int) -> Sequence[PieceRow]:
        """The rows that this epoch reads: some sentences whole, a span of others."""
        if not self.data.spans:
            return rows
        dice = random.Random(f"{self.seed} {epoch} spans")
        return [self._span(r, dice) if not r.is_translation and dice.random() < self.data.spans else r for r in rows]

    def _span(self, row: PieceRow, dice: random.Random) -> PieceRow:
        """LEAST_WORDS words of the row or more, up to all, from any place."""
        pieces = row.source
        words = [i for i, piece in enumerate(pieces) if i == 0 or self.starts_word[piece]]
        if len(words) <= LEAST_WORDS:
            return row
        count = dice.randint(LEAST_WORDS, len(words))
        first = dice.randint(0, len(words) - count)
        part = pieces[words[first] : [*words, len(pieces)][first + count]]
        return replace(row, source=part, target=part)

    def epoch(self, rows: Sequence[PieceRow], number: int) -> list[list[int]]:
        """The batches of an epoch, as places in `rows`. Every row comes once, short sentences by their share."""
        dice = random.Random(f"{self.seed} {number}")
        short, share = self.data.short_pieces, self.data.short_share
        taken = [
            i for i, row in enumerate(rows) if row.is_translation or len(row.source) >= short or dice.random() < share
        ]
        dice.shuffle(taken)
        # Stable: rows of one length stay in random order, so batches differ from epoch to epoch.
        taken.sort(key=lambda i: rows[i].rank)
        batches = list(_cut(rows, taken, self.data.tokens))
        dice.shuffle(batches)
        return batches

    def batches(self, rows: Sequence[PieceRow], start: int = 0) -> Iterator[PieceBatch]:
        """Endless epochs, from batch `start` on. The next epoch is laid out in a thread while one is read."""
        number = 0
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(self._laid_out, rows, number)
            while True:
                taken, epoch = coming.result()
                number += 1
                coming = thread.submit(self._laid_out, rows, number)
                for batch in epoch[start:]:
                    yield collate([taken[i] for i in batch])
                start = max(0, start - len(epoch))

    def _laid_out(self, rows: Sequence[PieceRow], number: int) -> tuple[Sequence[PieceRow], list[list[int]]]:
        taken = self.with_spans(rows, number)
        return taken, self.epoch(taken, number)


def _cut(rows: Sequence[PieceRow], order: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Consecutive rows of one group, up to the budget of target pieces."""
    batch: list[int] = []
    width = 0
    for i in order:
        own = len(rows[i].target) + 2  # the language token and the end
        if batch and (rows[i].group != rows[batch[0]].group or max(width, own) * (len(batch) + 1) > tokens):
            yield batch
            batch, width = [], 0
        batch.append(i)
        width = max(width, own)
    if batch:
        yield batch


def fixed_batches(rows: Sequence[PieceRow], tokens: int) -> list[PieceBatch]:
    """Each sentence once, in batches that never change: for validation."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].source))
    return [collate([rows[i] for i in batch]) for batch in _cut(rows, order, tokens)]


class Batches:
    """An iterable of batches for Lightning, which would take a list for several loaders."""

    def __init__(self, begin: Callable[[], Iterator[PieceBatch]]) -> None:
        self.begin = begin

    def __iter__(self) -> Iterator[PieceBatch]:
        return self.begin()
