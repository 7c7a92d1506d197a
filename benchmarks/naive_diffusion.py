"""A plain denoiser and its sampling loop: every slot computed, nothing cached.

Shapes.  B rows · S slots · L context slots, the zero vector first · D concept width · M model width

Modulations are computed slot by slot; self-attention has queries and keys, under an identity mask; the context's keys
and values are projected anew at every call, those of the zero vector from zeros.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from naive_transformer import SwiGLU, heads_apart, heads_together
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from lcm.models.diffusion import DiffusionSampling
from lcm.models.layers import FREQUENCIES, timestep_sinusoids

Both = Callable[[Float[Tensor, "B D"], int], tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]]
"""(x_t, t) → the predictions of x_0 with the context and without it."""


class Noising(NamedTuple):
    """A timestep and noise for every slot, and whether its context is dropped."""

    t: Int[Tensor, "B S"]
    eps: Float[Tensor, "B S D"]
    dropped: Bool[Tensor, "B S"]


def draw(z: Float[Tensor, "B S D"], steps: int, drop: float) -> Noising:
    shape = z.shape[:2]
    return Noising(torch.randint(steps, shape), torch.randn_like(z), torch.rand(shape) < drop)


def noised(z: Float[Tensor, "B S D"], alpha_bar: Float[Tensor, " T"], noising: Noising) -> Float[Tensor, "B S D"]:
    ab = alpha_bar[noising.t].unsqueeze(-1)
    return ab.sqrt().float() * z + (1 - ab).sqrt().float() * noising.eps


class TimestepEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(2 * FREQUENCIES, width), nn.Linear(width, width)

    def forward(self, t: Int[Tensor, "B S"]) -> Float[Tensor, "B S M"]:
        return self.out(silu(self.hidden(timestep_sinusoids(t.flatten())))).unflatten(0, t.shape)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self, x: Float[Tensor, "B S M"], memory: Float[Tensor, "B L M"], mask: Bool[Tensor, "*b S L"]
    ) -> Float[Tensor, "B S M"]:
        q, k, v = (heads_apart(y, self.heads) for y in (self.q(x), self.k(memory), self.v(memory)))
        return self.out(heads_together(scaled_dot_product_attention(q, k, v, attn_mask=mask)))


class DenoiserBlock(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.modulator = nn.Linear(width, 9 * width)
        self.self_norm, self.cross_norm, self.feed_forward_norm = (nn.RMSNorm(width, eps=1e-5) for _ in range(3))
        self.self_attention, self.cross, self.feed_forward = (
            Attention(width, heads),
            Attention(width, heads),
            SwiGLU(width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B S M"],
        step: Float[Tensor, "B S M"],
        memory: Float[Tensor, "B L M"],
        mask: Bool[Tensor, "B 1 S L"],
    ) -> Float[Tensor, "B S M"]:
        shift_s, scale_s, gate_s, shift_c, scale_c, gate_c, shift_f, scale_f, gate_f = self.modulator(step).chunk(9, -1)
        y = self.self_norm(x) * (1 + scale_s) + shift_s
        itself = torch.eye(x.shape[1], dtype=torch.bool)
        x = x + gate_s * self.dropout(self.self_attention(y, y, itself))
        y = self.cross_norm(x) * (1 + scale_c) + shift_c
        x = x + gate_c * self.dropout(self.cross(y, memory, mask))
        y = self.feed_forward_norm(x) * (1 + scale_f) + shift_f
        return x + gate_f * self.dropout(self.feed_forward(y))


class Denoiser(nn.Module):
    def __init__(self, dim: int, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.time = TimestepEmbedding(width)
        self.pre, self.post = nn.Linear(dim, width), nn.Linear(width, dim)
        self.blocks = nn.ModuleList(DenoiserBlock(width, heads, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-5)

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        t: Int[Tensor, "B S"],
        context: Float[Tensor, "B C M"],
        mask: Bool[Tensor, "B 1 S L"],
    ) -> Float[Tensor, "B S D"]:
        """mask: over the zero vector and the C = L - 1 slots of the context."""
        memory = torch.cat([context.new_zeros(len(context), 1, context.shape[2]), context], dim=1)
        x, step = self.pre(x), silu(self.time(t))
        for block in self.blocks:
            x = block(x, step, memory, mask)
        return self.post(self.norm(x))


def ddim(
    both: Both,
    x: Float[Tensor, "B D"],
    alpha_bar: Sequence[float],
    timesteps: Sequence[int],
    settings: DiffusionSampling,
) -> Float[Tensor, "B D"]:
    """DDIM with guidance at every step but the first, where ε says nothing about x_0 (paper §2.3.2 and §2.4.1)."""
    x = settings.initial_noise * x
    for t, then in pairwise([*timesteps, None]):
        here, there = alpha_bar[t], 1.0 if then is None else alpha_bar[then]
        x_0, without = both(x, t)
        eps = (x - sqrt(here) * x_0) / sqrt(1 - here)
        if here > 0:
            eps_without = (x - sqrt(here) * without) / sqrt(1 - here)
            guided = eps_without + settings.guidance * (eps - eps_without)
            ratio = eps.std(-1, keepdim=True) / guided.std(-1, keepdim=True)
            eps = guided * (settings.rescale * ratio + 1 - settings.rescale)
            x_0 = (x - sqrt(1 - here) * eps) / sqrt(here)
        x = sqrt(there) * x_0 + sqrt(1 - there) / settings.epsilon_scaling * eps
    return x_0
