"""The order of training: which documents make a row, and which rows make a step. No vector is read here.

    order = RowOrder(shards, slots=128, group=16, seed=1, predicts_first=False)
    for step in order.steps(Position(epoch=0, row=4096), rows=512):
        mine = order.rows(step.epoch, step.share(rank=3, world_size=8))

    shard     a file of documents
    bundle    a shard, or several small ones: its documents are permuted, cut to `slots` concepts, and packed into rows
    group     several bundles, of at most `group` shards together: their rows are permuted
    row       `slots` concepts, made of spans; an epoch numbers its rows bundle after bundle
    step      the next rows of the permuted order, as an array of their numbers
    position  the epoch, and how many of its rows are trained

The order is a function of (seed, epoch) and the data. The numbers of ranks, workers and micro-batches only decide how
many rows a step takes and who reads them; they may change at any step. Each rank computes the order by itself: once
the rows of every bundle are counted, it reads the indexes of those bundles alone that its own rows come from.

Shapes.  R rows · N documents of a bundle · U bundles · Q spans
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from lcm.data.packing import SPAN, PackedRows, Row, pack, row_count
from lcm.data.shards import Shard

VERSION = 3
"""Incremented whenever the same data, settings and seed make other rows: a resumed run then begins the next epoch."""
SHARDS, DOCUMENTS, ROWS, BUNDLES = range(4)
"""Kinds of permutation. Each draws from a random stream of its own."""
BUNDLE_ROWS = 128
"""Rows of a bundle to aim for. In a small bundle the one partly empty row is a noticeable waste."""


@dataclass(frozen=True)
class Position:
    """The state of training: all ranks together have trained `row` rows of data epoch `epoch`."""

    epoch: int = 0
    row: int = 0


@dataclass(frozen=True)
class Step:
    """The rows of one optimizer step, over all ranks and micro-batches.

    rows:   their numbers in ascending order; a number past the epoch's last row stands for an empty row
    groups: the groups that they come from
    after:  the position once the step is trained
    parts:  of a mixture: sets by number, each with a step of its own rows
    """

    epoch: int
    rows: Int[np.ndarray, " R"]
    groups: range
    after: Position
    parts: tuple[tuple[int, "Step"], ...] = ()

    def share(self, rank: int, world_size: int) -> Int[np.ndarray, " r"]:
        """The rows of one rank: neighbours, which come from few shards."""
        each, remainder = divmod(len(self.rows), world_size)
        assert not remainder, "every rank gets as many rows"
        return self.rows[rank * each : (rank + 1) * each]


class _Epoch(NamedTuple):
    """An epoch's bundles in their order, and the first row of each and of each group; last, the number of rows."""

    bundles: list[int]
    rows: Int[np.ndarray, " _"]
    groups: list[int]


