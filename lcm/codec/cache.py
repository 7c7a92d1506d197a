"""What the decoder remembers of the pieces before: keys and values, for many rows and several beams of each.

Shapes.  N rows · W beams of a row · B = N or N·W · P new pieces · H heads · K head width · E entries = positions · W
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from lcm.codec.architecture import Decoder


class Cache:
    """Keys and values of the decoder's self-attention, for rows that each go on in `beams` ways.

    A position holds an entry of each beam, and entries stay where they are when beams change places: `ancestors` says
    whose entry a beam sees at each position. The beams of a row attend to all its entries at once, those of others
    masked.
    """

    START = 24
    """Positions at first; twice as many whenever they are full. Most sentences are far shorter than the longest."""

    def __init__(self, decoder: "Decoder", rows: int, positions: int, beams: int = 1) -> None:
        weight, heads = decoder.embed.weight, decoder.sizes.decoder_heads
        shape = (2, len(decoder.layers), rows, heads, min(self.START, positions), beams, decoder.sizes.dim // heads)
        # Zeros, because a masked entry is still multiplied, and what was in fresh memory may be no number.
        self.kv = torch.zeros(shape, device=weight.device, dtype=weight.dtype)
        self.length, self.positions, self.beams = 0, positions, beams
        self.ancestors = torch.zeros(rows, beams, 0, device=weight.device, dtype=torch.long)
        self.mask: Bool[Tensor, "N 1 W E"] | None = None

    def attend(
        self, layer: int, q: Float[Tensor, "B H P K"], k: Float[Tensor, "B H P K"], v: Float[Tensor, "B H P K"]
    ) -> Float[Tensor, "B H P K"]:
        """Of new pieces to all so far. B is N for the prefix, which has no beams yet, and N·W for every piece after it.

        `Decoder` moves `length` on after its last layer.
        """
        end, rows = self.length + k.shape[2], self.kv.shape[2]
        if end > self.kv.shape[4]:
            self._grow(end)
        for kind, new in enumerate((k, v)):
            of_beams = new.view(rows, -1, *new.shape[1:]).permute(0, 2, 3, 1, 4)
            self.kv[kind, layer, :, :, self.length : end, : of_beams.shape[3]] = of_beams
        if self.length == 0:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        keys, values = self.kv[:, layer, :, :, :end].flatten(3, 4)
        together = q.view(rows, -1, *q.shape[1:]).squeeze(3).transpose(1, 2)
        y = F.scaled_dot_product_attention(together, keys, values, attn_mask=self.mask)
        return y.transpose(1, 2).flatten(0, 1).unsqueeze(2)

    def _grow(self, needed: int) -> None:
        assert needed <= self.positions, f"{needed} positions in a cache of {self.positions}"
        shape = list(self.kv.shape)
        shape[4] = min(max(needed, 2 * shape[4]), self.positions)
        wider = self.kv.new_empty(shape)
        wider[:, :, :, :, : self.length] = self.kv[:, :, :, :, : self.length]
        self.kv = wider

    def branch(self, parent: Int[Tensor, "N W"]) -> None:
        """Each beam goes on from `parent`'s entries; the next piece's are its own."""
        if self.beams == 1:
            return
        rows, own = len(parent), torch.arange(self.beams, device=parent.device)
        seen = self.ancestors.new_zeros(rows, self.beams, self.length - self.ancestors.shape[2])  # the prefix: beam 0's
        before = torch.cat([self.ancestors, seen], dim=2)
        inherited = before.gather(1, parent[..., None].expand(-1, -1, self.length))
        self.ancestors = torch.cat([inherited, own.expand(rows, -1)[..., None]], dim=2)
        self.mask = (self.ancestors[..., None] == own).flatten(2)[:, None]

    def select(self, rows: Int[Tensor, " N"]) -> None:
        """Go on with these rows only, in this order; a row may come several times, N never exceeds their number."""
        # One at a time: a copy of everything would be fresh memory at every step, which costs more than the copying.
        for kv in self.kv.view(-1, *self.kv.shape[2:]):
            kv[: len(rows), :, : self.length] = kv[:, :, : self.length].index_select(0, rows)
        self.kv, self.ancestors = self.kv[:, :, : len(rows)], self.ancestors[rows]
        self.mask = None if self.mask is None else self.mask[rows]
