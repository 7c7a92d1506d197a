"""What One-Tower and Quant-LCM share: contexts of clean concepts, and concepts in the making beside them.

Shapes.  B rows · S slots · N concepts in the making · D concept width · M model width · U steps
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lcm.batch import PAD, Batch, document_mask
from lcm.config import InterleavedConfig
from lcm.models.fast_linear import packed
from lcm.models.interface import ConceptModel, Context, Sampling
from lcm.models.interleaved_blocks import Interleaved, Leaves
from lcm.models.normalizer import Normalizer
from lcm.models.randomness import Draws, read_prompts
from lcm.models.transformer import BlockHook, Cache, LayerCache


@dataclass
class InterleavedContext:
    """The clean concepts of each row so far. `extend` takes a context over: it writes into the same memory.

    model:  for few rows; its weights must not change while a context is in use
    prompt: a number that stands for the row's prompt: its noise is drawn from it, wherever `select` moves the row
    """

    model: "InterleavedLCM"
    cache: Cache
    prompt: Int[Tensor, " B"]
    spent: bool = False

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        return self.cache.lengths

    def select(self, rows: Int[Tensor, " R"]) -> "InterleavedContext":
        return InterleavedContext(self.model, self.cache.select(rows), self.prompt[rows])


@dataclass(frozen=True)
class Places:
    """Where N concepts are to be made: what they see, their positions, and their random numbers."""

    layers: list[LayerCache]
    leaves: Leaves
    pos: Int[Tensor, " N"]
    draws: Draws


class InterleavedLCM(ConceptModel):
    """Predicts every concept of a document, the first from nothing. Subclasses say what is made, and in which steps.

    Step 0 is a clean concept; the steps of one in the making count from 1.
    """

    predicts_first: ClassVar[bool] = True

    def __init__(self, config: InterleavedConfig, step_embedding: nn.Module, on_block: BlockHook) -> None:
        super().__init__()
        self.dim = config.dim
        self.normalizer = Normalizer(config.dim)
        self.register_buffer("end_of_text", torch.zeros(config.dim))
        self.step_embedding = step_embedding
        self.trunk = Interleaved(
            config.dim,
            config.width,
            config.heads,
            config.layers,
            config.dropout,
            config.step_width,
            config.max_positions if config.positions == "learned" else 0,
            on_block,
        )

    @abstractmethod
    def sample(self, places: Places, sampling: Sampling) -> Float[Tensor, "N D"]:
        """New concepts in normalized space."""

    @torch.no_grad()
    def predict(self, batch: Batch, sampling: Sampling) -> Float[Tensor, "B S D"]:
        z, pos = self.normalizer(batch.emb), batch.pos
        index = (batch.doc != PAD).flatten().nonzero()[:, 0]
        leaves = Leaves(document_mask(batch.doc).tril(-1).unsqueeze(1), self.trunk.rotation(pos), index)
        layers = self.trunk.read(batch.doc, pos, self.clean(z, pos))
        draws = Draws(sampling.seed, batch.row[:, None], z.shape[1], index)
        made = self.sample(Places(layers, leaves, pos.flatten()[index], draws), sampling)
        predicted = z.new_zeros(pos.numel(), self.dim)
        predicted[index] = self.normalizer.inverse(made)
        return predicted.view_as(z)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Float[Tensor, "_ D"]]) -> InterleavedContext:
        """A prompt may be empty: then the first concept comes from nothing."""
        z, lengths, number = read_prompts(prompts, self.normalizer)
        pos = torch.arange(z.shape[1], device=z.device).expand(len(prompts), -1)
        quick = packed(self)
        cache = quick.trunk.extend(quick.clean(z, pos), quick.trunk.empty_cache(*pos.shape), lengths)
        return InterleavedContext(quick, cache, number)

    @torch.no_grad()
    def next(self, context: Context, sampling: Sampling) -> Float[Tensor, "B D"]:
        assert isinstance(context, InterleavedContext)
        lengths, layers = context.lengths, list(context.cache.layers)
        self.trunk.check_positions(lengths)
        seen = torch.arange(layers[0].keys.shape[2], device=lengths.device) < lengths[:, None]
        leaves = Leaves(seen[:, None, None], self.trunk.rotation(lengths[:, None]))
        draws = Draws(sampling.seed, torch.stack([context.prompt, lengths], dim=1))
        return self.normalizer.inverse(context.model.sample(Places(layers, leaves, lengths, draws), sampling))

    @torch.no_grad()
    def extend(self, context: Context, concepts: Float[Tensor, "B D"]) -> InterleavedContext:
        assert isinstance(context, InterleavedContext)
        assert not context.spent, "this context was extended before; select() makes a copy"
        context.spent = True
        z = self.normalizer(concepts.to(self.end_of_text.device)).unsqueeze(1)
        clean = context.model.clean(z, context.lengths[:, None])
        cache = context.model.trunk.extend(clean, context.cache, torch.ones_like(context.lengths))
        return InterleavedContext(context.model, cache, context.prompt)

    def clean(self, z: Float[Tensor, "B S D"], pos: Int[Tensor, "B S"]) -> Float[Tensor, "B S M"]:
        """What goes into the transformer for clean concepts. Raises UserError for a document that is too long."""
        self.trunk.check_positions(pos)
        step = self.steps(torch.zeros(1, dtype=torch.long, device=z.device))
        return self.trunk.inputs(z, step.expand(*z.shape[:2], -1), pos)

    def steps(self, number: Int[Tensor, " U"]) -> Float[Tensor, "U M"]:
        """What each step adds to the input."""
        return self.trunk.steps(self.step_embedding(number))

    def made(
        self, x: Float[Tensor, "N D"], step: Float[Tensor, "1 M"], places: Places, without: int = 0
    ) -> Float[Tensor, "N M"]:
        """States of concepts in the making, all at one step; the last `without` repeat the first, without context."""
        pos = torch.cat([places.pos, places.pos[:without]])
        inputs = self.trunk.inputs(x, step.expand(len(x), -1), pos)
        return self.trunk.make(inputs, places.layers, places.leaves, without)
