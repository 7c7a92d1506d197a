"""What a plan is made of: groups of bundles, the rows of a step, each rank's share of it, where training stands.

Shapes.  R rows of a group
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from lcm.data.packing import SPAN, PackedRows


@dataclass(frozen=True)
class Position:
    """How much has been trained: `row` rows of data epoch `epoch`, by all ranks together.

    group, group_row: a group of shards that ends after `row` at the earliest, and the number of its first row. They
    only spare the counting of the groups before it; (0, 0) is always right.
    """

    epoch: int = 0
    row: int = 0
    group: int = 0
    group_row: int = 0


class Row(NamedTuple):
    """One row: its number in the epoch, its spans (lcm.data.packing.SPAN), how many targets they hold.

    Numbers say which row it is, not when it is trained. group: that it is one of.
    """

    epoch: int
    number: int
    group: int
    spans: Shaped[np.ndarray, " Q"]
    targets: int


@dataclass(frozen=True)
class Share:
    """What one rank trains in one micro-batch.

    targets: those of the whole step, over all ranks and micro-batches; or of this rank's micro-batches alone, where
    the processes are yet to add theirs up (Step.shares)
    """

    rows: tuple[Row, ...]
    targets: int


@dataclass(frozen=True)
class Group:
    """Bundles of shards whose rows are mixed. Their rows are numbered bundle after bundle, the epoch's from `first` on.

    bounds: the number of each bundle's first row within the group, and that of all rows
    permute: makes the order in which so many rows are trained
    pack: makes the rows of the bundle at this place; asked for a bundle when one of its rows is
    """

    epoch: int
    number: int
    first: int
    bounds: Sequence[int]
    permute: Callable[[int], Int[np.ndarray, " R"]]
    pack: Callable[[int], PackedRows]
    dead: frozenset[int] = frozenset()
    """Places of bundles of which some shard is not to be had."""
    _packed: dict[int, PackedRows] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.bounds[-1]

    @cached_property
    def order(self) -> Int[np.ndarray, " R"]:
        """The numbers of the rows, within the group, one trained after the other."""
        return self.permute(len(self))

    def rows(self, numbers: Int[np.ndarray, " r"]) -> Iterator[Row]:
        """The rows with these numbers, within the group, in this order."""
        for number in numbers.tolist():
            place = bisect_right(self.bounds, number) - 1
            spans, targets = self._at(place).row(number - self.bounds[place])
            yield Row(self.epoch, self.first + number, self.number, spans, targets)

    def _at(self, place: int) -> PackedRows:
        if place not in self._packed:
            self._packed[place] = self.pack(place)
        return self._packed[place]


@dataclass(frozen=True)
class Part:
    """The rows of one group that are trained from place `begin` of its order to before place `end`."""

    group: Group
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin

    def split(self, count: int) -> tuple["Part", "Part"]:
        """The first `count` rows, and the others."""
        return replace(self, end=self.begin + count), replace(self, begin=self.begin + count)

    @property
    def numbers(self) -> Int[np.ndarray, " n"]:
        """Of the rows, in the order in which they are trained."""
        return self.group.order[self.begin : self.end]

    @cached_property
    def sorted(self) -> Int[np.ndarray, " n"]:
        """The same, the rows of a bundle side by side. Of a whole group it takes no order to know them."""
        return np.arange(self.end) if len(self) == len(self.group) else np.sort(self.numbers)

    @property
    def is_empty(self) -> bool:
        """Whether no row holds anything: only where shards are left out."""
        dead = self.group.dead
        if not dead:
            return not len(self)
        places = np.unique(np.searchsorted(self.group.bounds, self.sorted, side="right") - 1)
        return dead.issuperset(places.tolist()) and not any(len(row.spans) for row in self.group.rows(self.sorted))

    @property
    def after(self) -> Position:
        """Where training stands once these rows and all before them are trained."""
        group = self.group
        return Position(group.epoch, group.first + self.end, group.number, group.first)


@dataclass(frozen=True)
class Step:
    """The rows of one optimizer step, and empty ones up to `size`.

    Where ranks add up their targets themselves, each makes its own rows alone, and opens only the shards that they
    come from.
    """

    parts: tuple[Part, ...]
    size: int

    @property
    def rows(self) -> tuple[Row, ...]:
        """All of them, in the order of the plan."""
        return (*(row for part in self.parts for row in part.group.rows(part.numbers)), *self._empty(self._missing))

    @property
    def targets(self) -> int:
        """Over all ranks and micro-batches."""
        return sum(row.targets for row in self.rows)

    @property
    def after(self) -> Position:
        """Where training stands after it. A step with empty rows is the last of its epoch."""
        last = self.parts[-1]
        return Position(last.group.epoch + 1) if self._missing else last.after

    @property
    def is_empty(self) -> bool:
        """Whether no row holds anything."""
        return all(part.is_empty for part in self.parts)

    def shares(self, rank: int, world_size: int, micro_batches: int, *, targets_of_all: bool = True) -> list[Share]:
        """The rank's rows in equal micro-batches: neighbours, so that they come from as few shards as can be.

        targets_of_all: count the targets of all ranks here, for which all of their rows have to be packed
        """
        mine = self._block(rank * self.size // world_size, (rank + 1) * self.size // world_size)
        size = self.size // (world_size * micro_batches)
        assert size * world_size * micro_batches == self.size, "a step's rows are dealt evenly"
        targets = self.targets if targets_of_all and world_size > 1 else sum(row.targets for row in mine)
        return [Share(mine[i : i + size], targets) for i in range(0, len(mine), size)]

    @property
    def _missing(self) -> int:
        return self.size - sum(map(len, self.parts))

    def _block(self, begin: int, end: int) -> tuple[Row, ...]:
        """The rows from `begin` to before `end`, sorted by bundle, the empty ones last."""
        rows: list[Row] = []
        for part in self.parts:
            if begin < len(part) and end > 0:
                rows += part.group.rows(part.sorted[max(begin, 0) : end])
            begin, end = begin - len(part), end - len(part)
        return (*rows, *self._empty(end, max(begin, 0)))

    def _empty(self, end: int, begin: int = 0) -> Iterator[Row]:
        """Of the rows that fill up the step those from `begin` to before `end`."""
        last = self.parts[-1].group
        for number in range(begin, end):
            yield Row(last.epoch, last.first + len(last) + number, last.number, np.empty(0, SPAN), 0)


def in_steps(parts: Iterable[Part], count: int) -> Iterator[tuple[Part, ...]]:
    """The same rows, `count` at a time; the last ones are fewer."""
    taken: list[Part] = []
    missing = count
    for part in parts:
        while len(part) >= missing:
            first, part = part.split(missing)
            yield (*taken, first)
            taken, missing = [], count
        if len(part):
            taken.append(part)
            missing -= len(part)
    if taken:
        yield tuple(taken)
