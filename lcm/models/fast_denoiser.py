"""The denoiser with its weights laid out for sampling: many steps of a few concepts, without gradients.

Shapes.  N concepts to denoise · G N, or 2N where they are denoised without their context as well · D concept width
         M model width · U timesteps

A step of a few concepts takes as long as reading the weights. So they lie in the order that is quickest for few rows,
and less is read and done than in `Denoiser.forward`, at equal mathematics: attention to oneself is one matrix, the
product of two; attention to the zero vector alone is one vector, and needs no queries; a concept with its context and
without it is one until the context is first seen; a norm and its modulation are one factor and one shift.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, addcmul
from torch.linalg import vector_norm
from torch.nn.functional import silu

from lcm.models.denoiser import Denoiser, DenoiserBlock, Memory
from lcm.models.fast_linear import Product
from lcm.models.transformer import LayerCache, RMSNorm


@dataclass(frozen=True)
class Norm:
    """x / rms(x) without its weight and without √M, which are in what the result is multiplied with."""

    floor: Float[Tensor, ""]
    """√(M · eps): M · (rms² + eps) is the square of ‖(x, floor)‖."""

    @staticmethod
    def of(norm: RMSNorm) -> "Norm":
        return Norm(norm.weight.new_tensor(math.sqrt(len(norm.weight) * norm.eps), dtype=torch.float32))

    def __call__(self, x: Float[Tensor, "n M"]) -> Float[Tensor, "n M"]:
        return x / vector_norm(x, dim=-1, keepdim=True).hypot(self.floor)


def left_out(norm: RMSNorm) -> Float[Tensor, " M"]:
    """What `Norm` leaves to what comes after it."""
    return norm.weight * math.sqrt(len(norm.weight))


class Modulation(NamedTuple):
    """Of a layer at a timestep: a shift, a factor of what `Norm` returns, and a gate for each of its three parts."""

    shift_s: Float[Tensor, " M"]
    factor_s: Float[Tensor, " M"]
    gate_s: Float[Tensor, " M"]
    shift_c: Float[Tensor, " M"]
    factor_c: Float[Tensor, " M"]
    gate_c: Float[Tensor, " M"]
    shift_f: Float[Tensor, " M"]
    factor_f: Float[Tensor, " M"]
    gate_f: Float[Tensor, " M"]
    nothing: Float[Tensor, " M"]
    """What cross-attention adds where the zero vector alone is seen."""


@dataclass(frozen=True)
class Layer:
    """A `DenoiserBlock`. nothing: the answer of cross-attention where the zero vector alone is seen."""

    norm: Norm
    itself: Product
    q: Product
    out: Product
    nothing: Float[Tensor, " M"]
    gate_and_inner: Product
    down: Product

    @staticmethod
    def of(block: DenoiserBlock) -> "Layer":
        cross, network, value, out = block.cross, block.feed_forward, block.self_value, block.self_out
        return Layer(
            Norm.of(block.self_norm),
            Product.of(out.weight @ value.weight, out(value.bias).to(value.bias.dtype)),
            Product.of(cross.q.weight, cross.q.bias),
            Product.of(cross.out.weight, cross.out.bias),
            cross.out(cross.kv.bias.chunk(2)[1]).float(),
            Product.of(network.gate_and_inner.weight, network.gate_and_inner.bias),
            Product.of(network.out.weight, network.out.bias),
        )

    def modulations(self, block: DenoiserBlock, rows: Float[Tensor, "U M9"]) -> list[Modulation]:
        """For each timestep, from what the block's modulator says of it."""
        parts = list(rows.float().chunk(9, dim=1))
        for number, norm in enumerate((block.self_norm, block.cross_norm, block.feed_forward_norm)):
            parts[3 * number + 1] = (1 + parts[3 * number + 1]) * left_out(norm)
        return [Modulation(*of_one) for of_one in zip(*parts, parts[5] * self.nothing, strict=True)]

    def __call__(
        self, x: Float[Tensor, "n M"], by: Modulation, memory: Memory, entries: LayerCache, count: int, twice: bool
    ) -> Float[Tensor, "G M"]:
        """The first `count` concepts see their context; those after them are the same without it."""
        x = addcmul(x, by.gate_s, self.itself(addcmul(by.shift_s, self.norm(x), by.factor_s)))
        if twice and len(x) == count:
            x = torch.cat([x, x])
        q = self.q(addcmul(by.shift_c, self.norm(x[:count]), by.factor_c))
        x[:count].addcmul_(by.gate_c, self.out(memory.seen_by(q, entries)))
        x[count:].add_(by.nothing)
        gate, inner = self.gate_and_inner(addcmul(by.shift_f, self.norm(x), by.factor_f)).chunk(2, dim=-1)
        return addcmul(x, by.gate_f, self.down(silu(gate) * inner))


@dataclass(frozen=True)
class DenoisingStep:
    """Of a denoiser, whose weights must not change while this is used. Keeps the modulations of every schedule."""

    denoiser: Denoiser
    pre: Product
    layers: Sequence[Layer]
    norm: Norm
    post: Product
    schedules: dict[tuple[int, ...], list[tuple[Modulation, ...]]] = field(default_factory=dict)

    @staticmethod
    @torch.no_grad()
    def of(denoiser: Denoiser) -> "DenoisingStep":
        pre, norm, post = denoiser.pre, denoiser.norm, denoiser.post
        return DenoisingStep(
            denoiser,
            Product.of(pre.weight, pre.bias),
            [Layer.of(block) for block in denoiser.layers],
            Norm.of(norm),
            Product.of(post.weight * left_out(norm), post.bias),
        )

    @torch.no_grad()
    def modulations(self, timesteps: Sequence[int]) -> list[tuple[Modulation, ...]]:
        """For each timestep, of each layer."""
        key = tuple(timesteps)
        if key not in self.schedules:
            rows = self.denoiser.modulations(torch.tensor(key, device=self.norm.floor.device))
            layers = zip(self.layers, self.denoiser.layers, rows, strict=True)
            self.schedules[key] = list(zip(*(layer.modulations(block, of) for layer, block, of in layers), strict=True))
        return self.schedules[key]

    @torch.no_grad()
    def __call__(
        self, x: Float[Tensor, "N D"], modulations: Sequence[Modulation], memory: Memory, twice: bool = False
    ) -> Float[Tensor, "G D"]:
        """modulations: of each layer at the timestep. twice: with their context, and after these without it."""
        state = self.pre(x).float()
        for layer, by, entries in zip(self.layers, modulations, memory.layers, strict=True):
            state = layer(state, by, memory, entries, len(x), twice)
        return self.post(self.norm(state)).float()
