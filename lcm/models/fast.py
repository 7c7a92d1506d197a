"""Layers and the denoiser with weights laid out for few rows, without gradients: for generation and sampling.

Shapes.  n rows · N concepts to denoise · G N, or 2N for the concepts with their context and then without it
         D concept width · M model width · U timesteps

A step of few concepts is bound by reading the weights. So these are kept in oneDNN's packed layout, and the denoiser
reads fewer than `Denoiser.forward`, at equal mathematics: self-attention is one matrix, the product of two; attention
to the zero vector alone is one vector, and needs no queries; a concept with and without its context is computed once
until the first cross-attention; a norm and its modulation are one factor and one shift.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, addcmul, nn
from torch.linalg import vector_norm
from torch.nn.functional import linear, silu

from lcm.models.attention import LayerCache
from lcm.models.denoiser import Denoiser, DenoiserBlock, Memory
from lcm.models.transformer import RMSNorm


@dataclass(frozen=True)
class FastLinear:
    """x → x · weightᵀ + bias, in the precision of the autocast it was built under."""

    weight: Float[Tensor, "to of"]
    bias: Float[Tensor, " to"]

    @staticmethod
    def of(weight: Float[Tensor, "to of"], bias: Float[Tensor, " to"]) -> "FastLinear":
        device = weight.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            return FastLinear(weight.to(dtype), bias.to(dtype))
        if prefer_packed(weight):
            return FastLinear(torch.ops.mkldnn._reorder_linear_weight(weight.detach()), bias)
        return FastLinear(weight, bias)

    def __call__(self, x: Float[Tensor, "*n of"]) -> Float[Tensor, "*n to"]:
        x = x.to(self.weight.dtype)
        if not self.weight.is_mkldnn:
            return linear(x, self.weight, self.bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
        return y


class PackedLinear(nn.Linear):
    """A linear layer with a packed copy of its weights."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = linear.weight, linear.bias
        self.fast = FastLinear.of(linear.weight, linear.bias)

    def forward(self, input: Float[Tensor, "*n of"]) -> Float[Tensor, "*n to"]:
        return self.fast(input)


M = TypeVar("M", bound=nn.Module)


def with_packed_weights(module: M) -> M:
    """A twin of the module for few rows, without gradients; its linear layers have packed copies of their weights.

    It must not be used after the weights change. The module itself, if packing does not help here.
    """
    weight = next(module.parameters())
    if torch.is_autocast_enabled(weight.device.type) or not prefer_packed(weight):
        return module
    return _twin(module)


def _twin(module: M) -> M:
    twin = copy.copy(module)
    parts = module._modules.items()
    twin._modules = {name: PackedLinear(p) if isinstance(p, nn.Linear) else p and _twin(p) for name, p in parts}
    return twin


def prefer_packed(weight: Tensor) -> bool:
    """True for fp32 weights on a CPU."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and can_pack()


def can_pack() -> bool:
    """True if this build of torch has the operators of oneDNN's packed layout."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's own
    return available and all(hasattr(torch.ops.mkldnn, name) for name in names)


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


class Modulation(NamedTuple):
    """A block's modulation at one timestep: for each of its three parts a shift, a factor of `Norm`, and a gate."""

    shift_s: Float[Tensor, " M"]
    factor_s: Float[Tensor, " M"]
    gate_s: Float[Tensor, " M"]
    shift_c: Float[Tensor, " M"]
    factor_c: Float[Tensor, " M"]
    gate_c: Float[Tensor, " M"]
    shift_f: Float[Tensor, " M"]
    factor_f: Float[Tensor, " M"]
    gate_f: Float[Tensor, " M"]
    uncond_attn: Float[Tensor, " M"]
    """The gated cross-attention of a concept without context, which sees the zero vector alone."""


@dataclass(frozen=True)
class FastBlock:
    """A `DenoiserBlock`. uncond_attn: its cross-attention to the zero vector alone."""

    norm: Norm
    self_attn: FastLinear
    cross_q: FastLinear
    cross_out: FastLinear
    uncond_attn: Float[Tensor, " M"]
    gate_and_inner: FastLinear
    down: FastLinear

    @staticmethod
    def of(block: DenoiserBlock) -> "FastBlock":
        cross, network, value, out = block.cross, block.feed_forward, block.self_value, block.self_out
        return FastBlock(
            Norm.of(block.self_norm),
            FastLinear.of(out.weight @ value.weight, out(value.bias).to(value.bias.dtype)),
            FastLinear.of(cross.q.weight, cross.q.bias),
            FastLinear.of(cross.out.weight, cross.out.bias),
            cross.out(cross.kv.bias.chunk(2)[1]).float(),
            FastLinear.of(network.gate_and_inner.weight, network.gate_and_inner.bias),
            FastLinear.of(network.out.weight, network.out.bias),
        )

    def modulations(self, block: DenoiserBlock, table: Float[Tensor, "U M9"]) -> list[Modulation]:
        """One for each timestep, from the output of the block's modulator."""
        parts = list(table.float().chunk(9, dim=1))
        for number, norm in enumerate((block.self_norm, block.cross_norm, block.feed_forward_norm)):
            parts[3 * number + 1] = (1 + parts[3 * number + 1]) * folded_scale(norm)
        return [Modulation(*timestep) for timestep in zip(*parts, parts[5] * self.uncond_attn, strict=True)]

    def __call__(
        self, x: Float[Tensor, "n M"], mod: Modulation, memory: Memory, entries: LayerCache, count: int, twice: bool
    ) -> Float[Tensor, "G M"]:
        """The first `count` concepts see their context. The rest, if any, are the same concepts without it."""
        x = addcmul(x, mod.gate_s, self.self_attn(addcmul(mod.shift_s, self.norm(x), mod.factor_s)))
        if twice and len(x) == count:
            x = torch.cat([x, x])
        q = self.cross_q(addcmul(mod.shift_c, self.norm(x[:count]), mod.factor_c))
        x[:count].addcmul_(mod.gate_c, self.cross_out(memory.attend(q, entries)))
        x[count:].add_(mod.uncond_attn)
        gate, inner = self.gate_and_inner(addcmul(mod.shift_f, self.norm(x), mod.factor_f)).chunk(2, dim=-1)
        return addcmul(x, mod.gate_f, self.down(silu(gate) * inner))


@dataclass(frozen=True)
class FastDenoiser:
    """A denoiser whose weights must not change while this is used. Keeps the modulations of every schedule."""

    denoiser: Denoiser
    pre: FastLinear
    blocks: Sequence[FastBlock]
    norm: Norm
    post: FastLinear
    schedules: dict[tuple[int, ...], list[tuple[Modulation, ...]]] = field(default_factory=dict)

    @staticmethod
    @torch.no_grad()
    def of(denoiser: Denoiser) -> "FastDenoiser":
        pre, norm, post = denoiser.pre, denoiser.norm, denoiser.post
        return FastDenoiser(
            denoiser,
            FastLinear.of(pre.weight, pre.bias),
            [FastBlock.of(block) for block in denoiser.layers],
            Norm.of(norm),
            FastLinear.of(post.weight * folded_scale(norm), post.bias),
        )

    @torch.no_grad()
    def modulations(self, timesteps: Sequence[int]) -> list[tuple[Modulation, ...]]:
        """For each timestep, the modulation of each block."""
        key = tuple(timesteps)
        if key not in self.schedules:
            tables = self.denoiser.modulations(torch.tensor(key, device=self.norm.floor.device))
            parts = zip(self.blocks, self.denoiser.layers, tables, strict=True)
            by_block = [fast.modulations(block, table) for fast, block, table in parts]
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
