"""The second tower: denoises each concept by itself, attending to the context before it (paper §2.3.4).

Shapes.  N concepts to denoise · G N, or 2N for the concepts with their context and then without it · U timesteps
         B rows · S slots · L context entries · D concept width · M model width · H heads · K head width

It does less than a plain transformer, at equal mathematics: a self-attention that sees one slot needs no queries and
keys; modulations depend on the timestep alone, so they are computed once a timestep; keys and values of the context are
projected once, not at every step; and only scores are computed for slots without a target.

`FastDenoiser` is for sampling, where the weights stay the same for many steps, each bound by reading them. They are
packed, and fewer: self-attention is one matrix, the product of two; attention to the zero vector alone is one vector,
and needs no queries; a concept with and without its context is computed once until the first cross-attention; a norm
and its modulation are one factor and one shift.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, addcmul, nn
from torch.linalg import vector_norm
from torch.nn.functional import embedding, pad, silu

from lcm.models.layers import Dropout, LayerCache, Noised, RMSNorm, SwiGLU, TimestepEmbedding, attention, xavier
from lcm.models.transformer import BlockHook, FastLinear, Stack, count_parameters, no_hook


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
            return attention(queries, keys, values, self.mask).flatten(1)
        assert self.mask is not None, "slots of one row see different entries"
        rows, _, slots, _ = self.mask.shape
        queries = q.new_zeros(rows * slots, q.shape[1]).index_copy(0, self.index, q)
        queries = queries.view(rows, slots, heads, -1).transpose(1, 2)
        y = attention(queries, keys, values, self.mask)
        return y.transpose(1, 2).flatten(2).flatten(0, 1)[self.index]


class CrossAttention(nn.Module):
    """Multi-head attention of concepts to the entries of their `Memory`, without positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        xavier(self.q, self.kv, gain=math.sqrt(0.5))
        xavier(self.out)

    def project_kv(self, context: Float[Tensor, "B S M"]) -> LayerCache:
        return LayerCache(*self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4))

    def forward(self, x: Noised, memory: Memory, layer: LayerCache) -> Noised:
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
        xavier(self.self_value, gain=math.sqrt(0.5))
        xavier(self.self_out)
        self.cross = CrossAttention(width, heads)
        self.feed_forward = SwiGLU(width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Noised, modulation: Float[Tensor, "N M9"], memory: Memory, layer: LayerCache) -> Noised:
        shift_s, scale_s, gate_s, shift_c, scale_c, gate_c, shift_f, scale_f, gate_f = modulation.chunk(9, dim=-1)
        self_attn = self.self_out(self.self_value(modulated(self.self_norm(x), shift_s, scale_s)))
        x = addcmul(x, gate_s, self.dropout(self_attn))
        cross_attn = self.cross(modulated(self.cross_norm(x), shift_c, scale_c), memory, layer)
        x = addcmul(x, gate_c, self.dropout(cross_attn))
        feed_forward = self.feed_forward(modulated(self.feed_forward_norm(x), shift_f, scale_f))
        return addcmul(x, gate_f, self.dropout(feed_forward))


def modulated(x: Noised, shift: Noised, scale: Noised) -> Noised:
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
        with_zero = pad(context, (0, 0, 1, 0))
        return [block.cross.project_kv(with_zero) for block in self.layers]

    def forward(
        self, x: Float[Tensor, "N D"], modulations: list[Float[Tensor, "U M9"]], row: Int[Tensor, " N"], memory: Memory
    ) -> Float[Tensor, "N D"]:
        """row: each concept's timestep, as a row of `modulations`."""
        state = self.pre(x).float()
        for block, table, layer in zip(self.layers, modulations, memory.layers, strict=True):
            state = self.run(block, state, embedding(row, table), memory, layer)
        out: Tensor = self.post(self.norm(state)).float()
        return out

    def training_flops(self, slots: int) -> int:
        """Modulations count for nothing: they are computed once a timestep, not once a concept."""
        once = [self.time, *(block.modulator for block in self.layers)]
        return super().training_flops(slots) - 6 * sum(count_parameters(part) for part in once)


@dataclass(frozen=True)
class Norm:
    """x / (√M · rms(x)). The next layer absorbs the rest of an `RMSNorm`, its `folded_scale`."""

    floor: Float[Tensor, ""]
    """√(M · eps): the square of ‖(x, floor)‖ is M · (rms(x)² + eps)."""

    @staticmethod
    def of(norm: RMSNorm) -> "Norm":
        return Norm(norm.weight.new_tensor(math.sqrt(len(norm.weight) * norm.eps), dtype=torch.float32))

    def __call__(self, x: Float[Tensor, "n M"]) -> Float[Tensor, "n M"]:
        return x / vector_norm(x, dim=-1, keepdim=True).hypot(self.floor)


