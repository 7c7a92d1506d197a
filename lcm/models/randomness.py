"""Random numbers that know neither batch, rank nor device: each row's depend on what identifies the row alone.

Shapes.  B rows · D concept width · k numbers that identify a row · n numbers of each row
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from lcm.models.normalizer import Normalizer
from lcm.seeds import generators


def prompt_number(z: Float[Tensor, "B D"]) -> Int[Tensor, " B"]:
    """A number for each prompt, from the signs of its last concept: they survive the rounding of another batch size."""
    signs = np.packbits((z > 0).cpu().numpy(), axis=1)
    return torch.tensor([zlib.crc32(row.tobytes()) for row in signs], device=z.device)


def read_prompts(
    prompts: Sequence[Float[Tensor, "_ D"]], normalizer: Normalizer
) -> tuple[Float[Tensor, "B S D"], Int[Tensor, " B"], Int[Tensor, " B"]]:
    """Prompts of any lengths side by side in normalized space, their lengths, and each one's `prompt_number`.

    There is at least one slot, even where all prompts are empty.
    """
    device = normalizer.location.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    padded = pad_sequence([prompt.to(device) for prompt in prompts], batch_first=True)
    z = normalizer(pad(padded, (0, 0, 0, max(0, 1 - padded.shape[1]))))
    last = z[torch.arange(len(prompts), device=device), (lengths - 1).clamp(min=0)]
    return z, lengths, prompt_number(last.where(lengths[:, None] > 0, 0))


def gaussian(seed: int, keys: Int[Tensor, "B k"], shape: Sequence[int]) -> Float[Tensor, "B ..."]:
    """Standard Gaussian numbers: row i is a function of (seed, keys[i]) alone."""
    return torch.stack([torch.randn(*shape, generator=g) for g in generators(seed, keys)]).to(keys.device)


@dataclass(frozen=True)
class Draws:
    """The random numbers of N concepts: of one concept a row, or of those at `index` among a row's slots."""

    seed: int
    keys: Int[Tensor, "B k"]
    slots: int = 0
    index: Int[Tensor, " N"] | None = None

    def gaussian(self, number: int, width: int) -> Float[Tensor, "N {width}"]:
        """Other ones for every number."""
        return self._spread(gaussian(self.seed, self._with(number), self._shape(width)))

    def uniform(self, number: int, width: int) -> Float[Tensor, "N {width}"]:
        """In [0, 1)."""
        drawn = [torch.rand(*self._shape(width), generator=g) for g in generators(self.seed, self._with(number))]
        return self._spread(torch.stack(drawn).to(self.keys.device))

    def _with(self, number: int) -> Int[Tensor, "B l"]:
        return pad(self.keys, (0, 1), value=number)

    def _shape(self, width: int) -> tuple[int, ...]:
        return (width,) if self.index is None else (self.slots, width)

    def _spread(self, drawn: Float[Tensor, "B ..."]) -> Float[Tensor, "N width"]:
        return drawn if self.index is None else drawn.flatten(0, 1)[self.index]
