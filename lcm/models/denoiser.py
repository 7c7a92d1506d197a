"""The second tower: denoises each concept by itself, attending to the context before it (paper §2.3.4).

Shapes.  N concepts to denoise · B rows · S slots · L context entries · D concept width · M model width · H heads
         K head width · U timesteps

It does less than a plain transformer, at equal mathematics: a self-attention that sees one slot needs no queries and
keys; modulations depend on the timestep alone, so they are computed once a timestep; keys and values of the context are
projected once, not at every step; and only scores are computed for slots without a target. `fast` saves more for
sampling, where the weights stay the same for many steps.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, addcmul, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from lcm.models.attention import LayerCache
from lcm.models.transformer import BlockHook, Dropout, RMSNorm, Stack, SwiGLU, count_parameters, no_hook

FREQUENCIES = 128


class TimestepEmbedding(nn.Module):
    """Sinusoids of the timestep, then linear, SiLU, linear."""

    def __init__(self, width: int, std: float | None = None) -> None:
        """std: of the initial weights, with zero biases; None for torch's own initialization."""
        super().__init__()
        self.hidden, self.out = nn.Linear(2 * FREQUENCIES, width), nn.Linear(width, width)
        if std is not None:
            for linear in (self.hidden, self.out):
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)

    def forward(self, t: Int[Tensor, " U"]) -> Float[Tensor, "U M"]:
        out: Tensor = self.out(silu(self.hidden(timestep_sinusoids(t))))
        return out


def timestep_sinusoids(t: Int[Tensor, " U"]) -> Float[Tensor, "U 256"]:
    """[cos, sin] of t · exp(-ln(10000) · i/128), i = 0..127."""
    i = torch.arange(FREQUENCIES, device=t.device, dtype=torch.float32)
    angle = t.float()[:, None] * torch.exp(-math.log(10_000.0) / FREQUENCIES * i)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


@dataclass(frozen=True)
class Memory:
    """The context that concepts attend to: keys and values of each layer; entry 0 is the zero vector's.

    mask:  entries that each slot sees, entry 0 always among them; None if every slot sees all
    index: slots of the concepts to denoise, counted over all rows; None if there is one a row
    """

    layers: list[LayerCache]
    mask: Bool[Tensor, "B 1 S L"] | None
    index: Int[Tensor, " N"] | None = None

    def attend(self, q: Float[Tensor, "N M"], layer: LayerCache) -> Float[Tensor, "N M"]:
        """Attention of each concept's queries to the entries of a layer."""
        heads, keys, values = layer.keys.shape[1], layer.keys.to(q.dtype), layer.values.to(q.dtype)
        if self.index is None:
            queries = q.view(len(q), heads, 1, -1)
            return scaled_dot_product_attention(queries, keys, values, attn_mask=self.mask).flatten(1)
        assert self.mask is not None, "slots of one row see different entries"
        rows, _, slots, _ = self.mask.shape
        queries = q.new_zeros(rows * slots, q.shape[1]).index_copy(0, self.index, q)
        queries = queries.view(rows, slots, heads, -1).transpose(1, 2)
        y = scaled_dot_product_attention(queries, keys, values, attn_mask=self.mask)
        return y.transpose(1, 2).flatten(2).flatten(0, 1)[self.index]


class CrossAttention(nn.Module):
    """Attention of each concept to the context before it and to one zero vector, whose key and value are the biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        for linear in (self.q, self.kv, self.out):
            nn.init.xavier_uniform_(linear.weight, gain=1.0 if linear is self.out else math.sqrt(0.5))
            nn.init.zeros_(linear.bias)

    def project_kv(self, context: Float[Tensor, "B S M"]) -> LayerCache:
        """Keys and values of the context's slots."""
        keys, values = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return LayerCache(keys, values)

    def forward(self, x: Float[Tensor, "N M"], memory: Memory, layer: LayerCache) -> Float[Tensor, "N M"]:
        out: Tensor = self.out(memory.attend(self.q(x), layer))
        return out


class DenoiserBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward network, modulated by the timestep.

    Each is x + gate · dropout(f(norm(x) · (1 + scale) + shift)); shift, scale and gate come from the timestep and start
    at zero (AdaLN-zero: Peebles and Xie 2023, §3.2).
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.modulator = nn.Linear(width, 9 * width)
        nn.init.zeros_(self.modulator.weight)
        nn.init.zeros_(self.modulator.bias)
        self.self_norm, self.cross_norm, self.feed_forward_norm = RMSNorm(width), RMSNorm(width), RMSNorm(width)
        # A slot that sees itself alone attends to its own value, whatever its query and key.
        self.self_value, self.self_out = nn.Linear(width, width), nn.Linear(width, width)
        for linear, gain in ((self.self_value, math.sqrt(0.5)), (self.self_out, 1.0)):
            nn.init.xavier_uniform_(linear.weight, gain=gain)
            nn.init.zeros_(linear.bias)
        self.cross = CrossAttention(width, heads)
        self.feed_forward = SwiGLU(width)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "N M"],
        modulation: Float[Tensor, "N M9"],
        memory: Memory,
        layer: LayerCache,
    ) -> Float[Tensor, "N M"]:
        shift_s, scale_s, gate_s, shift_c, scale_c, gate_c, shift_f, scale_f, gate_f = modulation.chunk(9, dim=-1)
        self_attn = self.self_out(self.self_value(modulated(self.self_norm(x), shift_s, scale_s)))
        x = addcmul(x, gate_s, self.dropout(self_attn))
        cross_attn = self.cross(modulated(self.cross_norm(x), shift_c, scale_c), memory, layer)
        x = addcmul(x, gate_c, self.dropout(cross_attn))
        feed_forward = self.feed_forward(modulated(self.feed_forward_norm(x), shift_f, scale_f))
        return addcmul(x, gate_f, self.dropout(feed_forward))


def modulated(
    x: Float[Tensor, "N M"], shift: Float[Tensor, "#N M"], scale: Float[Tensor, "#N M"]
) -> Float[Tensor, "N M"]:
    """x · (1 + scale) + shift, in two passes over memory instead of three."""
    return addcmul(x + shift, x, scale)


class Denoiser(Stack):
    """Noisy concepts, their timesteps and their context → the diffusion's target, each concept by itself."""

    def __init__(
        self, dim: int, width: int, heads: int, layers: int, dropout: float, on_block: BlockHook = no_hook
    ) -> None:
        super().__init__()
        self.heads = heads
        self.time = TimestepEmbedding(width, std=0.02)
        self.pre = nn.Linear(dim, width)
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            block = DenoiserBlock(width, heads, dropout)
            for part in (block.modulator, block.cross.kv, block):  # the first two are also called outside their block
                on_block(part)
            self.blocks.append(block)
        self.norm = RMSNorm(width)
        self.post = nn.Linear(width, dim)

    @property
    def layers(self) -> list[DenoiserBlock]:
        return [block for block in self.blocks if isinstance(block, DenoiserBlock)]

    def modulations(self, t: Int[Tensor, " U"]) -> list[Float[Tensor, "U M9"]]:
        """Shifts, scales and gates of each layer, at each of these timesteps."""
        embedded = silu(self.time(t))
        return [block.modulator(embedded) for block in self.layers]

    def project_kv(self, context: Float[Tensor, "B S M"]) -> list[LayerCache]:
        """Keys and values of each layer, the zero vector's first: entry i + 1 is slot i."""
        with_zero = nn.functional.pad(context, (0, 0, 1, 0))
        return [block.cross.project_kv(with_zero) for block in self.layers]

    def forward(
        self,
        x: Float[Tensor, "N D"],
        modulations: list[Float[Tensor, "U M9"]],
        which: Int[Tensor, " N"],
        memory: Memory,
    ) -> Float[Tensor, "N D"]:
        """which: each concept's timestep, as a row of `modulations`."""
        state = self.pre(x).float()
        for block, table, layer in zip(self.layers, modulations, memory.layers, strict=True):
            modulation = nn.functional.embedding(which, table)
            state = self.run(block, state, modulation, memory, layer)
        out: Tensor = self.post(self.norm(state)).float()
        return out

    def training_flops(self, slots: int) -> int:
        """Modulations count for nothing: they are computed once a timestep, not once a concept."""
        once = [self.time, *(block.modulator for block in self.layers)]
        return super().training_flops(slots) - 6 * sum(count_parameters(part) for part in once)
