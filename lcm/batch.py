"""The batch that every model reads: its targets, what may see what, and the seeds of its randomness.

A seed comes from numbers that identify what is drawn: a row has the same noise on any rank, in any micro-batch.

Shapes.  B rows · S slots · D concept width · M model width · N concepts · k numbers of a key
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

PAD = -1
"""The document number of an empty slot."""
THREADS = 8
"""Upper bound on the threads that draw a batch's random numbers."""


@dataclass(frozen=True)
class Batch:
    """Documents side by side in rows of S slots. Nothing ever attends across two documents.

    emb:          codec vectors exactly as stored in the shards, never normalized; zero in an empty slot
    doc:          number of each slot's document within its row; PAD in an empty slot
    pos:          place of the concept inside its document: 0, 1, 2, …; 0 in an empty slot
    is_target:    True for concepts that the loss counts: a fact of the data, also at position 0
    row:          seed of each row's randomness, a function of (seed, epoch, number of the row)
    step_targets: targets of the whole optimizer step on this rank, over all of its micro-batches
    """

    emb: Float[Tensor, "B S D"]
    doc: Int[Tensor, "B S"]
    pos: Int[Tensor, "B S"]
    is_target: Bool[Tensor, "B S"]
    row: Int[Tensor, " B"]
    step_targets: Int[Tensor, ""]

    def to(self, device: Any, non_blocking: bool = False) -> "Batch":
        return Batch(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def pin_memory(self) -> "Batch":
        return Batch(*(getattr(self, f.name).pin_memory() for f in fields(self)))

    def before(self, state: Float[Tensor, "B S M"]) -> Float[Tensor, "B S M"]:
        """The state from which each slot is predicted: that of the slot before it, and zero at position 0.

        The shift of Base-LCM. The families that denoise or quantize hide a target from itself by a strict mask instead,
        `document_mask(…).tril(-1)`. Position 0 never sees the slot before it, which belongs to another document.
        """
        shifted = torch.cat([torch.zeros_like(state[:, :1]), state[:, :-1]], dim=1)
        return shifted.masked_fill((self.pos == 0).unsqueeze(-1), 0)

    def targets(self, predicts_first: bool) -> Bool[Tensor, "B S"]:
        """The slots that the loss counts, for a model that can (or cannot) predict the first concept of a document."""
        return self.is_target if predicts_first else self.is_target & (self.pos > 0)


def document_mask(doc: Int[Tensor, "B S"]) -> Bool[Tensor, "B S S"]:
    """True if query slot i may attend to key slot j: the same document, and j not after i.

    Padding counts as one document, so no row of the mask is ever empty.
    """
    slots = doc.shape[1]
    causal = torch.ones(slots, slots, dtype=torch.bool, device=doc.device).tril()
    return (doc[:, :, None] == doc[:, None, :]) & causal


def derive_seed(*numbers: int) -> int:
    """A generator's seed from several non-negative numbers, such as a run's seed and a step; none correlate."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def row_seed(seed: int, epoch: int, number: int) -> int:
    """The 63-bit seed of everything random about a row. It knows neither rank, worker nor micro-batch."""
    digest = hashlib.blake2b(b"%d/%d/%d" % (seed, epoch, number), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generators(seed: int, keys: Int[Tensor, "B k"]) -> list[torch.Generator]:
    """One generator for each row of keys, on the CPU whatever the device of the keys."""
    return [torch.Generator().manual_seed(derive_seed(seed, *key)) for key in keys.tolist()]


def draw_rows(
    row: Int[Tensor, " B"], draw: Callable[[torch.Generator], tuple[Tensor, ...]]
) -> list[Shaped[Tensor, "B ..."]]:
    """The random numbers of a training batch: the results of `draw` for each row's own generator, stacked.

    torch draws a row in one thread; several keep a GPU from waiting for all rows of the batch.
    """
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        drawn = list(pool.map(draw, generators(0, row[:, None])))
    return [torch.stack(parts).to(row.device) for parts in zip(*drawn, strict=True)]


def random_rows(
    draw: Callable[..., Tensor], seed: int, keys: Int[Tensor, "B k"], shape: Sequence[int]
) -> Float[Tensor, "B ..."]:
    """Numbers of torch.randn or torch.rand: row i, of this shape, is a function of (seed, keys[i]) alone."""
    return torch.stack([draw(*shape, generator=g) for g in generators(seed, keys)]).to(keys.device)


@dataclass(frozen=True)
class Draws:
    """The random numbers of N concepts: one concept a row, or those at `index` among the slots of all rows."""

    seed: int
    keys: Int[Tensor, "B k"]
    slots: int = 0
    index: Int[Tensor, " N"] | None = None

    def gaussian(self, number: int, width: int) -> Float[Tensor, "N {width}"]:
        """Standard Gaussian numbers, independent for each `number`."""
        return self._draw(torch.randn, number, width)

    def uniform(self, number: int, width: int) -> Float[Tensor, "N {width}"]:
        """Numbers in [0, 1), independent for each `number`."""
        return self._draw(torch.rand, number, width)

    def _draw(self, draw: Callable[..., Tensor], number: int, width: int) -> Float[Tensor, "N {width}"]:
        keys = pad(self.keys, (0, 1), value=number)
        if self.index is None:
            return random_rows(draw, self.seed, keys, (width,))
        return random_rows(draw, self.seed, keys, (self.slots, width)).flatten(0, 1)[self.index]
