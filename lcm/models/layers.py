"""The layers of every network: RMSNorm, rotary attention over documents or a cache, SwiGLU, dropout, timesteps.

Shapes.  B rows · S slots · M model width · H heads · K head width · P pairs of its channels · L slots of a cache
         N slots that are not empty · R selected rows · U timesteps; lists have one entry for each document length n
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import pad, rms_norm, scaled_dot_product_attention, silu

from lcm.batch import PAD

States = Float[Tensor, "B S M"]
"""The state of every slot."""
Noised = Float[Tensor, "_ M"]
"""The states of concepts that are predicted beside their context, of some slots only."""
Heads = Float[Tensor, "B H S K"]
"""Queries, keys or values of every slot, by head."""
ROPE_THETA = 10_000.0
FREQUENCIES = 128


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

    def __call__(self, x: Heads) -> Heads:
        """Rotate the interleaved pairs (x[2i], x[2i + 1]), in fp32."""
        pairs = x.float().view(*x.shape[:-1], x.shape[-1] // 2, 2)
        if torch.compiler.is_compiling():  # the compiler fuses this into one pass, and has no complex numbers
            even, odd = pairs.unbind(-1)
            rotated = torch.stack([even * self.cos - odd * self.sin, even * self.sin + odd * self.cos], dim=-1)
        else:
            rotated = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.complex(self.cos, self.sin))
        return rotated.flatten(-2).to(x.dtype)


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, written in place. Slots beyond a row's length are undefined."""

    keys: Float[Tensor, "B H L K"]
    values: Float[Tensor, "B H L K"]

    def write(self, at: Int[Tensor, "B S"], new: "LayerCache") -> None:
        rows = torch.arange(len(at), device=at.device)[:, None]
        self.keys[rows, :, at] = new.keys.transpose(1, 2)
        self.values[rows, :, at] = new.values.transpose(1, 2)

    def first(self, slots: int) -> "LayerCache":
        return LayerCache(self.keys[:, :, :slots], self.values[:, :, :slots])

    def grown(self, slots: int) -> "LayerCache":
        """A copy with room for `slots` slots."""
        room = (0, 0, 0, slots - self.keys.shape[2])
        return LayerCache(pad(self.keys, room), pad(self.values, room))


@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, for B rows of different lengths."""

    layers: list[LayerCache]
    lengths: Int[Tensor, " B"]

    @staticmethod
    def empty(layers: int, shape: tuple[int, int, int, int], like: Tensor) -> "KVCache":
        """A cache of empty rows. shape: (B, H, L, K) of a layer. like: gives device and, outside autocast, dtype."""
        device = like.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype
        caches = [LayerCache(*like.new_zeros((2, *shape), dtype=dtype)) for _ in range(layers)]
        return KVCache(caches, like.new_zeros(shape[0], dtype=torch.long))

    def select(self, rows: Int[Tensor, " R"]) -> "KVCache":
        """A copy of these rows, in this order; rows may be dropped and repeated."""
        return KVCache([LayerCache(layer.keys[rows], layer.values[rows]) for layer in self.layers], self.lengths[rows])

    def extended(
        self, slots: int, kept: Int[Tensor, " B"] | None = None
    ) -> tuple["KVCache", Int[Tensor, "B slots"], Bool[Tensor, "B 1 slots L"]]:
        """The cache with more slots a row, the places where they are to be written, and their causal mask.

        Room doubles, so that growing stays cheap.

        kept: how many of its new slots each row keeps, the first (default: all); the next ones overwrite the others
        """
        at = self.lengths[:, None] + torch.arange(slots, device=self.lengths.device)
        longest, room = int(at.max()) + 1, self.layers[0].keys.shape[2]
        mask = torch.arange(longest, device=at.device) <= at[:, :, None]
        layers = self.layers if longest <= room else [layer.grown(max(longest, 2 * room)) for layer in self.layers]
        return KVCache(layers, self.lengths + (slots if kept is None else kept)), at, mask.unsqueeze(1)

    def filled(self) -> tuple[list[LayerCache], Bool[Tensor, "B 1 1 L"]]:
        """The layers up to the end of the longest row, and the slots that each row has filled."""
        longest = int(self.lengths.max())
        mask = torch.arange(longest, device=self.lengths.device) < self.lengths[:, None]
        return [layer.first(longest) for layer in self.layers], mask[:, None, None]


@dataclass(frozen=True)
class Documents:
    """The slots of a batch that are not empty, in one row, document after document, shortest documents first.

    Computes nothing for an empty slot, and no score across documents.

    index:  the slots, counted over all rows of the batch
    groups: (number of documents, their length), for each length
    """

    index: Int[Tensor, " N"]
    groups: list[tuple[int, int]]

    @staticmethod
    def of(doc: Int[Tensor, "B S"]) -> "Documents":
        number = doc + torch.arange(len(doc), device=doc.device)[:, None] * (int(doc.max()) + 1)
        index = (doc.flatten() != PAD).nonzero()[:, 0]
        _, number, lengths = torch.unique(number.flatten()[index], return_inverse=True, return_counts=True)
        order = (lengths[number] * len(index) + number).argsort(stable=True)
        length, count = (part.tolist() for part in torch.unique(lengths, return_counts=True))
        return Documents(index[order], list(zip(count, length, strict=True)) or [(0, 1)])

    def split(self, x: Shaped[Tensor, "N ..."]) -> list[Shaped[Tensor, "_ _ ..."]]:
        """One (documents, n, …) tensor for each length n."""
        parts = torch.split(x, [count * length for count, length in self.groups])
        return [part.view(*group, *x.shape[1:]) for part, group in zip(parts, self.groups, strict=True)]

    def unpack(self, x: Float[Tensor, "1 H N K"]) -> list[Float[Tensor, "_ H _ K"]]:
        """One (documents, H, n, K) tensor for each length n."""
        return [part.transpose(1, 2) for part in self.split(x[0].transpose(0, 1))]

    def pack(self, parts: Sequence[Float[Tensor, "_ H _ K"]]) -> Float[Tensor, "1 H N K"]:
        """The inverse of `unpack`."""
        return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts]).transpose(0, 1).unsqueeze(0)


Slots = tuple[LayerCache, Int[Tensor, "B S"]]
"""The slots of a layer's cache to write new keys and values to."""
Mask = Bool[Tensor, "B 1 S L"] | Documents
"""The slots that each slot attends to: those of a mask, or its own document up to and including itself."""


