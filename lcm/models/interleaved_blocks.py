"""One transformer over every concept twice: clean, as context, and in the making, as what is asked for (paper §2.3.3).

Shapes.  B rows · S slots · L cached slots · N concepts in the making · D concept width · E step width · M model width
         H heads · K head width · U steps

The two kinds never meet in one sequence. Clean concepts are a plain causal transformer that knows nothing of the
others, and is run once; a concept in the making is a leaf, which sees the clean ones before it and itself. So no mask
is larger than slots by slots, and slots whose prediction nobody wants cost nothing.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lcm.batch import document_mask
from lcm.errors import UserError
from lcm.models.packed_attention import Documents, attend
from lcm.models.transformer import (
    Attention,
    Block,
    BlockHook,
    Cache,
    LayerCache,
    RMSNorm,
    Rotation,
    Stack,
    count_parameters,
    no_hook,
)


@dataclass(frozen=True)
class Leaves:
    """Where the concepts in the making stand.

    mask:      clean slots that the one at each slot sees; none where its context is dropped
    rotation:  of their own slots
    index:     the slot, counted over all rows, of each; None where it is one slot a row
    documents: whose slots these are, if they are; then there is a mask for the documents of each length
    """

    mask: Bool[Tensor, "B 1 S L"] | list[Bool[Tensor, "_ 1 _ _"]]
    rotation: Rotation
    index: Int[Tensor, " N"] | None = None
    documents: Documents | None = None

    @staticmethod
    def of_documents(
        documents: Documents, rotation: Rotation, index: Int[Tensor, " N"], dropped: Bool[Tensor, "B S"]
    ) -> "Leaves":
        """index, dropped: of the slots of the batch."""
        parts = documents.split(dropped.flatten()[documents.index])
        masks = [torch.ones(2 * part.shape[1:], dtype=torch.bool).tril(-1) & ~part[:, None, :, None] for part in parts]
        place = torch.zeros(dropped.numel(), dtype=torch.long)
        place[documents.index] = torch.arange(len(documents.index))
        return Leaves(masks, rotation, place[index], documents)

    def spread(self, x: Float[Tensor, "N M"]) -> Float[Tensor, "B S M"]:
        """Each at its slot, zeros elsewhere."""
        rows, _, slots, _ = self.rotation.cos.shape
        if self.index is None:
            return x.view(rows, slots, -1)
        return x.new_zeros(rows * slots, x.shape[1]).index_copy(0, self.index, x).view(rows, slots, x.shape[1])

    def gather(self, x: Float[Tensor, "B S M"]) -> Float[Tensor, "N M"]:
        return x.flatten(0, 1) if self.index is None else x.flatten(0, 1)[self.index]

    def attend(
        self, q: Float[Tensor, "B H S K"], k: Float[Tensor, "B H S K"], v: Float[Tensor, "B H S K"], clean: LayerCache
    ) -> Float[Tensor, "B H S K"]:
        """Of the ones in the making to the clean ones and to themselves."""
        if isinstance(self.mask, Tensor):
            return _beside(q, k, v, clean.keys, clean.values, self.mask)
        assert self.documents is not None
        parts = [self.documents.apart(x) for x in (q, k, v, clean.keys, clean.values)]
        return self.documents.together([_beside(*part) for part in zip(*parts, self.mask, strict=True)])


class TwinBlock(Block):
    """A block over both kinds."""

    def forward(  # type: ignore[override]  # one module, so that trainer.compile compiles all that a block does
        self,
        clean: Float[Tensor, "B S M"],
        making: Float[Tensor, "N M"],
        mask: Bool[Tensor, "B 1 S S"] | Documents,
        leaves: Leaves,
        last: bool,
    ) -> tuple[Float[Tensor, "B S M"], Float[Tensor, "N M"]]:
        """last: nothing is made of the clean ones but their keys and values."""
        q, k, v = _qkv(self, clean, leaves.rotation)
        making = _leaf(self, making, LayerCache(k, v), leaves, 0)
        if last:
            return clean, making
        return _rest(self, clean, attend(q, k, v, mask).transpose(1, 2).flatten(2)), making

    def read(
        self,
        clean: Float[Tensor, "B S M"],
        rotation: Rotation,
        mask: Bool[Tensor, "B 1 S L"],
        cache: tuple[LayerCache, Int[Tensor, "B S"]] | None = None,
    ) -> Float[Tensor, "B S M"]:
        """The clean ones alone."""
        return super().forward(clean, rotation, mask, cache)


class Interleaved(Stack):
    """Blocks, a final norm, and what goes in: the concept beside an embedding of its step, and its position."""

    def __init__(
        self,
        dim: int,
        width: int,
        heads: int,
        layers: int,
        dropout: float,
        step_width: int,
        learned_positions: int,
        on_block: BlockHook = no_hook,
    ) -> None:
        """learned_positions: how many there are; 0 turns queries and keys instead."""
        super().__init__()
        self.heads = heads
        self.pre = nn.Linear(dim + step_width, width)
        self.positions = nn.Embedding(learned_positions, width) if learned_positions else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02)
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            on_block(block := TwinBlock(width, heads, dropout))
            self.blocks.append(block)
        self.norm = RMSNorm(width)

    @property
    def layers(self) -> list[TwinBlock]:
        return [block for block in self.blocks if isinstance(block, TwinBlock)]

    def steps(self, embedded: Float[Tensor, "U E"]) -> Float[Tensor, "U M"]:
        """What each step adds to the input: its columns of the input's matrix, once for all concepts."""
        table: Tensor = nn.functional.linear(embedded, self.pre.weight[:, -embedded.shape[1] :])
        return table

    def inputs(
        self, x: Float[Tensor, "*n D"], step: Float[Tensor, "*#n M"], pos: Int[Tensor, "*n"]
    ) -> Float[Tensor, "*n M"]:
        """linear(concept, step) + position, which `check_positions` has passed."""
        state = nn.functional.linear(x, self.pre.weight[:, : x.shape[-1]], self.pre.bias) + step
        if self.positions is not None:
            state = state + self.positions(pos)
        return state.float()

    def check_positions(self, pos: Int[Tensor, "*n"]) -> None:
        """Raises UserError for a position beyond the learned ones. Waits for a GPU: once a pass, never once a step."""
        if self.positions is None or not pos.numel():
            return
        longest, room = int(pos.max()) + 1, len(self.positions.weight)
        if longest > room:
            raise UserError(
                f"a document of {longest} concepts: model.max_positions={room}; train with more, or with "
                "model.positions=rotary"
            )

    def rotation(self, pos: Int[Tensor, "B S"]) -> Rotation:
        """Without effect where positions are learned."""
        head_width = len(self.norm.weight) // self.heads
        return Rotation.of(pos if self.positions is None else torch.zeros_like(pos), head_width)

    def forward(
        self,
        clean: Float[Tensor, "B S M"],
        making: Float[Tensor, "N M"],
        doc: Int[Tensor, "B S"],
        pos: Int[Tensor, "B S"],
        index: Int[Tensor, " N"],
        dropped: Bool[Tensor, "B S"],
    ) -> Float[Tensor, "N M"]:
        """The states of the concepts in the making, from their inputs and those of the clean ones."""
        mask: Tensor | Documents
        if self.runs_per_document(doc):
            mask = Documents.of(doc)
            clean = clean.flatten(0, 1)[None, mask.index]
            leaves = Leaves.of_documents(mask, self.rotation(pos.flatten()[None, mask.index]), index, dropped)
        else:
            mask = document_mask(doc).unsqueeze(1)
            leaves = Leaves(mask.tril(-1) & ~dropped[:, None, :, None], self.rotation(pos), index)
        last = len(self.blocks) - 1
        for number, block in enumerate(self.layers):
            clean, making = self.run(block, clean, making, mask, leaves, number == last)
        out: Tensor = self.norm(making)
        return out

    def read(self, doc: Int[Tensor, "B S"], pos: Int[Tensor, "B S"], clean: Float[Tensor, "B S M"]) -> list[LayerCache]:
        """Keys and values of the clean concepts in each layer."""
        mask, rotation, layers = document_mask(doc).unsqueeze(1), self.rotation(pos), []
        for number, block in enumerate(self.layers):
            _, k, v = _qkv(block, clean, rotation)
            layers.append(LayerCache(k, v))
            if number < len(self.blocks) - 1:
                clean = block.read(clean, rotation, mask)
        return layers

    def training_flops(self, slots: int) -> int:
        """A concept goes through the blocks twice, clean and in the making."""
        attention = 12 * len(self.norm.weight) * slots * len(self.blocks)
        return super().training_flops(slots) + 6 * count_parameters(self.blocks) + attention

    def extend(self, clean: Float[Tensor, "B S M"], cache: Cache, used: Int[Tensor, " B"]) -> Cache:
        """S more clean concepts a row, of which row i uses the first used[i]. Takes the cache over."""
        pos = cache.lengths[:, None] + torch.arange(clean.shape[1], device=clean.device)
        cache = cache.reserve(int(pos.max()) + 1)
        mask = (torch.arange(cache.layers[0].keys.shape[2], device=clean.device) <= pos[:, :, None]).unsqueeze(1)
        rotation = self.rotation(pos)
        for number, (block, layer) in enumerate(zip(self.layers, cache.layers, strict=True)):
            if number < len(self.blocks) - 1:
                clean = block.read(clean, rotation, mask, (layer, pos))
            else:  # nobody asks for the clean concepts' last states: their keys and values are all that is seen
                _, k, v = _qkv(block, clean, rotation)
                layer.write(pos, k, v)
        return Cache(cache.layers, cache.lengths + used)

    def make(
        self, making: Float[Tensor, "N M"], layers: list[LayerCache], leaves: Leaves, without: int = 0
    ) -> Float[Tensor, "N M"]:
        """The states of concepts in the making, from their inputs; the last `without` see themselves alone."""
        for block, layer in zip(self.layers, layers, strict=True):
            making = _leaf(block, making, layer, leaves, without)
        out: Tensor = self.norm(making)
        return out


