"""The causal transformer that every model family is built from: RMSNorm, rotary attention, SwiGLU, key/value cache.

Shapes.  B rows · S slots · M model width · H heads · K head width · P pairs of its channels
         L slots of a cache
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad, rms_norm, silu
from torch.utils.checkpoint import checkpoint

from lcm.batch import document_mask
from lcm.models.packed_attention import Documents, attend, prefer_per_document

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
    """The angles by which each slot's queries and keys are turned: one for each pair of channels."""

    cos: Float[Tensor, "B 1 S P"]
    sin: Float[Tensor, "B 1 S P"]

    @staticmethod
    def of(pos: Int[Tensor, "B S"], head_width: int) -> "Rotation":
        """Pair i turns by pos · theta^(-2i/K) (Su et al. 2021, §3.2.2)."""
        pair = torch.arange(0, head_width, 2, device=pos.device, dtype=torch.float32)
        angle = pos[:, None, :, None].float() * ROPE_THETA ** (-pair / head_width)
        return Rotation(angle.cos(), angle.sin())

    def __call__(self, x: Float[Tensor, "B H S K"]) -> Float[Tensor, "B H S K"]:
        """Turn the interleaved pairs (x[2i], x[2i + 1]), in fp32."""
        pairs = x.float().view(*x.shape[:-1], x.shape[-1] // 2, 2)
        if torch.compiler.is_compiling():  # which makes one pass of this, and knows no complex numbers
            even, odd = pairs.unbind(-1)
            turned = torch.stack([even * self.cos - odd * self.sin, even * self.sin + odd * self.cos], dim=-1)
        else:
            turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.complex(self.cos, self.sin))
        return turned.flatten(-2).to(x.dtype)


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, written in place. Slots beyond a row's length hold nothing of meaning."""

    keys: Float[Tensor, "B H L K"]
    values: Float[Tensor, "B H L K"]

    def write(self, at: Int[Tensor, "B S"], keys: Float[Tensor, "B H S K"], values: Float[Tensor, "B H S K"]) -> None:
        rows = torch.arange(len(at), device=at.device)[:, None]
        self.keys[rows, :, at] = keys.transpose(1, 2)
        self.values[rows, :, at] = values.transpose(1, 2)

    def select(self, rows: Int[Tensor, " R"]) -> "LayerCache":
        return LayerCache(self.keys[rows], self.values[rows])

    def grown(self, slots: int) -> "LayerCache":
        room = (0, 0, 0, slots - self.keys.shape[2])
        return LayerCache(pad(self.keys, room), pad(self.values, room))


@dataclass(frozen=True)
class Cache:
    """What a transformer remembers of B rows of different lengths."""

    layers: Sequence[LayerCache]
    lengths: Int[Tensor, " B"]

    def select(self, rows: Int[Tensor, " R"]) -> "Cache":
        """A copy for these rows, in this order; rows may be dropped and repeated."""
        return Cache([layer.select(rows) for layer in self.layers], self.lengths[rows])

    def reserve(self, slots: int) -> "Cache":
        """The same cache with room for at least `slots` concepts a row; doubles, so that growing stays cheap."""
        room = self.layers[0].keys.shape[2]
        if slots <= room:
            return self
        return Cache([layer.grown(max(slots, 2 * room)) for layer in self.layers], self.lengths)


class Attention(nn.Module):
    """Causal self-attention with rotary positions; the mask says which slots belong together."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        for linear in (self.qkv, self.out):
            # On the fused matrix this is Xavier with gain 1/√2 for each of q, k and v.
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Float[Tensor, "B S M"],
        rotation: Rotation,
        mask: Bool[Tensor, "B 1 S L"] | Documents,
        cache: tuple[LayerCache, Int[Tensor, "B S"]] | None = None,
    ) -> Float[Tensor, "B S M"]:
        """With a cache, keys and values are first written into its slots; as many as the mask has are attended to."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotation(q), rotation(k)
        if cache is not None:
            layer, slots = cache
            layer.write(slots, k, v)
            assert isinstance(mask, Tensor), "a cache is seen through a mask"
            room = mask.shape[-1]
            k, v = layer.keys[:, :, :room], layer.values[:, :, :room]
        return self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))


def feed_forward_width(width: int) -> int:
    """Two thirds of 4 · width, so that three matrices cost what two did, rounded up to a multiple of 256."""
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
    """torch's, but on a CPU from 16 random bits a number: p to 1/65536. torch draws a double each, in one thread."""

    def forward(self, input: Float[Tensor, "*n M"]) -> Float[Tensor, "*n M"]:
        if not self.training or not self.p or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        lost = min(round(self.p * 2**16), 2**16 - 1)
        drawn = torch.empty(-(-input.numel() // 4), dtype=torch.long).random_(-(2**63), None)
        kept = drawn.view(torch.int16)[: input.numel()].view(input.shape) >= lost - 2**15
        return input * kept.to(input.dtype).mul_(2**16 / (2**16 - lost))


class Block(nn.Module):
    """x + dropout(attention(norm(x))), then the same with the feed-forward network (pre-norm)."""

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
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation, mask, cache))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


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
        return not self.dense_mask and prefer_per_document(doc, self.blocks)

    def empty_cache(self, rows: int, slots: int) -> Cache:
        """A cache of `rows` empty rows, each with room for `slots` concepts."""
        weight, device = self.norm.weight, self.norm.weight.device.type
        shape = (rows, self.heads, slots, len(weight) // self.heads)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        layers = [LayerCache(*weight.new_zeros((2, *shape), dtype=dtype)) for _ in self.blocks]
        return Cache(layers, weight.new_zeros(rows, dtype=torch.long))

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
        """The state after each slot, which has seen its own document up to and including that slot.

        After an empty slot there is none: whatever is returned there is finite.
        """
        if not self.runs_per_document(doc):
            return self._through(x, pos, document_mask(doc).unsqueeze(1))
        documents = Documents.of(doc)
        here = documents.index
        state = self._through(x.flatten(0, 1)[None, here], pos.flatten()[None, here], documents)
        return state.new_zeros(x.flatten(0, 1).shape).index_copy(0, here, state[0]).view(x.shape)

    def _through(
        self, x: Float[Tensor, "B S M"], pos: Int[Tensor, "B S"], mask: Bool[Tensor, "B 1 S S"] | Documents
    ) -> Float[Tensor, "B S M"]:
        rotation = Rotation.of(pos, x.shape[-1] // self.heads)
        x = x.float()
        for block in self.blocks:
            x = self.run(block, x, rotation, mask)
        return self.norm(x)

    def extend(
        self, x: Float[Tensor, "B S M"], cache: Cache, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B S M"], Cache]:
        """S more slots a row, of which row i uses the first lengths[i] (default: all). Takes the cache over.

        Returns the state after each slot and the longer cache; the given one must not be used again, because
        both share memory.
        """
        new = torch.arange(x.shape[1], device=x.device)
        pos = cache.lengths[:, None] + new
        longest = int(pos.max()) + 1
        cache = cache.reserve(longest)
        # Unused slots lie after the used ones, so the causal mask hides them until they are overwritten.
        mask = (torch.arange(longest, device=x.device) <= pos[:, :, None]).unsqueeze(1)
        rotation = Rotation.of(pos, x.shape[-1] // self.heads)
        x = x.float()
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x = block(x, rotation, mask, (layer, pos))
        used = lengths if lengths is not None else torch.full_like(cache.lengths, x.shape[1])
        return self.norm(x), Cache(cache.layers, cache.lengths + used)
