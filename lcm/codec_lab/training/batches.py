"""Sentences as pieces, and the order in which training meets them: a pure function of examples, seed and step.

Shapes.  B rows · P pieces of the source · Q pieces of the target
"""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

AROUND = 2
"""Positions that language and end take."""
LEAST_WORDS = 3
"""Of a run of words that stands for its sentence."""


@dataclass(frozen=True)
class Example:
    """Pieces without language and end. A sentence is its own target."""

    source: tuple[int, ...]
    target: tuple[int, ...]
    source_lang: int
    target_lang: int
    sentence: int = -1
    """Its number among the training sentences; -1 for a translation."""
    taught: bool = False
    """Whether the public encoder was asked about it: such sentences share their batches, or few would have company."""

    @property
    def is_translation(self) -> bool:
        return self.sentence < 0


@dataclass(frozen=True)
class PieceBatch:
    """Examples side by side: all sentences of one length, or all translations of about one.

    Pieces beyond a row's length are 0 and mean nothing.
    """

    source: Int[Tensor, "B P"]
    source_lengths: Int[Tensor, " B"]
    target: Int[Tensor, "B Q"]
    target_lengths: Int[Tensor, " B"]
    source_lang: Int[Tensor, " B"]
    target_lang: Int[Tensor, " B"]
    sentence: Int[Tensor, " B"]
    is_translation: bool

    def to(self, device: Any, non_blocking: bool = False) -> "PieceBatch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "is_translation"}
        return replace(self, **{name: t.to(device, non_blocking=non_blocking) for name, t in tensors.items()})

    def pin_memory(self) -> "PieceBatch":
        return self


def collate(examples: Sequence[Example]) -> PieceBatch:
    source, source_lengths = padded([example.source for example in examples])
    target, target_lengths = padded([example.target for example in examples])
    numbers = {
        name: torch.tensor([getattr(example, name) for example in examples])
        for name in ("source_lang", "target_lang", "sentence")
    }
    return PieceBatch(
        source, source_lengths, target, target_lengths, **numbers, is_translation=examples[0].is_translation
    )


def padded(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "B P"], Int[Tensor, " B"]]:
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    full = [row if len(row) == longest else [*row, *[0] * (longest - len(row))] for row in rows]
    return torch.tensor(full, dtype=torch.long).view(len(rows), longest), torch.tensor(lengths)


@dataclass(frozen=True)
class Order:
    """How an epoch becomes batches."""

    tokens: int
    """Target pieces of a batch, language and end included; one row where a single one is longer."""
    seed: int
    short_pieces: int = 0
    short_share: float = 1.0
    spans: float = 0.0
    """The share of sentences of which an epoch takes a run of words only: other runs in each epoch."""
    starts_word: Sequence[bool] = ()
    """For each id, whether a word begins with it; needed for spans."""

    def with_spans(self, examples: Sequence[Example], number: int) -> Sequence[Example]:
        """What epoch `number` reads: some sentences whole, of some a span."""
        if not self.spans:
            return examples
        dice = random.Random(f"{self.seed} {number} spans")
        return [self._span(e, dice) if not e.is_translation and dice.random() < self.spans else e for e in examples]

    def _span(self, example: Example, dice: random.Random) -> Example:
        """At least LEAST_WORDS words of it, any number up to all, from any place."""
        pieces = example.source
        words = [i for i, piece in enumerate(pieces) if i == 0 or self.starts_word[piece]]
        if len(words) <= LEAST_WORDS:
            return example
        count = dice.randint(LEAST_WORDS, len(words))
        first = dice.randint(0, len(words) - count)
        part = pieces[words[first] : [*words, len(pieces)][first + count]]
        return replace(example, source=part, target=part)

    def epoch(self, examples: Sequence[Example], number: int) -> list[list[int]]:
        """The numbers of the examples of each batch. Every example comes once, short sentences by their share."""
        dice = random.Random(f"{self.seed} {number}")
        taken = [i for i, e in enumerate(examples) if self._is_long(e) or dice.random() < self.short_share]
        dice.shuffle(taken)
        # Stable: rows of one length stay in their random order, and so the batches differ from epoch to epoch.
        taken.sort(
            key=lambda i: (
                examples[i].is_translation,
                len(examples[i].source),
                _target_bin(examples[i]),
                examples[i].taught,
            )
        )
        batches = list(_cut(examples, taken, self.tokens))
        dice.shuffle(batches)
        return batches

    def _is_long(self, example: Example) -> bool:
        return example.is_translation or len(example.source) >= self.short_pieces

    def batches(self, examples: Sequence[Example], start: int = 0) -> Iterator[PieceBatch]:
        """Epoch after epoch, without end, from batch `start` on; each is laid out while the one before it is read."""
        number = 0
        with ThreadPoolExecutor(1) as beside:
            coming = beside.submit(self._laid_out, examples, number)
            while True:
                taken, epoch = coming.result()
                number += 1
                coming = beside.submit(self._laid_out, examples, number)
                for batch in epoch[start:]:
                    yield collate([taken[i] for i in batch])
                start = max(0, start - len(epoch))

    def _laid_out(self, examples: Sequence[Example], number: int) -> tuple[Sequence[Example], list[list[int]]]:
        taken = self.with_spans(examples, number)
        return taken, self.epoch(taken, number)


def _target_bin(example: Example) -> int:
    return len(example.target) if example.is_translation else 0


def _cut(examples: Sequence[Example], order: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Neighbours together, up to the budget; sentences never with another length, nor with translations."""
    batch: list[int] = []
    longest = 0
    for i in order:
        example = examples[i]
        if batch:
            first = examples[batch[0]]
            wider = max(longest, len(example.target) + AROUND)
            alike = example.is_translation == first.is_translation and (
                example.is_translation or (len(example.source), example.taught) == (len(first.source), first.taught)
            )
            if not alike or wider * (len(batch) + 1) > tokens:
                yield batch
                batch, longest = [], 0
        batch.append(i)
        longest = max(longest, len(example.target) + AROUND)
    if batch:
        yield batch


class TrainingBatches:
    """What Lightning iterates over: one endless epoch, from the step where training stands when it begins."""

    def __init__(self, examples: Sequence[Example], order: Order, trained: Callable[[], int]) -> None:
        self.examples, self.order, self.trained = examples, order, trained

    def __iter__(self) -> Iterator[PieceBatch]:
        return self.order.batches(self.examples, self.trained())


class ValidationBatches:
    """The same batches every time, each sentence once."""

    def __init__(self, examples: Sequence[Example], tokens: int) -> None:
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].source))
        self.batches = [collate([examples[i] for i in batch]) for batch in _cut(examples, order, tokens)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[PieceBatch]:
        return iter(self.batches)