def _qkv(block: Block, x: Float[Tensor, "B S M"], rotation: Rotation) -> list[Float[Tensor, "B H S K"]]:
    attention: Attention = block.attention
    q, k, v = attention.qkv(block.attention_norm(x)).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    return [rotation(q), rotation(k), v]


def _rest(block: Block, x: Float[Tensor, "*n M"], attended: Float[Tensor, "*n M"]) -> Float[Tensor, "*n M"]:
    """What follows attention in a block."""
    x = x + block.dropout(block.attention.out(attended))
    out: Tensor = x + block.dropout(block.feed_forward(block.feed_forward_norm(x)))
    return out


def _leaf(
    block: Block, x: Float[Tensor, "N M"], layer: LayerCache, leaves: Leaves, without: int
) -> Float[Tensor, "N M"]:
    """A block for concepts in the making: attention to the clean ones and, by one more column of scores, to themselves.

    The last `without` see themselves alone, which is their own value.
    """
    attention: Attention = block.attention
    new = attention.qkv(block.attention_norm(x))
    count = len(x) - without
    spread = leaves.spread(new[:count])
    head = spread.shape[2] // (3 * attention.heads)  # said, because there may be no row to tell it from
    q, k, v = spread.view(*spread.shape[:2], 3, attention.heads, head).permute(2, 0, 3, 1, 4)
    q, k = leaves.rotation(q), leaves.rotation(k)
    y = leaves.attend(q, k, v, layer)
    seen = leaves.gather(y.transpose(1, 2).flatten(2))
    if without:
        seen = torch.cat([seen, new[count:, -seen.shape[1] :]])
    return _rest(block, x, seen)


def _beside(
    q: Float[Tensor, "B H S K"],
    k: Float[Tensor, "B H S K"],
    v: Float[Tensor, "B H S K"],
    keys: Float[Tensor, "B H L K"],
    values: Float[Tensor, "B H L K"],
    mask: Bool[Tensor, "B 1 S L"],
) -> Float[Tensor, "B H S K"]:
    """Attention to the clean ones that the mask shows and, by one more column of scores, to oneself."""
    q = q * (1 / math.sqrt(q.shape[-1]))
    others = (q @ keys.to(q.dtype).transpose(2, 3)).masked_fill(~mask, -math.inf)
    weights = torch.cat([(q * k).sum(-1, keepdim=True), others], dim=-1).float().softmax(-1).to(v.dtype)
    return weights[..., :1] * v + weights[..., 1:] @ values.to(v.dtype)
