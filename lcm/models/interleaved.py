"""One transformer over two streams of concepts: clean ones as context, noisy ones to be predicted (paper §2.3.3).

Shapes.  B rows · S slots · L cached slots · N noisy concepts · D concept width · E step width · M model width
         H heads · K head width · U steps

The paper interleaves both in one sequence; here they stay apart. The clean stream is a plain causal transformer, which
never sees the noisy one and is run once. A noisy concept is a leaf: it sees the clean concepts before it and itself. So
no mask is larger than slots by slots, and slots that need no prediction cost nothing. In One-Tower a noisy concept is
one under noise, in Quant-LCM the sum of the units chosen so far.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lcm.batch import document_mask
from lcm.config import InterleavedConfig
from lcm.errors import UserError
from lcm.models.layers import Documents, Heads, KVCache, LayerCache, Mask, Noised, RMSNorm, Rotation, States, attend
from lcm.models.transformer import Block, BlockHook, Stack, count_parameters, no_hook


@dataclass(frozen=True)
class NoisySlots:
    """The slots of the noisy concepts.

    mask:      clean slots that each slot sees; none if its context is dropped. With `documents`, one mask a length
    rotation:  of each slot
    index:     slots of the noisy concepts, counted over all rows; None if there is one a row
    documents: set where attention runs document by document
    """

    mask: Bool[Tensor, "B 1 S L"] | list[Bool[Tensor, "_ 1 _ _"]]
    rotation: Rotation
    index: Int[Tensor, " N"] | None = None
    documents: Documents | None = None

    @staticmethod
    def of_documents(
        documents: Documents, rotation: Rotation, index: Int[Tensor, " N"], dropped: Bool[Tensor, "B S"]
    ) -> "NoisySlots":
        """index, dropped: by the slots of the batch."""
        parts = documents.split(dropped.flatten()[documents.index])
        masks = [torch.ones(2 * part.shape[1:], dtype=torch.bool).tril(-1) & ~part[:, None, :, None] for part in parts]
        place = torch.zeros(dropped.numel(), dtype=torch.long)
        place[documents.index] = torch.arange(len(documents.index))
        return NoisySlots(masks, rotation, place[index], documents)

    def scatter(self, x: Float[Tensor, "N M"]) -> States:
        """Each concept at its slot, zeros elsewhere."""
        rows, _, slots, _ = self.rotation.cos.shape
        if self.index is None:
            return x.view(rows, slots, -1)
        return x.new_zeros(rows * slots, x.shape[1]).index_copy(0, self.index, x).view(rows, slots, x.shape[1])

    def gather(self, x: States) -> Float[Tensor, "N M"]:
        """The inverse of `scatter`."""
        return x.flatten(0, 1) if self.index is None else x.flatten(0, 1)[self.index]

    def attend(self, q: Heads, k: Heads, v: Heads, clean: LayerCache) -> Heads:
        """Attention of noisy concepts to clean ones and to themselves."""
        if isinstance(self.mask, Tensor):
            return attend_with_self(q, k, v, clean, self.mask)
        assert self.documents is not None
        parts = zip(*(self.documents.unpack(x) for x in (q, k, v, clean.keys, clean.values)), self.mask, strict=True)
        attended = [attend_with_self(q, k, v, LayerCache(*kv), mask) for q, k, v, *kv, mask in parts]
        return self.documents.pack(attended)


def attend_with_self(q: Heads, k: Heads, v: Heads, clean: LayerCache, mask: Bool[Tensor, "B 1 S L"]) -> Heads:
    """Attention to the clean concepts of the mask and, by one more column of scores, to oneself."""
    q = q * (1 / math.sqrt(q.shape[-1]))
    others = (q @ clean.keys.to(q.dtype).transpose(2, 3)).masked_fill(~mask, -math.inf)
    weights = torch.cat([(q * k).sum(-1, keepdim=True), others], dim=-1).float().softmax(-1).to(v.dtype)
    return weights[..., :1] * v + weights[..., 1:] @ clean.values.to(v.dtype)


class TwinBlock(Block):
    def forward(  # type: ignore[override]  # one call for both streams, so that trainer.compile compiles all of it
        self, clean: States, noisy: Noised, mask: Mask, slots: NoisySlots, last: bool
    ) -> tuple[States, Noised]:
        """last: the clean stream ends here; only its keys and values are needed."""
        q, kv = self.project(clean, slots.rotation)
        noisy = self.noisy(noisy, kv, slots)
        return clean if last else self.clean(clean, q, kv, mask), noisy

    def project(self, clean: States, rotation: Rotation) -> tuple[Heads, LayerCache]:
        q, k, v = self.attention.project(self.attention_norm(clean), rotation)
        return q, LayerCache(k, v)

    def clean(self, x: States, q: Heads, kv: LayerCache, mask: Mask) -> States:
        """The clean stream after `project`."""
        return self.finish(x + self.dropout(self.attention.merge(attend(q, kv.keys, kv.values, mask))))

    def noisy(self, x: Noised, clean: LayerCache, slots: NoisySlots, without: int = 0) -> Noised:
        """The noisy stream. The last `without` concepts have no context and attend to their own value."""
        qkv = self.attention.qkv(self.attention_norm(x))
        count = len(x) - without
        q, k, v = self.attention.split(slots.scatter(qkv[:count]))
        y = slots.attend(slots.rotation(q), slots.rotation(k), v, clean)
        attended = slots.gather(y.transpose(1, 2).flatten(2))
        if without:
            attended = torch.cat([attended, qkv[count:, -attended.shape[1] :]])
        return self.finish(x + self.dropout(self.attention.out(attended)))


class Interleaved(Stack):
    """Blocks over both streams, a final norm, and the input layer over concept, step embedding and position."""

    def __init__(self, config: InterleavedConfig, on_block: BlockHook = no_hook) -> None:
        super().__init__()
        self.heads = config.heads
        self.pre = nn.Linear(config.dim + config.step_width, config.width)
        self.positions = nn.Embedding(config.max_positions, config.width) if config.positions == "learned" else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02)
        self.blocks = nn.ModuleList()
        for _ in range(config.layers):
            on_block(block := TwinBlock(config.width, config.heads, config.dropout))
            self.blocks.append(block)
        self.norm = RMSNorm(config.width)

    @property
    def layers(self) -> list[TwinBlock]:
        return [block for block in self.blocks if isinstance(block, TwinBlock)]

    def step_inputs(self, embedded: Float[Tensor, "U E"]) -> Float[Tensor, "U M"]:
        """Each step's part of the input layer, computed once for all concepts."""
        table: Tensor = nn.functional.linear(embedded, self.pre.weight[:, -embedded.shape[1] :])
        return table

    def inputs(
        self, x: Float[Tensor, "*n D"], step: Float[Tensor, "*#n M"], pos: Int[Tensor, "*n"]
    ) -> Float[Tensor, "*n M"]:
        """linear(concept, step) + position. Call `check_positions` first."""
        state = nn.functional.linear(x, self.pre.weight[:, : x.shape[-1]], self.pre.bias) + step
        if self.positions is not None:
            state = state + self.positions(pos)
        return state.float()

    def check_positions(self, pos: Int[Tensor, "*n"]) -> None:
        """Raises UserError for a position beyond the learned ones. Waits for a GPU: call it once a pass, not a step."""
        if self.positions is None or not pos.numel():
            return
        longest, room = int(pos.max()) + 1, len(self.positions.weight)
        if longest > room:
            raise UserError(
                f"a document of {longest} concepts: model.max_positions={room}; train with more, or with "
                "model.positions=rotary"
            )

    def rotation(self, pos: Int[Tensor, "B S"]) -> Rotation:
        """The identity if positions are learned."""
        head_width = len(self.norm.weight) // self.heads
        return Rotation.of(pos if self.positions is None else torch.zeros_like(pos), head_width)

    def forward(
        self,
        clean: States,
        noisy: Noised,
        doc: Int[Tensor, "B S"],
        pos: Int[Tensor, "B S"],
        index: Int[Tensor, " N"],
        dropped: Bool[Tensor, "B S"],
    ) -> Noised:
        """The states of the noisy concepts at `index`, from the inputs of both streams."""
        mask: Mask
        if self.runs_per_document(doc):
            mask = Documents.of(doc)
            clean = clean.flatten(0, 1)[None, mask.index]
            slots = NoisySlots.of_documents(mask, self.rotation(pos.flatten()[None, mask.index]), index, dropped)
        else:
            mask = document_mask(doc).unsqueeze(1)
            slots = NoisySlots(mask.tril(-1) & ~dropped[:, None, :, None], self.rotation(pos), index)
        last = len(self.blocks) - 1
        for number, block in enumerate(self.layers):
            clean, noisy = self.run(block, clean, noisy, mask, slots, number == last)
        out: Tensor = self.norm(noisy)
        return out

    def clean_kv(self, doc: Int[Tensor, "B S"], pos: Int[Tensor, "B S"], clean: States) -> list[LayerCache]:
        mask, rotation, layers = document_mask(doc).unsqueeze(1), self.rotation(pos), []
        for block in self.layers:
            q, kv = block.project(clean, rotation)
            layers.append(kv)
            if len(layers) < len(self.blocks):  # the last states of the clean stream are never used
                clean = block.clean(clean, q, kv, mask)
        return layers

    def training_flops(self, slots: int) -> int:
        """A concept goes through the blocks twice, once in each stream."""
        attention = 12 * len(self.norm.weight) * slots * len(self.blocks)
        return super().training_flops(slots) + 6 * count_parameters(self.blocks) + attention

    def extend(self, clean: States, cache: KVCache, lengths: Int[Tensor, " B"] | None = None) -> KVCache:
        """Append S clean concepts to each row; row i keeps the first lengths[i] (default: all). Consumes the cache."""
        cache, slots, mask = cache.extended(clean.shape[1], lengths)
        rotation = self.rotation(slots)
        for number, (block, layer) in enumerate(zip(self.layers, cache.layers, strict=True), start=1):
            q, kv = block.project(clean, rotation)
            layer.write(slots, kv)
            if number < len(self.blocks):
                clean = block.clean(clean, q, layer.first(mask.shape[-1]), mask)
        return cache

    def noisy_states(self, noisy: Noised, layers: list[LayerCache], slots: NoisySlots, without: int = 0) -> Noised:
        """The states of noisy concepts, from their inputs and `clean_kv`; the last `without` have no context."""
        for block, layer in zip(self.layers, layers, strict=True):
            noisy = block.noisy(noisy, layer, slots, without)
        out: Tensor = self.norm(noisy)
        return out
