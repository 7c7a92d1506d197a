"""Robust scaling of codec vectors, channel by channel: z = (x - location) / scale.

Shapes.  D concept width · n vectors
"""

from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor, nn

QUARTILES = (0.25, 0.75)
"""Quantiles in [0, 1]. The reference hands them to an API that takes percentages and so fits the extreme tail."""


class Normalizer(nn.Module):
    """Median and scaled interquartile range of each channel, frozen (paper §2.3.1). Starts as the identity."""

    location: Float[Tensor, " D"]
    scale: Float[Tensor, " D"]

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("location", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def set(self, location: Float[Tensor, " D"], scale: Float[Tensor, " D"]) -> None:
        self.location.copy_(location)
        self.scale.copy_(scale)

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        """Raw codec vectors of any precision → normalised, in fp32."""
        return (x.float() - self.location) / self.scale

    def inverse(self, z: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        """Normalised → raw codec vectors, in fp32."""
        return z.float() * self.scale + self.location


def fit(vectors: Float[Tensor, "n D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """(location, scale): the median, and the interquartile range over that of N(0, 1), so that a Gaussian gets its σ.

    A channel that never varies gets scale 1: it carries nothing, and must not turn into infinities.
    """
    quantiles = torch.tensor([QUARTILES[0], 0.5, QUARTILES[1]], dtype=torch.float64, device=vectors.device)
    # In blocks of channels: torch.quantile refuses more than 16 million numbers at once and sorts a copy of its input.
    columns = vectors.shape[1]
    low, middle, high = torch.cat(
        [_column_quantiles(vectors[:, start : start + 64], quantiles) for start in range(0, columns, 64)], dim=1
    )
    unit = NormalDist().inv_cdf(QUARTILES[1]) - NormalDist().inv_cdf(QUARTILES[0])
    scale = (high - low) / unit
    return middle.float(), torch.where(scale > 0, scale, torch.ones_like(scale)).float()


def _column_quantiles(block: Float[Tensor, "n C"], quantiles: Float[Tensor, " Q"]) -> Float[Tensor, "Q C"]:
    """Quantiles of each column with linear interpolation, as numpy's default."""
    ordered = block.double().sort(dim=0).values
    place = quantiles * (len(ordered) - 1)
    below = place.floor().long()
    above = (below + 1).clamp(max=len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], (place - below)[:, None])
