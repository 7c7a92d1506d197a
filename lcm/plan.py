"""The order of training: which documents make which row, and which rows make which step; no vector is ever read.

    plan = Plan(shards, slots=128, group=16, seed=1, predicts_first=False)
    for step in plan.steps(Position(epoch=0, row=4096), rows_per_step=512): ...

The order of rows depends on (seed, epoch) and the data alone. How many ranks, workers and micro-batches share a step
only decides where the next step begins, and may change at any step.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Shaped

from lcm.packing import SPAN, PackedGroup, pack

ORDER = 2
"""Goes up whenever the same data, settings and seed make other rows: a run then goes on with the next epoch."""

SHARDS, DOCUMENTS, ROWS = range(3)
"""What is permuted: each kind draws from a stream of its own."""


@runtime_checkable
class ShardIndex(Protocol):
    """What the plan asks of a shard: the manifest's numbers, and its index when the turn of its group comes."""

    @property
    def name(self) -> str: ...
    @property
    def documents(self) -> int: ...
    @property
    def concepts(self) -> int: ...

    def load(self) -> Int[np.ndarray, "N 3"]:
        """Byte offset of the vectors, number of concepts, and source_length of every document."""
        ...


Begin = Callable[[int, int, Sequence[int], Sequence[int]], Collection[int]]
"""Called when a group's turn comes, with its epoch, its number, its shards, and those of the group that follows it.
Returns which of its shards are not to be had: their documents are left out of the rows."""


@dataclass(frozen=True)
class Position:
    """How much has been trained: `row` rows of data epoch `epoch`, by all ranks together.

    group, group_row: a group of shards that ends after `row` at the earliest, and the number of its first row. They
    only spare the packing of the groups before it; (0, 0) is always right.
    """

    epoch: int = 0
    row: int = 0
    group: int = 0
    group_row: int = 0


class Row(NamedTuple):
    """One row: its number in the epoch, its spans (lcm.packing.SPAN), how many targets they hold.

    group, group_row: the group of shards it was packed with, and the number of that group's first row.
    """

    epoch: int
    number: int
    group: int
    group_row: int
    spans: Shaped[np.ndarray, " Q"]
    targets: int

    @property
    def after(self) -> Position:
        """Where training stands once this row and all before it are trained."""
        return Position(self.epoch, self.number + 1, self.group, self.group_row)


@dataclass(frozen=True)
class Share:
    """What one rank trains in one micro-batch. targets: those of the whole step, over all ranks and micro-batches."""

    rows: tuple[Row, ...]
    targets: int


@dataclass(frozen=True)
class Part:
    """Rows of one group that follow one another: `order` are their numbers within `packed`, `first` in the epoch."""

    epoch: int
    group: int
    group_row: int
    packed: PackedGroup
    order: Int[np.ndarray, " n"]
    first: int

    def __len__(self) -> int:
        return len(self.order)

    def split(self, count: int) -> tuple["Part", "Part"]:
        """The first `count` rows, and the others."""
        others = replace(self, order=self.order[count:], first=self.first + count)
        return replace(self, order=self.order[:count]), others

    def rows(self, which: slice = slice(None)) -> Iterator[Row]:
        made = self.packed.rows(self.order[which])
        for number, (spans, targets) in zip(range(len(self))[which], made, strict=True):
            yield Row(self.epoch, self.first + number, self.group, self.group_row, spans, targets)

    @property
    def after(self) -> Position:
        """Where training stands once these rows and all before them are trained."""
        return Position(self.epoch, self.first + len(self), self.group, self.group_row)


@dataclass(frozen=True)
class Step:
    """The rows of one optimizer step, in order, and empty ones up to `size`.

    Of other ranks' rows only the targets are ever counted, for all at once: to make each of them costs more than that.
    """

    parts: tuple[Part, ...]
    size: int

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """All of them."""
        return self._every(0, 1)

    @cached_property
    def targets(self) -> int:
        """Over all ranks and micro-batches."""
        return sum(int(part.packed.targets[part.order].sum()) for part in self.parts)

    @property
    def after(self) -> Position:
        """Where training stands after it. A step with empty rows is the last of its epoch."""
        last = self.parts[-1]
        return last.after if sum(map(len, self.parts)) == self.size else Position(last.epoch + 1)

    @property
    def is_empty(self) -> bool:
        """Whether no row holds anything."""
        return not any(part.packed.filled[part.order].any() for part in self.parts)

    def shares(self, rank: int, world_size: int, micro_batches: int) -> list[Share]:
        """The rows rank, rank + world_size, …, in equal micro-batches."""
        mine = self._every(rank, world_size)
        size = self.size // (world_size * micro_batches)
        assert size * world_size * micro_batches == self.size, "a step's rows are dealt evenly"
        return [Share(mine[i : i + size], self.targets) for i in range(0, len(mine), size)]

    def _every(self, start: int, step: int) -> tuple[Row, ...]:
        """The rows start, start + step, …"""
        rows: list[Row] = []
        for part in self.parts:
            rows += part.rows(slice(start, None, step))
            start = start - len(part) if start >= len(part) else (start - len(part)) % step
        last = self.parts[-1]
        empty = Row(last.epoch, 0, last.group, last.group_row, np.empty(0, SPAN), 0)
        missing = self.size - sum(map(len, self.parts))
        return (*rows, *(empty._replace(number=last.first + len(last) + i) for i in range(start, missing, step)))


