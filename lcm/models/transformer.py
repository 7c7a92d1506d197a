"""The causal transformer of every model family: RMSNorm, rotary attention, SwiGLU.

Shapes.  B rows · S slots · M model width · H heads · K head width · P pairs of its channels · L slots of a cache
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu
from torch.utils.checkpoint import checkpoint

from lcm.batch import document_mask
from lcm.models.attention import Documents, KVCache, LayerCache, attend

ROPE_THETA = 10_000.0

BlockHook = Callable[[nn.Module], None]
"""Called with each block of a model as soon as it is built, so that a model can be sharded while it is built."""


def no_hook(block: nn.Module) -> None:
    """The `BlockHook` of a rank that holds the whole model."""


class RMSNorm(nn.Module):
    """x / rms(x) · weight, computed and returned in fp32 (Zhang and Sennrich 2019, eq. 4)."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*n M"]) -> Float[Tensor, "*n M"]:
        return rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True)
class Rotation:
    """Rotary position embedding: the angle of each slot for each pair of channels of a query or key."""

    cos: Float[Tensor, "B 1 S P"]
    sin: Float[Tensor, "B 1 S P"]

    @staticmethod
    def of(pos: Int[Tensor, "B S"], head_width: int) -> "Rotation":
        """Pair i is rotated by pos · theta^(-2i/K) (Su et al. 2021, §3.2.2)."""
        pair = torch.arange(0, head_width, 2, device=pos.device, dtype=torch.float32)
        angle = pos[:, None, :, None].float() * ROPE_THETA ** (-pair / head_width)
        return Rotation(angle.cos(), angle.sin())

    def __call__(self, x: Float[Tensor, "B H S K"]) -> Float[Tensor, "B H S K"]:
        """Rotate the interleaved pairs (x[2i], x[2i + 1]), in fp32."""
        pairs = x.float().view(*x.shape[:-1], x.shape[-1] // 2, 2)
        if torch.compiler.is_compiling():  # the compiler fuses this into one pass, and has no complex numbers
            even, odd = pairs.unbind(-1)
            rotated = torch.stack([even * self.cos - odd * self.sin, even * self.sin + odd * self.cos], dim=-1)
        else:
            rotated = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.complex(self.cos, self.sin))
        return rotated.flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions. The mask, or the `Documents`, say which slots see which."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        for linear in (self.qkv, self.out):
            # On the fused matrix this amounts to Xavier with gain 1/√2 for each of q, k and v.
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Float[Tensor, "B S M"],
        rotation: Rotation,
        mask: Bool[Tensor, "B 1 S L"] | Documents,
        cache: tuple[LayerCache, Int[Tensor, "B S"]] | None = None,
    ) -> Float[Tensor, "B S M"]:
        """cache: a layer and slots to write new keys and values to; attention is then to its first L slots."""
        q, k, v = self.project(x, rotation)
        if cache is not None:
            layer, slots = cache
            layer.write(slots, k, v)
            assert isinstance(mask, Tensor), "a cache is read through a mask"
            room = mask.shape[-1]
            k, v = layer.keys[:, :, :room], layer.values[:, :, :room]
        return self.merge(attend(q, k, v, mask))

    def project(self, x: Float[Tensor, "B S M"], rotation: Rotation) -> list[Float[Tensor, "B H S K"]]:
        """Rotated queries, rotated keys, and values."""
        q, k, v = self.split(self.qkv(x))
        return [rotation(q), rotation(k), v]

    def split(self, qkv: Float[Tensor, "B S M3"]) -> Float[Tensor, "3 B H S K"]:
        """Queries, keys and values by head."""
        head_width = qkv.shape[-1] // (3 * self.heads)  # explicit: torch cannot infer it from a batch without rows
        return qkv.view(*qkv.shape[:2], 3, self.heads, head_width).permute(2, 0, 3, 1, 4)

    def merge(self, y: Float[Tensor, "B H S K"]) -> Float[Tensor, "B S M"]:
        """The output projection of all heads."""
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


def feed_forward_width(width: int) -> int:
    """Two thirds of 4 · width, so that three matrices cost as much as two, rounded up to a multiple of 256."""
    return 256 * math.ceil(int(4 * width * 2 / 3) / 256)


