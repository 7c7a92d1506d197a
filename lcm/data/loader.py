"""Rows become batches: vectors go from the shard files straight into the batch's memory.

Shapes.  B rows · S slots · D concept width · Q spans
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lcm.batch import PAD, Batch, row_seed
from lcm.data.packing import SPAN, Row
from lcm.data.vectors import OpenFile, are_finite, check_finite

OPEN_FILES = 128
"""Shards that are kept open: well above a group, well below what a process may open."""


@dataclass(frozen=True)
class MicroBatch:
    """The rows that one rank trains at a time.

    targets: those of the rank's whole step, over all of its micro-batches
    files:   the open shards, by number; without any, the reader opens them itself
    """

    rows: Sequence[Row]
    targets: int
    files: Mapping[int, OpenFile] | None = None


def split(rows: Sequence[Row], count: int, files: Mapping[int, OpenFile] | None = None) -> list[MicroBatch]:
    """A rank's rows of a step in `count` equal micro-batches of neighbours."""
    size, remainder = divmod(len(rows), count)
    assert not remainder, "every micro-batch gets as many rows"
    targets = sum(row.targets for row in rows)
    return [MicroBatch(rows[i : i + size], targets, files) for i in range(0, len(rows), size)]


class RowReader:
    """Reads micro-batches. Several threads may do so at once, because they share nothing but open files."""

    def __init__(self, paths: Sequence[Path], *, dim: int, slots: int, seed: int) -> None:
        """paths: of the shards, by number. seed: of the order of rows."""
        self.dim, self.slots, self.seed = dim, slots, seed
        self._open = lru_cache(OPEN_FILES)(lambda shard: OpenFile(paths[shard]))

    def read(self, micro_batch: MicroBatch) -> Batch:
        """Raises UserError, naming the shard, if one is missing or too short, or holds numbers that are not finite."""
        rows, files = micro_batch.rows, micro_batch.files
        spans = np.frombuffer(b"".join(row.spans.tobytes() for row in rows), SPAN)  # 40 times faster than concatenate
        row = np.repeat(np.arange(len(rows)), [len(r.spans) for r in rows])
        start = row * self.slots + spans["slot"]
        doc, pos, is_target = layout(spans, start, len(rows) * self.slots)
        vectors = self._vectors(spans, start, doc == PAD, files.__getitem__ if files else self._open)
        return Batch(
            emb=vectors.view(len(rows), self.slots, self.dim),
            doc=torch.from_numpy(doc).view(len(rows), self.slots),
            pos=torch.from_numpy(pos).view(len(rows), self.slots),
            is_target=torch.from_numpy(is_target).view(len(rows), self.slots),
            row=torch.tensor([row_seed(self.seed, r.epoch, r.number) for r in rows]),
            step_targets=torch.tensor(micro_batch.targets),
        )

    def _vectors(
        self,
        spans: Shaped[np.ndarray, " Q"],
        start: Int[np.ndarray, " Q"],
        empty: Bool[np.ndarray, " BS"],
        opened: Callable[[int], OpenFile],
    ) -> Float[Tensor, "BS D"]:
        """Every byte is written exactly once: by the kernel, or as a zero."""
        emb = np.empty((len(empty), self.dim), dtype=np.float16)
        emb[empty] = 0
        memory, width = emb.data.cast("B"), emb.itemsize * self.dim
        offset = spans["offset"] + spans["first"].astype(np.int64) * width
        columns = (spans["shard"], offset, start * width, (start + spans["count"]) * width)
        for shard, place, begin, end in zip(*(column.tolist() for column in columns), strict=True):
            opened(shard).fill(memory[begin:end], place)
        if not are_finite(emb):
            for shard, _, begin, end in zip(*(column.tolist() for column in columns), strict=True):
                check_finite(emb[begin // width : end // width], opened(shard).path)
        return torch.from_numpy(emb)


def layout(
    spans: Shaped[np.ndarray, " Q"], start: Int[np.ndarray, " Q"], slots: int
) -> tuple[Int[np.ndarray, " BS"], Int[np.ndarray, " BS"], Bool[np.ndarray, " BS"]]:
    """`doc`, `pos` and `is_target` of all slots, for spans that start at the slots `start`."""
    count = spans["count"]
    inside = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
    slot = np.repeat(start, count) + inside
    doc = np.full(slots, PAD, dtype=np.int64)
    pos = np.zeros(slots, dtype=np.int64)
    is_target = np.zeros(slots, dtype=np.bool_)
    doc[slot] = np.repeat(spans["doc"], count)
    pos[slot] = np.repeat(spans["pos"], count) + inside
    is_target[slot] = inside >= np.repeat(spans["prompt"], count)
    return doc, pos, is_target


class Batches:
    """The batches of a stream of micro-batches, in order, read ahead by `workers` threads; 0 reads on demand.

    Threads, because nearly all of the work is copying in the kernel, outside Python's lock. Worker processes would copy
    each batch once more, through shared memory, of which containers often have too little.
    """

    def __init__(self, reader: RowReader, deal: Callable[[], Iterable[MicroBatch]], length: int, workers: int) -> None:
        """deal: starts the stream, anew for each iteration. length: of the whole run, for Lightning."""
        self.reader, self.deal, self.length, self.workers = reader, deal, length, workers

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        if not self.workers:
            yield from map(self._read, self.deal())
            return
        with ThreadPoolExecutor(self.workers, thread_name_prefix="reader") as pool:
            ahead: deque[Future[Batch]] = deque()
            for micro_batch in self.deal():
                ahead.append(pool.submit(self._read, micro_batch))
                if len(ahead) > 2 * self.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _read(self, micro_batch: MicroBatch) -> Batch:
        batch = self.reader.read(micro_batch)
        return batch.pin_memory() if torch.cuda.is_available() else batch

    def state_dict(self) -> dict[str, int]:
        """Empty: ConceptData knows the position. Without this method Lightning warns that no loader can resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        assert not state_dict, "state_dict() is empty"
