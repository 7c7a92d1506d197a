"""The order of training: which documents make which row, and which rows make which step; no vector is ever read.

    plan = Plan(shards, slots=128, group=16, seed=1, predicts_first=False)
    for step in plan.steps(Position(epoch=0, row=4096), rows_per_step=512): ...

The order of rows depends on (seed, epoch) and the data alone. How many ranks, workers and micro-batches share a step
only decides where the next step begins, and may change at any step.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Shaped

from lcm.packing import SPAN, PackedGroup, pack

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
class Step:
    """The rows of one optimizer step, in order, and where training stands after it."""

    rows: tuple[Row, ...]
    targets: int
    after: Position

    def shares(self, rank: int, world_size: int, micro_batches: int) -> list[Share]:
        """The rows rank, rank + world_size, …, in equal micro-batches."""
        mine = self.rows[rank::world_size]
        size = len(self.rows) // (world_size * micro_batches)
        assert size * world_size * micro_batches == len(self.rows), "a step's rows are dealt evenly"
        return [Share(mine[i : i + size], self.targets) for i in range(0, len(mine), size)]


class Plan:
    """Every document exactly once an epoch, in an order that any process can compute for itself.

    Shards are permuted and taken `group` at a time. A group's documents are permuted, cut to `slots` concepts and
    packed first-fit (lcm.packing); its rows are permuted again, so that the loosely packed last ones lie anywhere.
    """

    def __init__(
        self,
        shards: Sequence[ShardIndex],
        *,
        slots: int,
        group: int,
        seed: int,
        predicts_first: bool,
        shuffle: bool = True,
    ) -> None:
        assert any(shard.concepts for shard in shards), "a plan needs a document"
        self.shards = shards
        self.slots = slots
        self.group = group
        self.seed = seed
        self.predicts_first = predicts_first
        self.shuffle = shuffle

    @property
    def fingerprint(self) -> int:
        """Of all that the order depends on: a position means nothing in a plan with another fingerprint."""
        settings = [self.slots, self.group, self.seed, self.shuffle]
        shards = [(shard.name, shard.documents, shard.concepts) for shard in self.shards]
        return int(hashlib.sha256(repr((settings, shards)).encode()).hexdigest()[:15], 16)

    def steps(self, start: Position, rows_per_step: int, begin: Begin | None = None) -> Iterator[Step]:
        """Steps without end, epoch after epoch. An epoch's short last step is filled with empty rows.

        A step of which `begin` has left nothing is left out itself: it would only let the optimizer drift.
        """
        while True:
            rows = self.rows(start, begin)
            while taken := tuple(islice(rows, rows_per_step)):
                if any(len(row.spans) for row in taken):
                    yield self._step(taken, rows_per_step)
            start = Position(epoch=start.epoch + 1)

    def first_rows(self, count: int, multiple: int, begin: Begin | None = None) -> Step:
        """The first `count` rows of epoch 0 as a single step, filled up to a multiple of `multiple` rows."""
        rows = tuple(islice(self.rows(Position(), begin), count))
        return self._step(rows, -(-len(rows) // multiple) * multiple)

    def rows(self, start: Position, begin: Begin | None = None) -> Iterator[Row]:
        """The rows from `start` to the end of its epoch."""
        epoch, first = start.epoch, start.group_row
        assert first <= start.row, "the group of a position starts before it"
        for group in range(start.group, self.groups):
            packed = self._packed(epoch, group)
            if begin and (dead := begin(epoch, group, self.members(epoch, group), self._following(epoch, group))):
                packed = packed.without(dead)
            skipped = max(0, start.row - first)
            order = self._order(len(packed), epoch, ROWS, group)[skipped:]
            for number, (spans, targets) in enumerate(packed.rows(order), first + skipped):
                yield Row(epoch, number, group, first, spans, targets)
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
        return pack(index[order], shard[order], self.slots, self.predicts_first)

    def _order(self, count: int, epoch: int, what: int, group: int) -> Int[np.ndarray, " n"]:
        """A permutation that is a function of its key alone.

        Sorted raw bits, because the stream of numpy's own `permutation` may change between versions.
        """
        if not self.shuffle:
            return np.arange(count)
        key = np.random.SeedSequence(self.seed, spawn_key=(epoch, what, group))
        return np.argsort(np.random.PCG64(key).random_raw(count), kind="stable")

    def _step(self, rows: tuple[Row, ...], rows_per_step: int) -> Step:
        last, missing = rows[-1], rows_per_step - len(rows)
        empty = np.empty(0, SPAN)
        filler = [last._replace(number=last.number + i, spans=empty, targets=0) for i in range(1, missing + 1)]
        after = Position(last.epoch + 1) if missing else last.after
        return Step((*rows, *filler), sum(row.targets for row in rows), after)
