"""Key-value cache of the decoder, for many rows with several beams each.

Shapes.  N rows · W beams of a row · B = N or N·W · P new pieces · H heads · K head width · E entries of a row
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


class Cache:
    """Keys and values of the decoder's self-attention, for rows with `beams` hypotheses each.

    A piece of a beam is an entry of its row. Entries do not move when beams are reordered: `sees` marks the entries in
    each beam's own past. The beams of a row attend to all its entries in one product, with the others' entries masked.
    The beams of a row share most of their past, and entries that no beam sees any longer are dropped when the room is
    used up.
    """

    START = 64
    """Initial room, in entries of a row."""

    def __init__(
        self, weight: Float[Tensor, "V D"], layers: int, heads: int, rows: int, positions: int, beams: int = 1
    ) -> None:
        """weight:    the decoder's embedding; entries have its width, dtype and device
        positions: longest sequence; a row never needs more room than this for each beam
        """
        self.weight, self.beams, self.most = weight, beams, positions * beams
        self.shape = (2, layers, rows, heads)
        self.kv = self._room(min(self.START, self.most))
        self.length, self.used = 0, 0
        self.sees = torch.ones(rows, beams, 0, device=self.weight.device, dtype=torch.bool)
        self.mask: Float[Tensor, "N 1 W E"] | None = None

    def _room(self, entries: int) -> Float[Tensor, "2 L N H E K"]:
        return self.weight.new_empty(*self.shape, entries, self.weight.shape[1] // self.shape[3])

    def attend(
        self, layer: int, q: Float[Tensor, "B H P K"], k: Float[Tensor, "B H P K"], v: Float[Tensor, "B H P K"]
    ) -> Float[Tensor, "B H P K"]:
        """Add the keys and values of new pieces, and attend from them to all pieces so far.

        B is N for the prefix, which has no beams yet, and N·W for every later piece. `Decoder` calls `advance` after
        its last layer.
        """
        rows, pieces = self.shape[2], k.shape[2]
        new = slice(self.used, self.used + len(k) // rows * pieces)
        if new.stop > self.kv.shape[4]:
            self._reserve(new.stop - self.used)
        for kind, beams in enumerate((k, v)):
            self.kv[kind, layer, :, :, new] = beams.view(rows, -1, *k.shape[1:]).transpose(1, 2).flatten(2, 3)
        if self.length == 0:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        keys, values = self.kv[:, layer, :, :, : new.stop]
        together = q.view(rows, -1, *q.shape[1:]).squeeze(3).transpose(1, 2)
        if keys.device.type == "cpu" and keys.dtype == torch.float32:
            y = _attend(together, keys, values, self.mask)
        else:
            y = F.scaled_dot_product_attention(together, keys, values, attn_mask=self.mask)
        return y.transpose(1, 2).flatten(0, 1).unsqueeze(2)

    def advance(self, pieces: int) -> None:
        """Count the new entries, after all layers have attended."""
        if self.length == 0:
            self.used = pieces
            self.sees = self.sees.new_ones(self.shape[2], self.beams, pieces)
        else:
            self.used += self.beams
        self.length += pieces

    def branch(self, parent: Int[Tensor, "N W"]) -> None:
        """Give each beam the past of its parent; the entry of its next piece is its own."""
        if self.beams == 1:
            return
        self.sees = self.sees.gather(1, parent[..., None].expand(-1, -1, self.used))
        self._reserve(self.beams)
        own = torch.eye(self.beams, device=parent.device, dtype=torch.bool).expand(len(parent), -1, -1)
        self.sees = torch.cat([self.sees, own], dim=2)
        self.mask = self.weight.new_zeros(self.sees.shape).masked_fill_(~self.sees, -torch.inf)[:, None]

    def _reserve(self, more: int) -> None:
        """Make room for `more` entries of each row: drop unseen ones, and double the room if over half stays in use."""
        if self.used + more <= self.kv.shape[4]:
            return
        if self.beams > 1:
            self._drop_unseen()
        assert self.used + more <= self.most, f"{self.used + more} entries in a cache of {self.most}"
        if 2 * (self.used + more) > self.kv.shape[4] < self.most:
            wider = self._room(min(max(2 * self.kv.shape[4], self.used + more), self.most))
            wider[:, :, :, :, : self.used] = self.kv[:, :, :, :, : self.used]
            self.kv = wider

    def _drop_unseen(self) -> None:
        """Move the entries that some beam sees to the front. Rows with fewer of them than others keep unseen ones."""
        seen = self.sees.any(1)
        kept = int(seen.sum(1).max())
        order = seen.int().argsort(dim=1, descending=True, stable=True)[:, :kept]
        self.sees = self.sees.gather(2, order[:, None].expand(-1, self.beams, -1))
        rows = torch.arange(len(order), device=order.device)[:, None]
        for kv in self.kv.flatten(0, 1):
            kv[:, :, :kept] = kv.transpose(1, 2)[rows, order].transpose(1, 2)
        self.used = kept

    def select(self, rows: Int[Tensor, " N"]) -> None:
        """Keep these rows, in this order. A row may be repeated, but the number of rows never grows."""
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        # Layer by layer: copying all at once would allocate memory at every step, which costs more than the copy.
        for kv in self.kv.flatten(0, 1):
            kv[moved, :, : self.used] = kv[:, :, : self.used].index_select(0, rows[moved])
        self.kv, self.sees = self.kv[:, :, : len(rows)], self.sees[rows]
        self.shape = (*self.shape[:2], len(rows), self.shape[3])
        self.mask = None if self.mask is None else self.mask[rows]


def _attend(
    q: Float[Tensor, "N H W K"],
    keys: Float[Tensor, "N H E K"],
    values: Float[Tensor, "N H E K"],
    mask: Float[Tensor, "N 1 W E"] | None,
) -> Float[Tensor, "N H W K"]:
    """Unfused attention: for so few queries per head, batched products are faster on a CPU than the fused kernel."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, keys.transpose(2, 3))
    if mask is not None:
        scores += mask
    return torch.matmul(scores.softmax(-1), values)
