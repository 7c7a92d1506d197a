"""A plain causal transformer: one document a row, separate projections, `is_causal`.

Shapes.  B rows · S slots · M model width · H heads · K head width

The mathematics and names of lcm/models/transformer.py, except that q, k, v and gate, inner are separate matrices.
"""

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from lcm.models.layers import ROPE_THETA, feed_forward_width

KeysAndValues = tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S K"]]


def rotation(pos: Int[Tensor, " S"], head_width: int) -> Complex[Tensor, "S P"]:
    """e^(i · pos · theta^(-2p/K)) for pair p."""
    pair = torch.arange(0, head_width, 2, dtype=torch.float32)
    angle = pos[:, None].float() * ROPE_THETA ** (-pair / head_width)
    return torch.polar(torch.ones_like(angle), angle)


def rotated(x: Float[Tensor, "B H S K"], by: Complex[Tensor, "S P"]) -> Float[Tensor, "B H S K"]:
    """Interleaved pairs as complex numbers."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * by).flatten(-2)


def heads_apart(x: Float[Tensor, "B S M"], heads: int) -> Float[Tensor, "B H S K"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def heads_together(x: Float[Tensor, "B H S K"]) -> Float[Tensor, "B S M"]:
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self,
        x: Float[Tensor, "B S M"],
        by: Complex[Tensor, "S P"],
        mask: Bool[Tensor, "B 1 S S"] | None = None,
        cached: KeysAndValues | None = None,
    ) -> tuple[Float[Tensor, "B S M"], KeysAndValues]:
        """Causal without a mask. cached: keys and values of the slots before; x is then one slot a row."""
        q, k, v = (heads_apart(linear(x), self.heads) for linear in (self.q, self.k, self.v))
        q, k = rotated(q, by), rotated(k, by)
        if cached is not None:
            k, v = torch.cat([cached[0], k], dim=2), torch.cat([cached[1], v], dim=2)
        y = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and cached is None)
        return self.out(heads_together(y)), (k, v)


class SwiGLU(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = feed_forward_width(width)
        self.gate, self.inner, self.out = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "B S M"]) -> Float[Tensor, "B S M"]:
        return self.out(silu(self.gate(x)) * self.inner(x))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(width, eps=1e-5), Attention(width, heads)
        self.feed_forward_norm, self.feed_forward = nn.RMSNorm(width, eps=1e-5), SwiGLU(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B S M"],
        by: Complex[Tensor, "S P"],
        mask: Bool[Tensor, "B 1 S S"] | None = None,
        cached: KeysAndValues | None = None,
    ) -> tuple[Float[Tensor, "B S M"], KeysAndValues]:
        y, cached = self.attention(self.attention_norm(x), by, mask, cached)
        x = x + self.dropout(y)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), cached


class Transformer(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.head_width = width // heads
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-5)

    def forward(
        self,
        x: Float[Tensor, "B S M"],
        pos: Int[Tensor, " S"] | None = None,
        mask: Bool[Tensor, "B 1 S S"] | None = None,
        cache: list[KeysAndValues] | None = None,
    ) -> Float[Tensor, "B S M"]:
        """cache: keys and values of the slots before, extended in place. After the first call x is one slot a row.

        pos: by default 0, 1, 2, … after the cached slots
        """
        before = cache[0][0].shape[2] if cache else 0
        by = rotation(torch.arange(before, before + x.shape[1]) if pos is None else pos, self.head_width)
        grown = []
        for number, block in enumerate(self.blocks):
            x, kept = block(x, by, mask, cache[number] if cache else None)
            grown.append(kept)
        if cache is not None:
            cache[:] = grown
        return self.norm(x)
