"""Inputs of attention: a cache of keys and values, and packed documents, under a mask or one by one.

Shapes.  B rows · S slots · L slots of the cache · N slots that are not empty · H heads · K head width
         R selected rows, or documents of one length; lists have one entry for each document length n
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from lcm.batch import PAD


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, written in place. Slots beyond a row's length are undefined."""

    keys: Float[Tensor, "B H L K"]
    values: Float[Tensor, "B H L K"]

    def write(self, at: Int[Tensor, "B S"], keys: Float[Tensor, "B H S K"], values: Float[Tensor, "B H S K"]) -> None:
        rows = torch.arange(len(at), device=at.device)[:, None]
        self.keys[rows, :, at] = keys.transpose(1, 2)
        self.values[rows, :, at] = values.transpose(1, 2)

    def grown(self, slots: int) -> "LayerCache":
        """A copy with room for `slots` slots."""
        room = (0, 0, 0, slots - self.keys.shape[2])
        return LayerCache(pad(self.keys, room), pad(self.values, room))


@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer, for B rows of different lengths."""

    layers: Sequence[LayerCache]
    lengths: Int[Tensor, " B"]

    def select(self, rows: Int[Tensor, " R"]) -> "KVCache":
        """A copy of these rows, in this order; rows may be dropped and repeated."""
        return KVCache([LayerCache(layer.keys[rows], layer.values[rows]) for layer in self.layers], self.lengths[rows])

    def reserve(self, slots: int) -> "KVCache":
        """The cache with room for at least `slots` concepts a row. Room doubles, so that growing stays cheap."""
        room = self.layers[0].keys.shape[2]
        if slots <= room:
            return self
        return KVCache([layer.grown(max(slots, 2 * room)) for layer in self.layers], self.lengths)


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
        """One (R, n, …) tensor for each length n."""
        parts = torch.split(x, [count * length for count, length in self.groups])
        return [part.view(*group, *x.shape[1:]) for part, group in zip(parts, self.groups, strict=True)]

    def unpack(self, x: Float[Tensor, "1 H N K"]) -> list[Float[Tensor, "_ H _ K"]]:
        """One (R, H, n, K) tensor for each length n."""
        return [part.transpose(1, 2) for part in self.split(x[0].transpose(0, 1))]

    def pack(self, parts: Sequence[Float[Tensor, "_ H _ K"]]) -> Float[Tensor, "1 H N K"]:
        """The inverse of `unpack`."""
        return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts]).transpose(0, 1).unsqueeze(0)

    def attend(
        self, q: Float[Tensor, "1 H N K"], k: Float[Tensor, "1 H N K"], v: Float[Tensor, "1 H N K"]
    ) -> Float[Tensor, "1 H N K"]:
        """Causal attention within each document."""
        parts = zip(self.unpack(q), self.unpack(k), self.unpack(v), strict=True)
        return self.pack([scaled_dot_product_attention(*part, is_causal=True) for part in parts])


def attend(
    q: Float[Tensor, "B H S K"],
    k: Float[Tensor, "B H L K"],
    v: Float[Tensor, "B H L K"],
    mask: Bool[Tensor, "B 1 S L"] | Documents,
) -> Float[Tensor, "B H S K"]:
    """Attention of each slot to those of its mask, or to its document up to and including itself."""
    if isinstance(mask, Documents):
        return mask.attend(q, k, v)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)