class RowOrder:
    """Every document exactly once an epoch, in an order that every rank computes by itself.

    Bundles are of the same shards in every epoch; their order, and that of the documents in each, changes.
    """

    def __init__(self, shards: Sequence[Shard], *, slots: int, group: int, seed: int, predicts_first: bool) -> None:
        """shards: each with a document at least. predicts_first: the first concept of a document counts as a target."""
        concepts = sum(shard.record.concepts for shard in shards)
        assert concepts, "there is nothing to order"
        self.shards, self.slots, self.group = shards, slots, group
        self.seed, self.predicts_first = seed, predicts_first
        self._bundles_per_group = group // min(group, -(-BUNDLE_ROWS * slots * len(shards) // concepts))
        self._shards_per_bundle = group // self._bundles_per_group
        self.bundles = -(-len(shards) // self._shards_per_bundle)
        self.groups = -(-self.bundles // self._bundles_per_group)
        """The numbers of bundles, and of groups in an epoch."""
        self._mixed = self._permutation(len(shards), 0, BUNDLES, 0)
        # Enough for a step of two epochs, or of two groups.
        self._turns = lru_cache(2)(lambda epoch: self._permutation(self.bundles, epoch, SHARDS, 0).tolist())
        self._epoch = lru_cache(2)(self._number_rows)
        self._shuffled = lru_cache(2)(lambda epoch, group, rows: self._permutation(rows, epoch, ROWS, group))
        self._packed = lru_cache(2 * self._bundles_per_group)(self._pack)

    @property
    def fingerprint(self) -> int:
        """A hash of everything that the order depends on: a position holds in an order of the same fingerprint only."""
        settings = [VERSION, self.slots, self.group, self.seed]
        shards = [(s.record.name, s.record.documents, s.record.concepts) for s in self.shards]
        return int(hashlib.sha256(repr((settings, shards)).encode()).hexdigest()[:15], 16)

    def shards_of(self, epoch: int, group: int) -> list[int]:
        first = group * self._bundles_per_group
        bundles = self._turns(epoch)[first : first + self._bundles_per_group]
        return np.concatenate([self._members(bundle) for bundle in bundles]).tolist()

    def _members(self, bundle: int) -> Int[np.ndarray, " n"]:
        return self._mixed[bundle * self._shards_per_bundle : (bundle + 1) * self._shards_per_bundle]

    @cached_property
    def rows_in(self) -> Int[np.ndarray, " U"]:
        """The number of rows of each bundle, the same in every epoch. Ranks may count a part each, and assign it."""
        return self.count(range(self.bundles))

    def count(self, bundles: Sequence[int]) -> Int[np.ndarray, " u"]:
        """The number of rows of each of these bundles, from the lengths of their documents."""
        return np.array([row_count(self._index(bundle)[0], self.slots) for bundle in bundles], dtype=np.int64)

    def __len__(self) -> int:
        return self._epoch(0).groups[-1]

    def _number_rows(self, epoch: int) -> _Epoch:
        bundles = self._turns(epoch)
        rows = np.append(0, self.rows_in[bundles].cumsum())
        return _Epoch(bundles, rows, [*rows[: -1 : self._bundles_per_group].tolist(), int(rows[-1])])

    def next_epoch(self, position: Position) -> int:
        return position.epoch + 1

    def steps(self, start: Position, rows: int) -> Iterator[Step]:
        """Steps of `rows` rows without end, epoch after epoch. An epoch's last step is filled up with empty rows."""
        while True:
            if start.row >= len(self):
                start = Position(start.epoch + 1)
            step = self.step(start, rows, multiple=rows)
            yield step
            start = step.after

    def step(self, start: Position, rows: int, multiple: int) -> Step:
        """The next `rows` rows of an epoch, or all that are left; with empty rows up to a multiple of `multiple`."""
        bounds = self._epoch(start.epoch).groups
        total, begin, end = bounds[-1], start.row, min(start.row + rows, bounds[-1])
        groups = range(bisect_right(bounds, begin) - 1, bisect_left(bounds, end))
        numbers = []
        for group in groups:
            lower, upper = bounds[group], bounds[group + 1]
            if begin <= lower and upper <= end:  # the whole group: no permutation is needed
                numbers.append(np.arange(lower, upper))
            else:
                order = self._shuffled(start.epoch, group, upper - lower)
                numbers.append(lower + np.sort(order[max(begin - lower, 0) : end - lower]))
        missing = -(end - begin) % multiple
        if missing:
            numbers.append(np.arange(total, total + missing))
        after = Position(start.epoch + 1) if missing else Position(start.epoch, end)
        return Step(start.epoch, np.concatenate(numbers), groups, after)

    def rows(self, epoch: int, numbers: Int[np.ndarray, " R"], dead: Set[int] = frozenset()) -> Iterator[Row]:
        """The rows with these numbers, in this order. The slots of documents in `dead` shards are empty.

        Nothing else moves, and no row changes its number: a position means the same with and without these shards.
        """
        bundles, bounds, _ = self._epoch(epoch)
        places = bounds.searchsorted(numbers, side="right") - 1
        within = numbers - bounds[places]
        for number, place, row in zip(numbers.tolist(), places.tolist(), within.tolist(), strict=True):
            if place == len(bundles):
                yield Row(epoch, number, np.empty(0, SPAN), 0)
                continue
            bundle = bundles[place]
            lost = frozenset(dead & set(self._members(bundle).tolist())) if dead else frozenset()
            yield Row(epoch, number, *self._packed(epoch, bundle, lost).row(row))

    def _pack(self, epoch: int, bundle: int, dead: frozenset[int]) -> PackedRows:
        """The rows of a bundle. Its indexes are not kept."""
        index, shard = self._index(bundle)
        order = self._permutation(len(index), epoch, DOCUMENTS, bundle)
        packed = pack(index.take(order, axis=0), shard[order], self.slots, self.predicts_first)
        assert len(packed) == self.rows_in[bundle], "every rank counts the same rows"
        return packed.without(dead) if dead else packed

    def _index(self, bundle: int) -> tuple[Int[np.ndarray, "N 3"], Int[np.ndarray, " N"]]:
        """The index of a bundle's documents, and the shard of each."""
        members = self._members(bundle)
        indexes = [self.shards[member].load() for member in members]
        return np.concatenate(indexes), np.repeat(members, [len(index) for index in indexes])

    def _permutation(self, count: int, epoch: int, what: int, number: int) -> Int[np.ndarray, " n"]:
        return permutation(count, self.seed, (epoch, what, number))


def permutation(count: int, seed: int, key: tuple[int, int, int]) -> Int[np.ndarray, " n"]:
    """A permutation of `count` things that is a function of the seed and the key, which is (epoch, kind, number).

    It sorts raw bits, because numpy's own `permutation` may change between versions: 32 bits in two halves, which is
    five times faster than at once. Ties stay in order.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)).random_raw(count)
    low, high = bits.astype(np.uint16), (bits >> np.uint64(16)).astype(np.uint16)
    order = np.argsort(low, kind="stable")
    return order[np.argsort(high[order], kind="stable")]
