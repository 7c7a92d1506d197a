"""One group of documents becomes rows: cut to S concepts, packed first-fit, nothing read but lengths.

Shapes.  N documents · P pieces · Q spans · R rows
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int, Shaped

OFFSET, CONCEPTS, SOURCE = range(3)
"""Columns of a shard's index: byte offset of a document's vectors, how many they are, how many of them are prompt."""

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
class PackedGroup:
    """The rows of one group: the spans of row r are spans[bounds[r] : bounds[r + 1]].

    span_targets, targets: of each span, and of each row; bounds has one number more than there are rows
    """

    spans: Shaped[np.ndarray, " Q"]
    span_targets: Int[np.ndarray, " Q"]
    bounds: Int[np.ndarray, " _"]

    @cached_property
    def targets(self) -> Int[np.ndarray, " R"]:
        before = np.concatenate([[0], self.span_targets.cumsum(dtype=np.int64)])
        return np.diff(before[self.bounds])

    @cached_property
    def filled(self) -> Bool[np.ndarray, " R"]:
        """Which rows hold anything."""
        return np.diff(self.bounds) > 0

    def without(self, shards: Collection[int]) -> "PackedGroup":
        """The same rows, with empty slots for what lies in these shards: nothing else moves, no row changes its number.

        So a position means the same whether or not the shards were there.
        """
        kept = ~np.isin(self.spans["shard"], list(shards))
        before = np.concatenate([[0], kept.cumsum()])
        return PackedGroup(self.spans[kept], self.span_targets[kept], before[self.bounds])

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def rows(self, order: Int[np.ndarray, " r"]) -> Iterator[tuple[Shaped[np.ndarray, " q"], int]]:
        """The spans of these rows, in this order, and how many targets they hold."""
        begins, ends, targets = (a.tolist() for a in (self.bounds[order], self.bounds[order + 1], self.targets[order]))
        for begin, end, count in zip(begins, ends, targets, strict=True):
            yield self.spans[begin:end], count


def cut(
    index: Int[np.ndarray, "N 3"], shard: Int[np.ndarray, " N"], slots: int
) -> tuple[Shaped[np.ndarray, " Q"], Int[np.ndarray, " Q"]]:
    """The spans of every document, and the piece that each belongs to; `slot` and `doc` are still to be set.

    A long document is cut into pieces of `slots` concepts, each a document of its own (paper §2.4.1). A long pair
    loses prompt concepts just before the prompt's last one, which says that the answer begins; where the answer
    alone is too long, the pair is cut like any other document.
    """
    offset, concepts, source = index.T
    answer = concepts - source + 1  # with the concept that announces it
    shortened = (source > 0) & (concepts > slots) & (answer <= slots)

    pieces = np.where(shortened, 1, -(-concepts // slots))
    owner = np.repeat(np.arange(len(index)), pieces)
    first = (np.arange(len(owner)) - np.repeat(pieces.cumsum() - pieces, pieces)) * slots

    heads = np.zeros(len(owner), SPAN)
    heads["shard"], heads["offset"], heads["first"] = shard[owner], offset[owner], first
    heads["count"] = np.where(shortened[owner], slots - answer[owner], np.minimum(concepts[owner] - first, slots))
    heads["prompt"] = np.clip(source[owner] - first, 0, heads["count"])

    piece = np.flatnonzero(shortened[owner])
    if not len(piece):
        return heads, np.arange(len(heads))
    tails = heads.take(piece)  # twenty times quicker than heads[piece]
    tails["first"], tails["count"] = source[owner[piece]] - 1, answer[owner[piece]]
    tails["pos"], tails["prompt"] = heads["count"][piece], 1

    spans, piece = np.concatenate([heads, tails]), np.concatenate([np.arange(len(owner)), piece])
    order = np.flatnonzero(spans["count"])
    return spans.take(order), piece[order]


def first_fit(lengths: Int[np.ndarray, " P"], slots: int) -> Int[np.ndarray, " P"]:
    """The row of each piece, taken longest first: the first row that has room, a new one where none has. Exact.

    Pieces of equal length are placed at once: in the order of the rows, each takes as many as it has room for.
    """
    turns = _sorted(slots - lengths)
    how_many = np.bincount(lengths)
    free = np.full(len(lengths), slots, dtype=np.int32)
    chosen, opened = [np.empty(0, dtype=np.int64)], 0
    for length in how_many.nonzero()[0][::-1].tolist():
        count = int(how_many[length])
        rows = (free[: opened + count] >= length).nonzero()[0]
        takes = free[rows] // length
        taken = takes.cumsum()
        last = int(taken.searchsorted(count))
        rows, takes = rows[: last + 1], takes[: last + 1]
        takes[-1] -= taken[last] - count
        free[rows] -= takes * length
        chosen.append(rows.repeat(takes))
        opened = max(opened, int(rows[-1]) + 1)
    row = np.empty(len(lengths), dtype=np.int64)
    row[turns] = np.concatenate(chosen)
    return row


def _sorted(values: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The order that sorts them, equals as they were. Small numbers are sorted five times quicker."""
    small = not len(values) or values.max() < 2**16
    return np.argsort(values.astype(np.uint16) if small else values, kind="stable")


def pack(index: Int[np.ndarray, "N 3"], shard: Int[np.ndarray, " N"], slots: int, predicts_first: bool) -> PackedGroup:
    """Cut the documents, and pack the pieces first-fit into rows of `slots` concepts; equal ones in the order given."""
    spans, piece = cut(index, shard, slots)
    lengths = np.bincount(piece, weights=spans["count"]).astype(np.int64)
    row = first_fit(lengths, slots)[piece]
    order = _sorted(row)  # of two spans that are one piece, and so a row of their own, the first comes first
    spans, row = spans.take(order), row[order]

    bounds = np.append(0, np.bincount(row).cumsum())
    begins = spans["pos"] == 0  # the first span of its piece
    spans["slot"] = _running_total(spans["count"], bounds)
    spans["doc"] = _running_total(begins, bounds) + begins - 1
    targets = spans["count"] - spans["prompt"]
    if not predicts_first:
        targets = targets - (begins & (spans["prompt"] == 0))
    return PackedGroup(spans, targets, bounds)


def _running_total(values: Shaped[np.ndarray, " Q"], bounds: Int[np.ndarray, " _"]) -> Int[np.ndarray, " Q"]:
    """The sum of the values before each one, within its row."""
    before = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return before[:-1] - np.repeat(before[bounds[:-1]], np.diff(bounds))