def folded_scale(norm: RMSNorm) -> Float[Tensor, " M"]:
    """The factor between `Norm` and the norm."""
    return norm.weight * math.sqrt(len(norm.weight))


Modulation = tuple[Float[Tensor, " M"], ...]
"""A block's modulation at one timestep: for each of its three parts a shift, a factor of `Norm`, and a gate; and the
gated cross-attention of a concept without context, which sees the zero vector alone."""


@dataclass(frozen=True)
class FastBlock:
    block: DenoiserBlock
    norm: Norm
    self_attn: FastLinear
    cross_q: FastLinear
    cross_out: FastLinear
    gate_and_inner: FastLinear
    down: FastLinear

    @staticmethod
    def of(block: DenoiserBlock) -> "FastBlock":
        value, out = block.self_value, block.self_out
        linears = block.cross.q, block.cross.out, block.feed_forward.gate_and_inner, block.feed_forward.out
        self_attn = FastLinear.of(out.weight @ value.weight, out(value.bias).to(value.bias.dtype))
        fast = [FastLinear.of(linear.weight, linear.bias) for linear in linears]
        return FastBlock(block, Norm.of(block.self_norm), self_attn, *fast)

    def modulations(self, table: Float[Tensor, "U M9"]) -> list[Modulation]:
        """One for each timestep, from the output of the block's modulator."""
        block, parts = self.block, list(table.float().chunk(9, dim=1))
        for number, norm in enumerate((block.self_norm, block.cross_norm, block.feed_forward_norm)):
            parts[3 * number + 1] = (1 + parts[3 * number + 1]) * folded_scale(norm)
        uncond_attn = block.cross.out(block.cross.kv.bias.chunk(2)[1]).float()
        return list(zip(*parts, parts[5] * uncond_attn, strict=True))

    def __call__(
        self, x: Float[Tensor, "n M"], mod: Modulation, memory: Memory, entries: LayerCache, count: int, twice: bool
    ) -> Float[Tensor, "G M"]:
        """The first `count` concepts see their context. The rest, if any, are the same concepts without it."""
        shift_s, factor_s, gate_s, shift_c, factor_c, gate_c, shift_f, factor_f, gate_f, uncond_attn = mod
        x = addcmul(x, gate_s, self.self_attn(addcmul(shift_s, self.norm(x), factor_s)))
        if twice and len(x) == count:
            x = torch.cat([x, x])
        q = self.cross_q(addcmul(shift_c, self.norm(x[:count]), factor_c))
        x[:count].addcmul_(gate_c, self.cross_out(memory.attend(q, entries)))
        x[count:].add_(uncond_attn)
        gate, inner = self.gate_and_inner(addcmul(shift_f, self.norm(x), factor_f)).chunk(2, dim=-1)
        return addcmul(x, gate_f, self.down(silu(gate) * inner))


@dataclass(frozen=True)
class FastDenoiser:
    """A denoiser whose weights must not change while this is used. Keeps the modulations of every schedule."""

    denoiser: Denoiser
    pre: FastLinear
    blocks: list[FastBlock]
    norm: Norm
    post: FastLinear
    schedules: dict[tuple[int, ...], list[tuple[Modulation, ...]]] = field(default_factory=dict)

    @staticmethod
    @torch.no_grad()
    def of(denoiser: Denoiser) -> "FastDenoiser":
        pre, norm, post = denoiser.pre, denoiser.norm, denoiser.post
        blocks = [FastBlock.of(block) for block in denoiser.layers]
        folded = FastLinear.of(post.weight * folded_scale(norm), post.bias)
        return FastDenoiser(denoiser, FastLinear.of(pre.weight, pre.bias), blocks, Norm.of(norm), folded)

    @torch.no_grad()
    def modulations(self, timesteps: Sequence[int]) -> list[tuple[Modulation, ...]]:
        """For each timestep, the modulation of each block."""
        key = tuple(timesteps)
        if key not in self.schedules:
            tables = self.denoiser.modulations(torch.tensor(key, device=self.norm.floor.device))
            by_block = [block.modulations(table) for block, table in zip(self.blocks, tables, strict=True)]
            self.schedules[key] = list(zip(*by_block, strict=True))
        return self.schedules[key]

    @torch.no_grad()
    def __call__(
        self, x: Float[Tensor, "N D"], modulations: Sequence[Modulation], memory: Memory, twice: bool = False
    ) -> Float[Tensor, "G D"]:
        """modulations: of each block at the timestep. twice: denoise with the context, then again without it."""
        state = self.pre(x).float()
        for block, mod, entries in zip(self.blocks, modulations, memory.layers, strict=True):
            state = block(state, mod, memory, entries, len(x), twice)
        return self.post(self.norm(state)).float()
