"""Random numbers that depend on a row's identity alone, never on the batch, the rank or the device.

Shapes.  B rows · N concepts · D concept width · k numbers that identify a row · n random numbers of each
"""

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from lcm.batch import generators
from lcm.models.interface import Normalizer

THREADS = 8
"""Upper bound on the threads that draw a batch's random numbers."""


def draw_rows(
    row: Int[Tensor, " B"], draw: Callable[[torch.Generator], tuple[Tensor, ...]]
) -> list[Shaped[Tensor, "B ..."]]:
    """The random numbers of a training batch: the results of `draw` for each row's own generator, stacked.

    torch draws a row in one thread; several keep a GPU from waiting for all rows of the batch.
    """
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        drawn = list(pool.map(draw, generators(0, row[:, None])))
    return [torch.stack(parts).to(row.device) for parts in zip(*drawn, strict=True)]


def prompt_number(z: Float[Tensor, "B D"]) -> Int[Tensor, " B"]:
    """Identify each prompt by the signs of its last concept, which survive the rounding of another batch size."""
    signs = np.packbits((z > 0).cpu().numpy(), axis=1)
    return torch.tensor([zlib.crc32(row.tobytes()) for row in signs], device=z.device)


def read_prompts(
    prompts: Sequence[Float[Tensor, "_ D"]], normalizer: Normalizer
) -> tuple[Float[Tensor, "B S D"], Int[Tensor, " B"], Int[Tensor, " B"]]:
    """Pad prompts of any lengths to one batch in normalized space; returns it, the lengths, and each `prompt_number`.

    There is at least one slot, even if all prompts are empty.
    """
    device = normalizer.location.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    padded = pad_sequence([prompt.to(device) for prompt in prompts], batch_first=True)
    z = normalizer(pad(padded, (0, 0, 0, max(0, 1 - padded.shape[1]))))
    last = z[torch.arange(len(prompts), device=device), (lengths - 1).clamp(min=0)]
    return z, lengths, prompt_number(last.where(lengths[:, None] > 0, 0))


def gaussian_rows(seed: int, keys: Int[Tensor, "B k"], shape: Sequence[int]) -> Float[Tensor, "B ..."]:
    """Standard Gaussian numbers: row i is a function of (seed, keys[i]) alone."""
    return torch.stack([torch.randn(*shape, generator=g) for g in generators(seed, keys)]).to(keys.device)


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
        shape = (width,) if self.index is None else (self.slots, width)
        keys = pad(self.keys, (0, 1), value=number)
        drawn = torch.stack([draw(*shape, generator=g) for g in generators(self.seed, keys)]).to(keys.device)
        return drawn if self.index is None else drawn.flatten(0, 1)[self.index]
