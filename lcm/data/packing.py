"""Documents become rows: cut to S concepts, packed side by side, nothing read but lengths.

Shapes.  N documents · P pieces · Q spans · R rows
"""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int, Shaped

from lcm.data.shards import CONCEPTS, SOURCE

SPAN = np.dtype(
    [
        ("shard", np.int32),  # number of the shard in the plan's list
        ("offset", np.int64),  # byte at which the document's vectors start in that shard
        ("first", np.int32),  # first concept of the span, counted within the stored document
        ("count", np.int32),  # concepts
        ("slot", np.int32),  # where in the row the span starts
        ("doc", np.int32),  # number of the document within the row
        ("pos", np.int32),  # place of the first concept inside its document
        ("prompt", np.int32),  # how many of the first concepts are no targets
    ]
)
"""Concepts that lie side by side in a shard and in a row. A piece is one span, or two where a prompt was shortened."""


@dataclass(frozen=True)
class PackedRows:
    """Rows that were packed together: the spans of row r are spans[bounds[r] : bounds[r + 1]].

    span_targets, targets: of each span, and of each row; bounds has one number more than there are rows
    """

    spans: Shaped[np.ndarray, " Q"]
    span_targets: Int[np.ndarray, " Q"]
    bounds: Int[np.ndarray, " _"]

    @cached_property
    def targets(self) -> Int[np.ndarray, " R"]:
        before = np.concatenate([[0], self.span_targets.cumsum(dtype=np.int64)])
        return np.diff(before[self.bounds])

    def without(self, shards: Collection[int]) -> "PackedRows":
        """The same rows, with empty slots for what lies in these shards: nothing else moves, no row changes its number.

        So a position means the same whether or not the shards were there.
        """
        kept = ~np.isin(self.spans["shard"], list(shards))
        before = np.concatenate([[0], kept.cumsum()])
        return PackedRows(self.spans[kept], self.span_targets[kept], before[self.bounds])

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def row(self, number: int) -> tuple[Shaped[np.ndarray, " q"], int]:
        """The spans of a row, and how many targets they hold."""
        return self.spans[self.bounds[number] : self.bounds[number + 1]], int(self.targets[number])


def loses_prompt(index: Int[np.ndarray, "N 3"], slots: int) -> Bool[np.ndarray, " N"]:
    """Which documents are pairs that lose some of their prompt, so that the whole answer fits into a row."""
    concepts, source = index[:, CONCEPTS], index[:, SOURCE]
    answer = concepts - source + 1  # with the concept that announces it
    return (source > 0) & (concepts > slots) & (answer <= slots)


