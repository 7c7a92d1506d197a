"""Rows of the plan become batches: vectors go from the shard files straight into the batch's memory.

Shapes.  B rows · S slots · D concept width · Q spans
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lcm.batch import PAD, Batch
from lcm.data.packing import SPAN
from lcm.data.steps import Share
from lcm.errors import UserError
from lcm.seeds import row_seed

OPEN_FILES = 128
"""Shards that are kept open: well above a group, well below what a process may open."""


class OpenFile:
    """A file that stays open as long as anybody refers to it."""

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        """descriptor: of the file, where it is open already. Raises UserError where it cannot be opened."""
        self.path = path
        if descriptor is not None:
            self.descriptor = descriptor
            return
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(
                f"{path}: {error.strerror}, but the manifest names it; 'lcm verify {path.parent}' says what is broken"
            ) from error

    def fill(self, memory: memoryview, offset: int) -> None:
        """Read as many bytes as there is memory for. Raises UserError where the file ends too early."""
        while (got := os.preadv(self.descriptor, (memory,), offset)) < len(memory):
            memory, offset = memory[got:], offset + got
            if not got:
                raise UserError(
                    f"{self.path} ends at byte {offset}, {len(memory)} bytes too early: the shard is truncated; "
                    f"'lcm verify {self.path.parent}' says what is broken, 'lcm prepare' writes it again"
                )

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


Files = Callable[[int], OpenFile]
"""The open file of a shard, by the plan's number."""


class RowReader:
    """Reads the rows of a share; several threads may do so at once, because all they share is open files."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        dim: int,
        slots: int,
        seed: int,
        files: Callable[[Share], Files] | None = None,
    ) -> None:
        """paths: of the shards, by the plan's numbers. seed: the plan's.

        files: says what to read a share from, where files are not opened by their paths
        """
        self.dim = dim
        self.slots = slots
        self.seed = seed
        opened = lru_cache(OPEN_FILES)(lambda shard: OpenFile(paths[shard]))
        self.files: Callable[[Share], Files] = files or (lambda share: opened)
        """What a share is read from; asked in the order of the shares, when they are dealt."""

    def read(self, share: Share, files: Files | None = None) -> Batch:
        """Raises UserError, naming the shard, where one is missing or too short."""
        files = files or self.files(share)
        rows = share.rows
        spans = np.frombuffer(b"".join(row.spans.tobytes() for row in rows), SPAN)  # 40 times quicker than concatenate
        row = np.repeat(np.arange(len(rows)), [len(r.spans) for r in rows])
        start = row * self.slots + spans["slot"]
        doc, pos, is_target = layout(spans, start, len(rows) * self.slots)
        return Batch(
            emb=self._vectors(spans, start, doc == PAD, files).view(len(rows), self.slots, self.dim),
            doc=torch.from_numpy(doc).view(len(rows), self.slots),
            pos=torch.from_numpy(pos).view(len(rows), self.slots),
            is_target=torch.from_numpy(is_target).view(len(rows), self.slots),
            row=torch.tensor([row_seed(self.seed, r.epoch, r.number) for r in rows]),
            step_targets=torch.tensor(share.targets),
        )

    def _vectors(
        self,
        spans: Shaped[np.ndarray, " Q"],
        start: Int[np.ndarray, " Q"],
        empty: Bool[np.ndarray, " BS"],
        files: Files,
    ) -> Float[Tensor, "BS D"]:
        """Every byte is written exactly once: by the kernel, or as a zero."""
        emb = np.empty((len(empty), self.dim), dtype=np.float16)
        emb[empty] = 0
        memory, width = emb.data.cast("B"), emb.itemsize * self.dim
        offset = spans["offset"] + spans["first"].astype(np.int64) * width
        columns = (spans["shard"], offset, start * width, (start + spans["count"]) * width)
        for shard, place, begin, end in zip(*(column.tolist() for column in columns), strict=True):
            files(shard).fill(memory[begin:end], place)
        return torch.from_numpy(emb)


def layout(
    spans: Shaped[np.ndarray, " Q"], start: Int[np.ndarray, " Q"], slots: int
) -> tuple[Int[np.ndarray, " BS"], Int[np.ndarray, " BS"], Bool[np.ndarray, " BS"]]:
    """`doc`, `pos` and `is_target` of all slots, from spans that start at these slots."""
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


@runtime_checkable
class Shares(Protocol):
    """Whatever says what to read next: a list, or the training stream."""

    def __iter__(self) -> Iterator[Share]: ...
    def __len__(self) -> int: ...


class Batches:
    """The batches of these shares, in their order, read ahead by `workers` threads; 0 reads on demand.

    Threads, because nearly all the work is the kernel's copying, which no lock of Python holds up: a batch that comes
    from another process is copied once more, and through shared memory, of which containers often have too little.
    """

    def __init__(self, reader: RowReader, shares: Shares, workers: int) -> None:
        self.reader = reader
        self.shares = shares
        self.workers = workers

    def __len__(self) -> int:
        return len(self.shares)

    def __iter__(self) -> Iterator[Batch]:
        if not self.workers:
            yield from map(self._read, self.shares)
            return
        with ThreadPoolExecutor(self.workers, thread_name_prefix="reader") as pool:
            ahead: deque[Future[Batch]] = deque()
            for share in self.shares:
                ahead.append(pool.submit(self._read, share, self.reader.files(share)))
                if len(ahead) > 2 * self.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _read(self, share: Share, files: Files | None = None) -> Batch:
        batch = self.reader.read(share, files)
        return batch.pin_memory() if torch.cuda.is_available() else batch

    def state_dict(self) -> dict[str, int]:
        """Empty: ConceptData knows where training stands. Without it Lightning warns that no loader could resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        assert not state_dict, "state_dict() is empty"