class SwiGLU(nn.Module):
    """out(silu(gate(x)) · inner(x)) (Shazeer 2020, eq. 6), with biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = feed_forward_width(width)
        self.gate_and_inner = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*n M"]) -> Float[Tensor, "*n M"]:
        gate, inner = self.gate_and_inner(x).chunk(2, dim=-1)
        return self.out(silu(gate) * inner)


class Dropout(nn.Dropout):
    """Dropout from 16 random bits a number on a CPU, p rounded to 1/65536: torch draws doubles, in a single thread."""

    def forward(self, input: Float[Tensor, "*n M"]) -> Float[Tensor, "*n M"]:
        if not self.training or not self.p or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        threshold = min(round(self.p * 2**16), 2**16 - 1)
        bits = torch.empty(-(-input.numel() // 4), dtype=torch.long).random_(-(2**63), None)
        kept = bits.view(torch.int16)[: input.numel()].view(input.shape) >= threshold - 2**15
        return input * kept.to(input.dtype).mul_(2**16 / (2**16 - threshold))


class Block(nn.Module):
    """A pre-norm transformer block: attention, then a feed-forward network, each with dropout and a residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward_norm = RMSNorm(width)
        self.feed_forward = SwiGLU(width)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B S M"],
        rotation: Rotation,
        mask: Bool[Tensor, "B 1 S L"] | Documents,
        cache: tuple[LayerCache, Int[Tensor, "B S"]] | None = None,
    ) -> Float[Tensor, "B S M"]:
        h = x + self.dropout(self.attention(self.attention_norm(x), rotation, mask, cache))
        return self.finish(h)

    def finish(self, h: Float[Tensor, "*n M"]) -> Float[Tensor, "*n M"]:
        """The second half of the block."""
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
        """Call one of the blocks."""
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
        weight, device = self.norm.weight, self.norm.weight.device.type
        shape = (rows, self.heads, slots, len(weight) // self.heads)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        layers = [LayerCache(*weight.new_zeros((2, *shape), dtype=dtype)) for _ in self.blocks]
        return KVCache(layers, weight.new_zeros(rows, dtype=torch.long))

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

    def forward(
        self, x: Float[Tensor, "B S M"], doc: Int[Tensor, "B S"], pos: Int[Tensor, "B S"]
    ) -> Float[Tensor, "B S M"]:
        """The state of each slot, a function of its own document up to and including that slot.

        States of empty slots are finite and otherwise undefined.
        """
        if not self.runs_per_document(doc):
            return self._run_blocks(x, pos, document_mask(doc).unsqueeze(1))
        documents = Documents.of(doc)
        index = documents.index
        states = self._run_blocks(x.flatten(0, 1)[None, index], pos.flatten()[None, index], documents)
        return states.new_zeros(x.flatten(0, 1).shape).index_copy(0, index, states[0]).view(x.shape)

    def _run_blocks(
        self, x: Float[Tensor, "B S M"], pos: Int[Tensor, "B S"], mask: Bool[Tensor, "B 1 S S"] | Documents
    ) -> Float[Tensor, "B S M"]:
        rotation = Rotation.of(pos, x.shape[-1] // self.heads)
        x = x.float()
        for block in self.blocks:
            x = self.run(block, x, rotation, mask)
        return self.norm(x)

    def extend(
        self, x: Float[Tensor, "B S M"], cache: KVCache, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B S M"], KVCache]:
        """Append S slots to each row, of which row i keeps the first lengths[i] (default: all).

        Returns the state of each slot and the longer cache. The old cache must not be used again: both share memory.
        """
        new = torch.arange(x.shape[1], device=x.device)
        pos = cache.lengths[:, None] + new
        longest = int(pos.max()) + 1
        cache = cache.reserve(longest)
        # Slots that a row does not keep come after those it keeps: the causal mask hides them until overwritten.
        mask = (torch.arange(longest, device=x.device) <= pos[:, :, None]).unsqueeze(1)
        rotation = Rotation.of(pos, x.shape[-1] // self.heads)
        x = x.float()
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x = block(x, rotation, mask, (layer, pos))
        used = lengths if lengths is not None else torch.full_like(cache.lengths, x.shape[1])
        return self.norm(x), KVCache(cache.layers, cache.lengths + used)