def row_count(index: Int[np.ndarray, "N 3"], slots: int) -> int:
    """How many rows `pack` makes of these documents, whatever their order."""
    one_row = loses_prompt(index, slots)
    concepts = index[~one_row, CONCEPTS]
    how_many = np.bincount(concepts % slots, minlength=slots + 1)
    how_many[slots] = (concepts // slots).sum() + one_row.sum()
    return _fits(how_many.tolist(), slots)[1]


def cut_documents(
    index: Int[np.ndarray, "N 3"], shard: Int[np.ndarray, " N"], slots: int
) -> tuple[Shaped[np.ndarray, " Q"], Int[np.ndarray, " Q"]]:
    """The spans of every document, and the piece that each belongs to; `slot` and `doc` are still to be set.

    A long document is cut into pieces of `slots` concepts, each a document of its own (paper §2.4.1). A long pair
    loses prompt concepts just before the prompt's last one, which says that the answer begins; where the answer
    alone is too long, the pair is cut like any other document.
    """
    offset, concepts, source = index.T
    one_row, answer = loses_prompt(index, slots), concepts - source + 1

    pieces = np.where(one_row, 1, -(-concepts // slots))
    owner = np.repeat(np.arange(len(index)), pieces)
    first = (np.arange(len(owner)) - np.repeat(pieces.cumsum() - pieces, pieces)) * slots

    heads = np.zeros(len(owner), SPAN)
    heads["shard"], heads["offset"], heads["first"] = shard[owner], offset[owner], first
    heads["count"] = np.where(one_row[owner], slots - answer[owner], np.minimum(concepts[owner] - first, slots))
    heads["prompt"] = np.clip(source[owner] - first, 0, heads["count"])

    piece = np.flatnonzero(one_row[owner])
    if not len(piece):
        return heads, np.arange(len(heads))
    tails = heads.take(piece)  # twenty times quicker than heads[piece]
    tails["first"], tails["count"] = source[owner[piece]] - 1, answer[owner[piece]]
    tails["pos"], tails["prompt"] = heads["count"][piece], 1

    spans, piece = np.concatenate([heads, tails]), np.concatenate([np.arange(len(owner)), piece])
    order = np.flatnonzero(spans["count"])
    return spans.take(order), piece[order]


def best_fit(lengths: Int[np.ndarray, " P"], slots: int) -> Int[np.ndarray, " P"]:
    """The row of each piece, taken longest first: where the least room is left that is enough, else a new row. Exact.

    How many rows there are, and which lengths share one, follows from how often each length occurs: no order, and so
    no seed, changes it.
    """
    fits, _ = _fits(np.bincount(lengths).tolist(), slots)
    rows = np.array([row for taken, _ in fits for row in taken], dtype=np.int64)
    takes = np.array([each for taken, each in fits for _ in taken], dtype=np.int64)
    row = np.empty(len(lengths), dtype=np.int64)
    row[_sorted(slots - lengths)] = rows.repeat(takes)
    return row


def _fits(how_many: list[int], slots: int) -> tuple[list[tuple[list[int], int]], int]:
    """(rows, how many pieces each of them takes) for the longest pieces first; and the number of all rows.

    how_many: pieces of each length. Those of equal length are placed at once: rows with equal room are alike, and each
    takes as many as it has room for, since of all that are enough its own room stays the least.
    """
    fits: list[tuple[list[int], int]] = []
    rooms: defaultdict[int, list[int]] = defaultdict(list)  # the rows in which so many slots are free
    some = 0  # bit n is set where rooms[n] holds a row
    opened = 0
    for length in range(len(how_many) - 1, 0, -1):
        left = how_many[length]
        while left:
            enough = some >> length
            room = length + (enough & -enough).bit_length() - 1 if enough else slots
            each = room // length
            count = -(-left // each)
            if not enough:
                rows = list(range(opened, opened + count))
                opened += count
            elif count < len(rooms[room]):
                rooms[room], rows = rooms[room][:-count], rooms[room][-count:]
            else:
                rows = rooms.pop(room)
                some -= 1 << room
            left -= each * len(rows)
            if left < 0:  # the last row takes fewer
                fits.append(([rows.pop()], each + left))
                rooms[room - (each + left) * length].append(fits[-1][0][0])
                some |= 1 << room - (each + left) * length
                left = 0
            if rows:
                fits.append((rows, each))
                rooms[room - each * length] += rows
                some |= 1 << room - each * length
    return fits, opened


def _sorted(values: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The order that sorts them, equals as they were. Small numbers are sorted five times quicker."""
    small = not len(values) or values.max() < 2**16
    return np.argsort(values.astype(np.uint16) if small else values, kind="stable")


def pack(index: Int[np.ndarray, "N 3"], shard: Int[np.ndarray, " N"], slots: int, predicts_first: bool) -> PackedRows:
    """Cut the documents, and pack the pieces into rows of `slots` concepts; equal ones in the order given."""
    spans, piece = cut_documents(index, shard, slots)
    lengths = np.bincount(piece, weights=spans["count"]).astype(np.int64)
    row = best_fit(lengths, slots)[piece]
    order = _sorted(row)  # of two spans that are one piece, and so a row of their own, the first comes first
    spans, row = spans.take(order), row[order]

    bounds = np.append(0, np.bincount(row).cumsum())
    begins = spans["pos"] == 0  # the first span of its piece
    spans["slot"] = _running_total(spans["count"], bounds)
    spans["doc"] = _running_total(begins, bounds) + begins - 1
    targets = spans["count"] - spans["prompt"]
    if not predicts_first:
        targets = targets - (begins & (spans["prompt"] == 0))
    return PackedRows(spans, targets, bounds)


def _running_total(values: Shaped[np.ndarray, " Q"], bounds: Int[np.ndarray, " _"]) -> Int[np.ndarray, " Q"]:
    """The sum of the values before each one, within its row."""
    before = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return before[:-1] - np.repeat(before[bounds[:-1]], np.diff(bounds))
