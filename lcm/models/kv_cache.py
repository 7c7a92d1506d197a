"""Keys and values of the concepts that a transformer has read, kept for those that follow.

Shapes.  B rows · S new slots · L slots of the cache · H heads · K head width · R selected rows
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, written in place. Slots beyond a row's length are undefined."""

    keys: Float[Tensor, "B H L K"]
    values: Float[Tensor, "B H L K"]

    def write(self, at: Int[Tensor, "B S"], keys: Float[Tensor, "B H S K"], values: Float[Tensor, "B H S K"]) -> None:
        rows = torch.arange(len(at), device=at.device)[:, None]
        self.keys[rows, :, at] = keys.transpose(1, 2)
        self.values[rows, :, at] = values.transpose(1, 2)

    def select(self, rows: Int[Tensor, " R"]) -> "LayerCache":
        return LayerCache(self.keys[rows], self.values[rows])

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
        return KVCache([layer.select(rows) for layer in self.layers], self.lengths[rows])

    def reserve(self, slots: int) -> "KVCache":
        """The cache with room for at least `slots` concepts a row. Room doubles, so that growing stays cheap."""
        room = self.layers[0].keys.shape[2]
        if slots <= room:
            return self
        return KVCache([layer.grown(max(slots, 2 * room)) for layer in self.layers], self.lengths)