def attend(q: Heads, k: Float[Tensor, "B H L K"], v: Float[Tensor, "B H L K"], mask: Mask) -> Heads:
    if isinstance(mask, Tensor):
        return attention(q, k, v, mask)
    parts = zip(mask.unpack(q), mask.unpack(k), mask.unpack(v), strict=True)
    return mask.pack([attention(*part, causal=True) for part in parts])


def attention(
    q: Heads,
    k: Float[Tensor, "B H L K"],
    v: Float[Tensor, "B H L K"],
    mask: Bool[Tensor, "B 1 #S L"] | None = None,
    causal: bool = False,
) -> Heads:
    """torch's fused attention; in fp32 where a CPU would train in bf16.

    There both passes take 3.8 ms in bf16, and 0.4 ms in fp32, for 20 documents of 9 concepts with 4 heads of 64.
    """
    slow = q.dtype == torch.bfloat16 and q.device.type == "cpu" and torch.is_grad_enabled()
    if slow and not isinstance(q, FakeTensor):  # a fake tensor stands for a GPU's, in a simulation
        with torch.autocast("cpu", enabled=False):
            return attention(q.float(), k.float(), v.float(), mask, causal).to(q.dtype)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        xavier(self.qkv, self.out)  # on the fused matrix this amounts to gain 1/√2 for each of q, k and v

    def forward(self, x: States, rotation: Rotation, mask: Mask, cache: Slots | None = None) -> States:
        """cache: attention is then to the first L slots of its layer."""
        q, k, v = self.project(x, rotation)
        if cache is not None:
            layer, slots = cache
            layer.write(slots, LayerCache(k, v))
            assert isinstance(mask, Tensor), "a cache is read through a mask"
            layer = layer.first(mask.shape[-1])
            k, v = layer.keys, layer.values
        return self.merge(attend(q, k, v, mask))

    def project(self, x: States, rotation: Rotation) -> list[Heads]:
        """Rotated queries, rotated keys, and values."""
        q, k, v = self.split(self.qkv(x))
        return [rotation(q), rotation(k), v]

    def split(self, qkv: Float[Tensor, "B S M3"]) -> Float[Tensor, "3 B H S K"]:
        head_width = qkv.shape[-1] // (3 * self.heads)  # explicit: torch cannot infer it from a batch without rows
        return qkv.view(*qkv.shape[:2], 3, self.heads, head_width).permute(2, 0, 3, 1, 4)

    def merge(self, y: Heads) -> States:
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


def xavier(*layers: nn.Linear, gain: float = 1.0) -> None:
    """Initialize weights by Glorot and Bengio (2010, eq. 16), biases to zero."""
    for linear in layers:
        nn.init.xavier_uniform_(linear.weight, gain=gain)
        nn.init.zeros_(linear.bias)


def feed_forward_width(width: int) -> int:
    """Two thirds of 4 · width, so that three matrices cost as much as two, rounded up to a multiple of 256."""
    return 256 * math.ceil(int(4 * width * 2 / 3) / 256)


class SwiGLU(nn.Module):
    """out(silu(gate(x)) · inner(x)) (Shazeer 2020, eq. 6), with biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = feed_forward_width(width)
        self.gate_and_inner, self.out = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

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
