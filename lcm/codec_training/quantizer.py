"""A residual quantizer: each codebook rounds what the ones before it have left (Lee et al. 2022, arXiv 2203.01941).

Shapes.  n vectors · D concept width · C codebooks · U units of a codebook
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lcm.errors import UserError

ROUNDS = 10
"""Of k-means: more change little."""


class ResidualQuantizer(nn.Module):
    """Vectors → the sums of the units that are nearest, one of each codebook."""

    codebooks: Float[Tensor, "C U D"]

    def __init__(self, codebooks: Float[Tensor, "C U D"]) -> None:
        super().__init__()
        self.register_buffer("codebooks", codebooks)

    def forward(self, vectors: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        """The rounded vectors, in fp32."""
        rest = vectors.float()
        for units in self.codebooks:
            rest = rest - units[nearest(rest, units)]
        return vectors.float() - rest


def fit_quantizer(vectors: Float[Tensor, "n D"], codebooks: int, units: int, seed: int) -> ResidualQuantizer:
    """k-means, one codebook after the other. Raises UserError where there are fewer vectors than units."""
    if len(vectors) < units:
        raise UserError(f"terms.units={units}, but there are only {len(vectors)} sentences to fit them to; lower it")
    generator, rest, found = torch.Generator().manual_seed(seed), vectors.float(), []
    for _ in range(codebooks):
        found.append(k_means(rest, units, generator))
        rest = rest - found[-1][nearest(rest, found[-1])]
    return ResidualQuantizer(torch.stack(found))


def k_means(vectors: Float[Tensor, "n D"], units: int, generator: torch.Generator) -> Float[Tensor, "U D"]:
    """Lloyd's algorithm from vectors drawn at random; a unit that nothing is nearest to stays where it is."""
    centres = vectors[torch.randperm(len(vectors), generator=generator)[:units]].clone()
    for _ in range(ROUNDS):
        chosen = nearest(vectors, centres)
        counts = torch.bincount(chosen, minlength=units)
        sums = torch.zeros_like(centres).index_add_(0, chosen, vectors)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    return centres


def nearest(vectors: Float[Tensor, "n D"], units: Float[Tensor, "U D"]) -> Int[Tensor, " n"]:
    """The number of the unit at the smallest distance; |x|² is the same for all of them, and left out."""
    return (units.square().sum(1) - 2 * vectors @ units.T).argmin(1)
