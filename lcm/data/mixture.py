"""A mixture of data sets: which set each row comes from, by weights that hold exactly over every 1,000 rows.

    mixture = Mixture([first, second], weights=[3, 1], seed=1)
    for step in mixture.steps(Position(row=4096), rows=512):
        mine = mixture.rows(step.epoch, step.share(rank=3, world_size=8))

Every thousand rows of the stream have the same number of each set, in an order of their own. So the number of rows
trained says how many rows of each set are, and each set's own epoch and place in it: a position is one number. A set
begins its next epoch when its rows are used up, whatever the others do.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence, Set
from functools import cached_property

import numpy as np
from jaxtyping import Int

from lcm.data.order import Position, RowOrder, Step, permutation
from lcm.data.packing import SPAN, Row
from lcm.data.shards import Shard
from lcm.errors import UserError

THOUSAND = 1000
"""Rows over which the weights hold exactly."""
MIXING = 4
"""A kind of permutation beside those of lcm.data.order."""


class Mixture:
    """Rows of several orders, one a set, to be read as those of one order.

    Its shards are those of all sets in turn. A row's number is its place in its set's epoch, after the rows of the sets
    before it and of the epochs before its own; the last number of an epoch of all sets stands for an empty row.
    `Position.row` counts rows of the stream, and `Position.epoch` the epochs that every set has skipped.
    """

    def __init__(self, orders: Sequence[RowOrder], weights: Sequence[float], names: Sequence[str], seed: int) -> None:
        """names: of the sets, for messages. Raises UserError for a set that gets less than one row in a thousand."""
        self.orders, self.seed, self.slots = orders, seed, orders[0].slots
        self.shards: list[Shard] = [shard for order in orders for shard in order.shards]
        self.first_shard = np.cumsum([0, *(len(order.shards) for order in orders)]).tolist()
        self.rows_each = rows_in_thousand(weights, names)
        self._sets = np.repeat(np.arange(len(orders)), self.rows_each)

    @cached_property
    def first_row(self) -> Int[np.ndarray, " _"]:
        """The number of each set's first row, of the empty row, and of all numbers of an epoch of all sets."""
        return np.cumsum([0, *map(len, self.orders), 1])

    @property
    def fingerprint(self) -> int:
        """A hash of everything that the order depends on, as that of a RowOrder."""
        described = [order.fingerprint for order in self.orders], self.rows_each.tolist(), self.seed
        return int(hashlib.sha256(repr(described).encode()).hexdigest()[:15], 16)

    def used(self, rows: int) -> Int[np.ndarray, " S"]:
        """The rows of each set among the first `rows` rows of the stream."""
        whole, rest = divmod(rows, THOUSAND)
        order = permutation(THOUSAND, self.seed, (0, MIXING, whole))
        return whole * self.rows_each + np.bincount(self._sets[order[:rest]], minlength=len(self.orders))

    @property
    def once(self) -> int:
        """Rows of the stream before any set begins its second epoch."""
        lengths = np.array([len(order) for order in self.orders])
        most = THOUSAND * (1 + int((lengths // self.rows_each).min()))
        return bisect_right(range(1, most + 1), 0, key=lambda rows: int((self.used(rows) - lengths).max()))

    def epochs(self, position: Position) -> list[float]:
        """Epochs of each set that are trained."""
        pairs = zip(self.used(position.row).tolist(), self.orders, strict=True)
        return [position.epoch + rows / len(order) for rows, order in pairs]

    def next_epoch(self, position: Position) -> int:
        """The first epoch that no set has begun."""
        return math.ceil(max(self.epochs(position)))

    def steps(self, start: Position, rows: int) -> Iterator[Step]:
        """Steps of `rows` rows without end."""
        while True:
            step = self.step(start, rows)
            yield step
            start = step.after

    def step(self, start: Position, rows: int, multiple: int = 1) -> Step:
        """The next `rows` rows of the stream, set after set; with empty rows up to a multiple of `multiple`."""
        parts, numbers = list[tuple[int, Step]](), []
        begins, ends = self.used(start.row).tolist(), self.used(start.row + rows).tolist()
        for number, (order, begin, end) in enumerate(zip(self.orders, begins, ends, strict=True)):
            while begin < end:
                epoch, row = divmod(begin, len(order))
                part = order.step(Position(start.epoch + epoch, row), end - begin, multiple=1)
                parts.append((number, part))
                numbers.append(epoch * self.first_row[-1] + self.first_row[number] + part.rows)
                begin += len(part.rows)
        numbers.append(np.full(-rows % multiple, self.first_row[-2]))
        after = Position(start.epoch, start.row + rows)
        return Step(start.epoch, np.concatenate(numbers), range(0), after, tuple(parts))

    def rows(self, epoch: int, numbers: Int[np.ndarray, " R"], dead: Set[int] = frozenset()) -> Iterator[Row]:
        """The rows with these numbers, in this order. The slots of documents in `dead` shards are empty."""
        epochs, places = np.divmod(numbers, self.first_row[-1])
        sets = self.first_row.searchsorted(places, side="right") - 1
        runs = np.flatnonzero(np.diff(sets) | np.diff(epochs)) + 1  # rows of one set and epoch are read together
        for some in np.split(np.arange(len(numbers)), runs) if len(numbers) else ():
            number, past = int(sets[some[0]]), int(epochs[some[0]])
            if number == len(self.orders):
                yield from [Row(epoch, int(self.first_row[-2]), np.empty(0, SPAN), 0)] * len(some)
                continue
            order, first_row, first = self.orders[number], int(self.first_row[number]), self.first_shard[number]
            lost = frozenset(shard - first for shard in dead if 0 <= shard - first < len(order.shards))
            for row in order.rows(epoch + past, places[some] - first_row, lost):
                spans = row.spans.copy()
                spans["shard"] += first
                yield Row(row.epoch, first_row + row.number, spans, row.targets)


def rows_in_thousand(weights: Sequence[float], names: Sequence[str]) -> Int[np.ndarray, " S"]:
    """The rows of each set in every thousand: its share, rounded so that they add up (largest remainders first)."""
    shares = THOUSAND * np.array(weights, dtype=np.float64) / sum(weights)
    rows = np.floor(shares).astype(np.int64)
    rows[np.argsort(rows - shares, kind="stable")[: THOUSAND - rows.sum()]] += 1
    for name, count, weight in zip(names, rows.tolist(), weights, strict=True):
        if not count:
            raise UserError(
                f"data.mix: weight={weight:g} of {name} is less than a row in {THOUSAND:,}; expected at least "
                f"{sum(weights) / THOUSAND:g}, a thousandth of all weights, or leave the set out"
            )
    return rows