def _cut(parts: Iterable[Part], count: int) -> Iterator[tuple[Part, ...]]:
    """The same rows, `count` at a time; the last ones are fewer."""
    taken: list[Part] = []
    for part in parts:
        while len(part) >= (missing := count - sum(map(len, taken))):
            first, part = part.split(missing)
            yield (*taken, first)
            taken = []
        if len(part):
            taken.append(part)
    if taken:
        yield tuple(taken)


class Plan:
    """Every document exactly once an epoch, in an order that any process can compute for itself.

    Shards are permuted and taken `group` at a time. A group's documents are permuted, cut to `slots` concepts and
    packed first-fit, the longest first (lcm.packing); its rows are permuted again.
    """

    def __init__(
        self,
        shards: Sequence[ShardIndex],
        *,
        slots: int,
        group: int,
        seed: int,
        predicts_first: bool,
    ) -> None:
        assert any(shard.concepts for shard in shards), "a plan needs a document"
        self.shards = shards
        self.slots = slots
        self.group = group
        self.seed = seed
        self.predicts_first = predicts_first

    @property
    def fingerprint(self) -> int:
        """Of all that the order depends on: a position means nothing in a plan with another fingerprint."""
        settings = [ORDER, self.slots, self.group, self.seed]
        shards = [(shard.name, shard.documents, shard.concepts) for shard in self.shards]
        return int(hashlib.sha256(repr((settings, shards)).encode()).hexdigest()[:15], 16)

    def steps(self, start: Position, rows_per_step: int, begin: Begin | None = None) -> Iterator[Step]:
        """Steps without end, epoch after epoch. An epoch's short last step is filled with empty rows.

        A step of which `begin` has left nothing is left out itself: it would only let the optimizer drift.
        """
        while True:
            for parts in _cut(self._parts(start, begin), rows_per_step):
                if not (step := Step(parts, rows_per_step)).is_empty:
                    yield step
            start = Position(epoch=start.epoch + 1)

    def first_rows(self, count: int, multiple: int, begin: Begin | None = None) -> Step:
        """The first `count` rows of epoch 0 as a single step, filled up to a multiple of `multiple` rows."""
        parts = next(_cut(self._parts(Position(), begin), count))
        return Step(parts, -(-sum(map(len, parts)) // multiple) * multiple)

    def rows(self, start: Position, begin: Begin | None = None) -> Iterator[Row]:
        """The rows from `start` to the end of its epoch."""
        for part in self._parts(start, begin):
            yield from part.rows()

    def _parts(self, start: Position, begin: Begin | None) -> Iterator[Part]:
        """`rows`, a group at a time."""
        epoch, first = start.epoch, start.group_row
        assert first <= start.row, "the group of a position starts before it"
        for group in range(start.group, self.groups):
            packed = self._packed(epoch, group)
            if begin and (dead := begin(epoch, group, self.members(epoch, group), self._following(epoch, group))):
                packed = packed.without(dead)
            skipped = max(0, start.row - first)
            order = self._order(len(packed), epoch, ROWS, group)[skipped:]
            yield Part(epoch, group, first, packed, order, first + skipped)
            first += len(packed)

    @property
    def groups(self) -> int:
        """Of an epoch."""
        return -(-len(self.shards) // self.group)

    def members(self, epoch: int, group: int) -> list[int]:
        """The shards of a group, by their numbers."""
        turns = self._order(len(self.shards), epoch, SHARDS, 0)
        return turns[group * self.group : (group + 1) * self.group].tolist()

    def _following(self, epoch: int, group: int) -> list[int]:
        return self.members(epoch, group + 1) if group + 1 < self.groups else self.members(epoch + 1, 0)

    def _packed(self, epoch: int, group: int) -> PackedGroup:
        """Only here are indexes opened, a group at a time, and dropped once the group is packed."""
        members = self.members(epoch, group)
        indexes = [self.shards[member].load() for member in members]
        index, shard = np.concatenate(indexes), np.repeat(members, [len(i) for i in indexes])
        order = self._order(len(index), epoch, DOCUMENTS, group)
        return pack(index.take(order, axis=0), shard[order], self.slots, self.predicts_first)

    def _order(self, count: int, epoch: int, what: int, group: int) -> Int[np.ndarray, " n"]:
        """A permutation that is a function of its key alone.

        Sorted raw bits, because the stream of numpy's own `permutation` may change between versions: 32 of them, by
        halves, which is five times quicker. What is equal in all of them stays in order.
        """
        key = np.random.SeedSequence(self.seed, spawn_key=(epoch, what, group))
        bits = np.random.PCG64(key).random_raw(count)
        low, high = bits.astype(np.uint16), (bits >> np.uint64(16)).astype(np.uint16)
        order = np.argsort(low, kind="stable")
        return order[np.argsort(high[order], kind="stable")]
