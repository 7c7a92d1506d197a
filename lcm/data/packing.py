"""Documents become rows: cut to S concepts and packed side by side, from their lengths alone.

Shapes.  N documents · P pieces of documents · Q spans · R rows · S slots of a row
"""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped

from lcm.data.shards import CONCEPTS, SOURCE

SPAN = np.dtype(
    [
        ("shard", np.int32),  # number of the shard in the order's list
        ("offset", np.int64),  # byte at which the document's vectors start in that shard
        ("first", np.int32),  # first concept of the span, counted within the stored document
        ("count", np.int32),  # concepts
        ("slot", np.int32),  # where in the row the span starts
        ("doc", np.int32),  # number of the document within the row
        ("pos", np.int32),  # place of the first concept inside its document
        ("prompt", np.int32),  # how many of the first concepts are no targets
    ]
)
"""Concepts that are neighbors both in a shard and in a row. A piece is one span, or two if its prompt was shortened."""


class Row(NamedTuple):
    """One row: its number in the epoch, its spans, and the number of targets in them."""

    epoch: int
    number: int
    spans: Shaped[np.ndarray, " Q"]
    targets: int


@dataclass(frozen=True)
class PackedRows:
    """The rows of a bundle. Row r has the spans spans[bounds[r] : bounds[r + 1]].

    span_targets: targets in each span
    bounds:       R + 1 numbers
    """

    spans: Shaped[np.ndarray, " Q"]
    span_targets: Int[np.ndarray, " Q"]
    bounds: Int[np.ndarray, " _"]

    @cached_property
    def targets(self) -> Int[np.ndarray, " R"]:
        return np.diff(_before(self.span_targets)[self.bounds])

    def without(self, shards: Collection[int]) -> "PackedRows":
        """The rows with empty slots for the documents of these shards. Nothing else moves, and no row disappears."""
        kept = ~np.isin(self.spans["shard"], list(shards))
        return PackedRows(self.spans[kept], self.span_targets[kept], _before(kept)[self.bounds])

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def row(self, number: int) -> tuple[Shaped[np.ndarray, " q"], int]:
        return self.spans[self.bounds[number] : self.bounds[number + 1]], int(self.targets[number])


def loses_prompt(index: Int[np.ndarray, "N 3"], slots: int) -> Bool[np.ndarray, " N"]:
    """True for pairs that are too long for a row, but whose answer is not: they lose a part of the prompt."""
    concepts, source = index[:, CONCEPTS], index[:, SOURCE]
    answer = concepts - source + 1  # with the prompt's last concept, which announces it
    return (source > 0) & (concepts > slots) & (answer <= slots)


def row_count(index: Int[np.ndarray, "N 3"], slots: int) -> int:
    """The number of rows that `pack` makes of these documents, in any order."""
    one_row = loses_prompt(index, slots)
    concepts = index[~one_row, CONCEPTS]
    whole = concepts // slots
    how_many = np.bincount(concepts - whole * slots, minlength=slots + 1)  # numpy's % is four times slower
    how_many[slots] = whole.sum() + one_row.sum()
    return _fits(how_many.tolist(), slots)[1]


def cut_documents(
    index: Int[np.ndarray, "N 3"], shard: Int[np.ndarray, " N"], slots: int
) -> tuple[Shaped[np.ndarray, " Q"], Int[np.ndarray, " Q"]]:
    """The spans of every document, and the number of the piece that each span belongs to.

    A long document is cut into pieces of `slots` concepts, each a document of its own (paper §2.4.1). A long pair
    loses prompt concepts just before the prompt's last one, which announces the answer. If the answer alone is too
    long, the pair is cut like any other document. The fields `slot` and `doc` are set by `pack`.
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
    tails = heads.take(piece)  # twenty times faster than heads[piece]
    tails["first"], tails["count"] = source[owner[piece]] - 1, answer[owner[piece]]
    tails["pos"], tails["prompt"] = heads["count"][piece], 1

    spans, piece = np.concatenate([heads, tails]), np.concatenate([np.arange(len(owner)), piece])
    order = np.flatnonzero(spans["count"])
    return spans.take(order), piece[order]


def best_fit(lengths: Int[np.ndarray, " P"], slots: int) -> Int[np.ndarray, " P"]:
    """The row of each piece by best-fit decreasing, exactly: the longest first, each into the fullest row it fits.

    How often each length occurs decides the number of rows and the lengths that share one; neither order nor seed does.
    """
    fits, _ = _fits(np.bincount(lengths).tolist(), slots)
    rows = np.array([row for taken, _ in fits for row in taken], dtype=np.int64)
    takes = np.array([each for taken, each in fits for _ in taken], dtype=np.int64)
    row = np.empty(len(lengths), dtype=np.int64)
    row[_sorted(slots - lengths)] = rows.repeat(takes)
    return row


def _fits(how_many: list[int], slots: int) -> tuple[list[tuple[list[int], int]], int]:
    """(rows, pieces that each of them takes) for the longest pieces first; and the number of all rows.

    how_many: pieces of each length. Pieces of one length are placed at once: rows with equal room are interchangeable,
    and each takes as many as fit, because after each piece it is still the fullest row with enough room.
    """
    fits: list[tuple[list[int], int]] = []
    rooms: defaultdict[int, list[int]] = defaultdict(list)  # rows by their number of free slots
    some = 0  # bit n is set if rooms[n] holds a row
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
    """The permutation that sorts the values, ties in order. numpy sorts 16-bit numbers five times faster."""
    small = not len(values) or values.max() < 2**16
    return np.argsort(values.astype(np.uint16) if small else values, kind="stable")


def pack(index: Int[np.ndarray, "N 3"], shard: Int[np.ndarray, " N"], slots: int, predicts_first: bool) -> PackedRows:
    """Cut the documents, and pack the pieces into rows of `slots` concepts; pieces of one length in their order.

    shard: the shard of each document. predicts_first: the first concept of a document counts as a target.
    """
    spans, piece = cut_documents(index, shard, slots)
    lengths = np.bincount(piece, weights=spans["count"]).astype(np.int64)
    row = best_fit(lengths, slots)[piece]
    order = _sorted(row)  # stable: the two spans of a shortened pair, alone in their row, stay in order
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
    """The sum of the values before each span in its row."""
    before = _before(values)
    return before[:-1] - np.repeat(before[bounds[:-1]], np.diff(bounds))


def _before(values: Shaped[np.ndarray, " n"]) -> Int[np.ndarray, " _"]:
    """The sum of the values before each of them, and before the end."""
    return np.append(0, np.cumsum(values, dtype=np.int64))
