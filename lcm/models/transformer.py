"""The causal transformer of every model family, and a twin of it with weights laid out for few rows.

Shapes.  B rows · S slots · M model width · L slots of a cache

A step of generation is bound by reading the weights. So it uses a twin, without gradients, whose weights are in
oneDNN's packed layout (`with_packed_weights`).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from lcm.batch import document_mask
from lcm.models.layers import Attention, Documents, Dropout, KVCache, Mask, RMSNorm, Rotation, Slots, States, SwiGLU

BlockHook = Callable[[nn.Module], None]
"""Called with each block of a model as soon as it is built, so that a model can be sharded while it is built."""


def no_hook(block: nn.Module) -> None:
    """The `BlockHook` of a rank that holds the whole model."""


class Block(nn.Module):
    """A pre-norm transformer block: attention, then a feed-forward network, each with dropout and a residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward_norm = RMSNorm(width)
        self.feed_forward = SwiGLU(width)
        self.dropout = Dropout(dropout)

    def forward(self, x: States, rotation: Rotation, mask: Mask, cache: Slots | None = None) -> States:
        h = x + self.dropout(self.attention(self.attention_norm(x), rotation, mask, cache))
        return self.finish(h)

    def finish(self, h: Float[Tensor, "*n M"]) -> Float[Tensor, "*n M"]:
        out: Tensor = h + self.dropout(self.feed_forward(self.feed_forward_norm(h)))
        return out


class Stack(nn.Module):
    """Blocks and a final norm: the part of a model that is sharded, compiled and recomputed block by block."""

    heads: int
    blocks: nn.ModuleList
    norm: RMSNorm
    recompute = False
    """Recompute each block in the backward pass instead of keeping its activations; dropout is replayed."""
    dense_mask = False
    """Attend over whole rows under a mask on every device, as on a GPU, never document by document."""

    def run(self, block: nn.Module, *inputs: Any) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def runs_per_document(self, doc: Int[Tensor, "B S"]) -> bool:
        """True on an eager CPU: many small products beat one masked pass. torch.compile would recompile every batch."""
        # The attribute is where `Module.compile` keeps its result; torch has no public way to ask.
        compiled = torch.compiler.is_compiling() or any(b._compiled_call_impl is not None for b in self.blocks)
        return doc.device.type == "cpu" and not self.dense_mask and not compiled

    def empty_cache(self, rows: int, slots: int) -> KVCache:
        """A cache of `rows` empty rows, each with room for `slots` concepts."""
        weight = self.norm.weight
        return KVCache.empty(len(self.blocks), (rows, self.heads, slots, len(weight) // self.heads), weight)

    def training_flops(self, slots: int) -> int:
        """Operations of one concept, forward and backward: 6 a parameter, 12 · width · slots a block's attention."""
        attention = 12 * len(self.norm.weight) * slots * len(self.blocks)
        return 6 * count_parameters(self) + attention


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class Transformer(Stack):
    """Blocks and a final norm (paper §2.4.1). Under autocast the products are bf16, the residual stream stays fp32."""

    def __init__(self, width: int, heads: int, layers: int, dropout: float, on_block: BlockHook = no_hook) -> None:
        super().__init__()
        self.heads = heads
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            on_block(block := Block(width, heads, dropout))
            self.blocks.append(block)
        self.norm = RMSNorm(width)

    def forward(self, x: States, doc: Int[Tensor, "B S"], pos: Int[Tensor, "B S"]) -> States:
        """The state of each slot, a function of its own document up to and including that slot.

        States of empty slots are finite and otherwise undefined.
        """
        if not self.runs_per_document(doc):
            return self._run_blocks(x, pos, document_mask(doc).unsqueeze(1))
        documents = Documents.of(doc)
        index = documents.index
        states = self._run_blocks(x.flatten(0, 1)[None, index], pos.flatten()[None, index], documents)
        return states.new_zeros(x.flatten(0, 1).shape).index_copy(0, index, states[0]).view(x.shape)

    def _run_blocks(self, x: States, pos: Int[Tensor, "B S"], mask: Mask) -> States:
        rotation = Rotation.of(pos, x.shape[-1] // self.heads)
        x = x.float()
        for block in self.blocks:
            x = self.run(block, x, rotation, mask)
        return self.norm(x)

    def extend(self, x: States, cache: KVCache, lengths: Int[Tensor, " B"] | None = None) -> tuple[States, KVCache]:
        """Append S slots to each row, which keeps the first lengths[i] (default: all); the states and the longer cache.

        The old cache must not be used again: both share memory.
        """
        cache, slots, mask = cache.extended(x.shape[1], lengths)
        rotation = Rotation.of(slots, x.shape[-1] // self.heads)
        x = x.float()
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x = block(x, rotation, mask, (layer, slots))
        return self.norm(x), cache


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
