"""Two-Tower LCM: a contextualizer reads the concepts so far, a denoiser makes the next one (paper §2.3.4).

Shapes.  B rows · S slots · L context entries · N concepts to denoise · D concept width · M model width
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lcm.batch import PAD, Batch, document_mask
from lcm.config import TwoTowerConfig
from lcm.models.denoiser import Denoiser, Memory
from lcm.models.diffusing import DiffusionSampling, denoising_losses, draw_noising, sample, timesteps_of
from lcm.models.diffusion import Diffusion
from lcm.models.fast_denoiser import DenoisingStep
from lcm.models.fast_linear import packed
from lcm.models.interface import ConceptModel, Context, Losses, Sampling, settle
from lcm.models.normalizer import Normalizer
from lcm.models.randomness import Draws, read_prompts
from lcm.models.transformer import BlockHook, Cache, LayerCache, Transformer, no_hook

ROOM = 16
"""Concepts that can follow a prompt before its caches are copied into larger ones."""


@dataclass
class TwoTowerContext:
    """The concepts of each row so far. `extend` takes a context over: it writes into the same memory.

    The model's weights must not change while a context is in use.

    reader:  the contextualizer, for few rows
    context: its keys and values
    step:    the denoiser, for sampling
    memory:  keys and values of each layer of the denoiser: the zero vector's, then a concept's each
    prompt:  a number that stands for the row's prompt: its noise is drawn from it, wherever `select` moves the row
    """

    reader: Transformer
    context: Cache
    step: DenoisingStep
    memory: Cache
    prompt: Int[Tensor, " B"]
    spent: bool = False

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        return self.context.lengths

    def select(self, rows: Int[Tensor, " R"]) -> "TwoTowerContext":
        context, memory = self.context.select(rows), self.memory.select(rows)
        return TwoTowerContext(self.reader, context, self.step, memory, self.prompt[rows])


class TwoTowerLCM(ConceptModel):
    """Predicts every concept of a document, the first from the zero vector alone."""

    predicts_first: ClassVar[bool] = True
    defaults: ClassVar[DiffusionSampling] = DiffusionSampling()

    def __init__(self, config: TwoTowerConfig, on_block: BlockHook = no_hook) -> None:
        super().__init__()
        self.dim, self.config = config.dim, config
        self.normalizer = Normalizer(config.dim)
        self.register_buffer("end_of_text", torch.zeros(config.dim))
        self.diffusion = Diffusion(config.diffusion, config.dim)
        self.pre = nn.Linear(config.dim, config.width)
        sizes = config.width, config.heads
        # The British spelling is in the tensors' names of every saved model.
        self.contextualiser = Transformer(*sizes, config.context_layers, config.dropout, on_block)
        self.denoiser = Denoiser(config.dim, *sizes, config.denoiser_layers, config.dropout, on_block)

    def read_fitted(self, codec: str) -> None:
        self.diffusion.read_fragility(self.normalizer, codec)

    def loss(self, batch: Batch) -> Losses:
        """`denoising_losses` of each target at a timestep of its own, all of them in one pass (§2.3.4)."""
        z = self.normalizer(batch.emb)
        noising = draw_noising(self.diffusion, batch.row, z.shape[1], self.dim, drops=self.training)
        index = batch.targets(self.predicts_first).flatten().nonzero()[:, 0]
        memory = self._memory(z, batch, index, noising.dropped)
        clean, t, eps = z.flatten(0, 1)[index], noising.t.flatten()[index], noising.eps.flatten(0, 1)[index]
        x_t = self.diffusion.noise(clean, t, eps)
        steps, which = torch.unique(t, return_inverse=True)
        out = self.denoiser(x_t, self.denoiser.modulations(steps), which, memory)
        return denoising_losses(self.diffusion, self.normalizer, out, clean, x_t, t, eps)

    @torch.no_grad()
    def predict(self, batch: Batch, sampling: Sampling) -> Float[Tensor, "B S D"]:
        z = self.normalizer(batch.emb)
        index = (batch.doc != PAD).flatten().nonzero()[:, 0]
        draws = Draws(sampling.seed, batch.row[:, None], z.shape[1], index)
        found = self._sample(DenoisingStep.of(self.denoiser), self._memory(z, batch, index), draws, sampling)
        predicted = z.new_zeros(batch.doc.numel(), self.dim)
        predicted[index] = self.normalizer.inverse(found)
        return predicted.view_as(z)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Float[Tensor, "_ D"]]) -> TwoTowerContext:
        """A prompt may be empty: then the first concept comes from the zero vector."""
        z, lengths, number = read_prompts(prompts, self.normalizer)
        room = z.shape[1] + ROOM
        reader = packed(self.contextualiser)
        state, context = reader.extend(self.pre(z), reader.empty_cache(len(z), room), lengths)
        memory = Cache([layer.grown(1 + room) for layer in self.denoiser.remember(state)], lengths + 1)
        return TwoTowerContext(reader, context, DenoisingStep.of(self.denoiser), memory, number)

    @torch.no_grad()
    def next(self, context: Context, sampling: Sampling) -> Float[Tensor, "B D"]:
        assert isinstance(context, TwoTowerContext)
        draws = Draws(sampling.seed, torch.stack([context.prompt, context.lengths], dim=1))
        return self.normalizer.inverse(self._sample(context.step, filled(context.memory), draws, sampling))

    @torch.no_grad()
    def extend(self, context: Context, concepts: Float[Tensor, "B D"]) -> TwoTowerContext:
        assert isinstance(context, TwoTowerContext)
        assert not context.spent, "this context was extended before; select() makes a copy"
        context.spent = True
        z = self.normalizer(concepts.to(self.end_of_text.device))
        state, longer = context.reader.extend(self.pre(z).unsqueeze(1), context.context)
        at = context.memory.lengths[:, None]
        memory = context.memory.reserve(int(at.max()) + 1)
        for block, layer in zip(self.denoiser.layers, memory.layers, strict=True):
            new = block.cross.remember(state)
            layer.write(at, new.keys, new.values)
        memory = Cache(memory.layers, memory.lengths + 1)
        return TwoTowerContext(context.reader, longer, context.step, memory, context.prompt)

    def _memory(
        self,
        z: Float[Tensor, "B S D"],
        batch: Batch,
        index: Int[Tensor, " N"],
        dropped: Bool[Tensor, "B S"] | None = None,
    ) -> Memory:
        """Of every slot: the zero vector, and the slots before it in its document unless they are dropped."""
        state = self.contextualiser(self.pre(z), batch.doc, batch.pos)
        before = document_mask(batch.doc).tril(-1)
        if dropped is not None:
            before = before & ~dropped[:, :, None]
        mask = nn.functional.pad(before, (1, 0), value=True)
        return Memory(self.denoiser.remember(state), mask[:, None], index)

    def _sample(self, step: DenoisingStep, memory: Memory, draws: Draws, sampling: Sampling) -> Float[Tensor, "N D"]:
        """Modulations for the whole schedule at once; the two branches of guidance side by side in one call a step."""
        settings = settle(sampling, self.defaults)
        timesteps = timesteps_of(self.diffusion, settings)
        modulations = step.modulations(timesteps)

        def both(x: Float[Tensor, "N D"], number: int) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
            out = step(x, modulations[number], memory, twice=True)
            return out[: len(x)], out[len(x) :]

        def alone(x: Float[Tensor, "N D"], number: int) -> Float[Tensor, "N D"]:
            return step(x, modulations[number], memory)

        return sample(self.diffusion, both, alone, timesteps, draws, self.dim, settings)


def filled(cache: Cache) -> Memory:
    """What there is of a cache, without the room for more; nothing is hidden where all rows are equally long."""
    shortest, longest = (int(length) for length in cache.lengths.aminmax())
    layers = [LayerCache(layer.keys[:, :, :longest], layer.values[:, :, :longest]) for layer in cache.layers]
    if shortest == longest:
        return Memory(layers, None)
    return Memory(layers, (torch.arange(longest, device=cache.lengths.device) < cache.lengths[:, None])[:, None, None])
