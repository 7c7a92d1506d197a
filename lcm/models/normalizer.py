"""Robust scaling of codec vectors, channel by channel: z = (x - location) / scale.

Shapes.  D concept width · n vectors
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Normalizer(nn.Module):
    """Median and scaled interquartile range of each channel, frozen (paper §2.3.1). The identity until it is set."""

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
        """Raw codec vectors of any precision → normalized, in fp32."""
        return (x.float() - self.location) / self.scale

    def inverse(self, z: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        """Normalized → raw codec vectors, in fp32."""
        return z.float() * self.scale + self.location
