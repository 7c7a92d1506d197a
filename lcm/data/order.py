"""The order of training: which documents make which row, and which rows make which step; no vector is ever read.

    plan = Plan(shards, slots=128, group=16, seed=1, predicts_first=False)
    for step in plan.steps(Position(epoch=0, row=4096), rows_per_step=512): ...

The order of rows depends on (seed, epoch) and the data alone. How many ranks, workers and micro-batches share a step
only decides where the next step begins, and may change at any step.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache, partial
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from lcm.data.packing import PackedRows, pack, row_count
from lcm.data.steps import Group, Part, Position, Row, Step, in_steps

ORDER = 3
"""Goes up whenever the same data, settings and seed make other rows: a run then goes on with the next epoch."""

SHARDS, DOCUMENTS, ROWS, BUNDLES = range(4)
"""What is permuted: each kind draws from a stream of its own."""

BUNDLE_ROWS = 128
"""So many rows are packed together, on average, where a group has as many: of few, the one that is not full tells."""


@runtime_checkable
class ShardIndex(Protocol):
    """What the plan asks of a shard: the manifest's numbers, and its index when its rows are wanted."""

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


class Plan:
    """Every document exactly once an epoch, in an order that any process can compute for itself.

    A bundle is a shard, or a few that are small: its documents are permuted, cut to `slots` concepts and packed, the
    longest first. Bundles are permuted and taken so many at a time that they are at most `group` shards;
    the rows of such a group are permuted.

    rows_in: rows of each bundle, -1 where they are not counted yet. They are the same in every epoch.
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
        concepts = sum(shard.concepts for shard in shards)
        assert concepts, "a plan needs a document"
        self.shards = shards
        self.slots = slots
        self.group = group
        self.seed = seed
        self.predicts_first = predicts_first
        self._per_group = group // min(group, -(-BUNDLE_ROWS * slots * len(shards) // concepts))
        self._size = group // self._per_group
        self._mixed = self._order(len(shards), 0, BUNDLES, 0)
        self.rows_in = np.full(-(-len(shards) // self._size), -1, dtype=np.int32)
        self._turns = lru_cache(2)(lambda epoch: self._order(len(self.rows_in), epoch, SHARDS, 0))

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
            for parts in in_steps(self._parts(start, begin), rows_per_step):
                if not (step := Step(parts, rows_per_step)).is_empty:
                    yield step
            start = Position(epoch=start.epoch + 1)

    def first_rows(self, count: int, multiple: int, begin: Begin | None = None) -> Step:
        """The first `count` rows of epoch 0 as a single step, filled up to a multiple of `multiple` rows."""
        parts = next(in_steps(self._parts(Position(), begin), count))
        return Step(parts, -(-sum(map(len, parts)) // multiple) * multiple)

    def rows(self, start: Position, begin: Begin | None = None) -> Iterator[Row]:
        """The rows from `start` to the end of its epoch, in the order in which they are trained."""
        for part in self._parts(start, begin):
            yield from part.group.rows(part.numbers)

    def count(self, bundles: Int[np.ndarray, " u"]) -> None:
        """Fill in `rows_in` for these bundles, of which only the lengths of documents are read."""
        for bundle in bundles[self.rows_in[bundles] < 0].tolist():
            index, _ = self._index(bundle)
            self.rows_in[bundle] = row_count(index, self.slots)

    def _parts(self, start: Position, begin: Begin | None) -> Iterator[Part]:
        """`rows`, a group at a time."""
        epoch, first = start.epoch, start.group_row
        assert first <= start.row, "the group of a position starts before it"
        for number in range(start.group, self.groups):
            dead: Collection[int] = ()
            if begin:
                dead = begin(epoch, number, self.members(epoch, number), self._following(epoch, number))
            group = self._group(epoch, number, first, dead)
            yield Part(group, min(max(0, start.row - first), len(group)), len(group))
            first += len(group)

    @property
    def groups(self) -> int:
        """Of an epoch."""
        return -(-len(self.rows_in) // self._per_group)

    def members(self, epoch: int, group: int) -> list[int]:
        """The shards of a group, by their numbers."""
        bundles = self._bundles_of(epoch, group).tolist()
        return np.concatenate([self._shards_of(bundle) for bundle in bundles]).tolist()

    def _following(self, epoch: int, group: int) -> list[int]:
        return self.members(epoch, group + 1) if group + 1 < self.groups else self.members(epoch + 1, 0)

    def _bundles_of(self, epoch: int, group: int) -> Int[np.ndarray, " u"]:
        return self._turns(epoch)[group * self._per_group : (group + 1) * self._per_group]

    def _shards_of(self, bundle: int) -> Int[np.ndarray, " n"]:
        return self._mixed[bundle * self._size : (bundle + 1) * self._size]

    def _group(self, epoch: int, number: int, first: int, dead: Collection[int]) -> Group:
        bundles = self._bundles_of(epoch, number)
        self.count(bundles)
        bounds = [0, *self.rows_in[bundles].cumsum().tolist()]
        permute = partial(self._order, epoch=epoch, what=ROWS, group=number)
        make = partial(self._packed, epoch, bundles.tolist(), dead)
        lacking = {
            place
            for place, b in enumerate(bundles.tolist())
            if dead and not set(dead).isdisjoint(self._shards_of(b).tolist())
        }
        return Group(epoch, number, first, bounds, permute, make, frozenset(lacking))

    def _packed(self, epoch: int, bundles: Sequence[int], dead: Collection[int], place: int) -> PackedRows:
        """Only here and in `count` are indexes opened, and dropped once the bundle is packed."""
        bundle = bundles[place]
        index, shard = self._index(bundle)
        order = self._order(len(index), epoch, DOCUMENTS, bundle)
        packed = pack(index.take(order, axis=0), shard[order], self.slots, self.predicts_first)
        assert len(packed) == self.rows_in[bundle], "every process counts the same rows"
        return packed.without(dead) if dead else packed

    def _index(self, bundle: int) -> tuple[Int[np.ndarray, "N 3"], Int[np.ndarray, " N"]]:
        """Of the documents of a bundle, and the shard of each."""
        members = self._shards_of(bundle)
        indexes = [self.shards[member].load() for member in members]
        return np.concatenate(indexes), np.repeat(members, [len(index) for index in indexes])

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
