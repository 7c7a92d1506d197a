"""Two-Tower LCM: a contextualizer reads the concepts so far, a denoiser makes the next one (paper §2.3.4).

Shapes.  B rows · S slots · L context entries · N concepts to denoise · D concept width · M model width
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from lcm.batch import PAD, Batch, Draws, document_mask
from lcm.config import TwoTowerConfig
from lcm.models.denoiser import Denoiser, FastDenoiser, Memory
from lcm.models.diffusion import Diffusion, DiffusionSampling
from lcm.models.interface import ConceptModel, Context, Losses, Prompts, read_prompts, resolve_sampling
from lcm.models.layers import KVCache
from lcm.models.transformer import BlockHook, Transformer, no_hook, with_packed_weights
from lcm.sampling import Sampling

ROOM = 16
"""Concepts that can follow a prompt before its caches are copied into larger ones."""


class TwoTowerLCM(ConceptModel):
    """Predicts every concept of a document, the first from the zero vector alone."""

    predicts_first: ClassVar[bool] = True
    defaults: ClassVar[DiffusionSampling] = DiffusionSampling()

    def __init__(self, config: TwoTowerConfig, on_block: BlockHook = no_hook) -> None:
        super().__init__(config.dim)
        self.config = config
        self.diffusion = Diffusion(config.diffusion, config.dim)
        self.pre = nn.Linear(config.dim, config.width)
        sizes = config.width, config.heads
        # The British spelling is in the tensors' names of every saved model.
        self.contextualiser = Transformer(*sizes, config.context_layers, config.dropout, on_block)
        self.denoiser = Denoiser(config.dim, *sizes, config.denoiser_layers, config.dropout, on_block)

    def load_fitted(self, fingerprint: str) -> None:
        self.diffusion.load_fitted(self.normalizer, fingerprint)

    def loss(self, batch: Batch) -> Losses:
        """The loss of denoising each target at a timestep of its own, all of them in one pass (§2.3.4)."""
        z = self.normalizer(batch.emb)
        noising = self.diffusion.draw_noising(batch.row, z.shape[1], drops=self.training)
        index = batch.targets(self.predicts_first).flatten().nonzero()[:, 0]
        memory = self.contextualize(z, batch, index, noising.dropped)
        noisy = self.diffusion.noisy(z, noising, index)
        timesteps, which = torch.unique(noisy.t, return_inverse=True)
        out = self.denoiser(noisy.x_t, self.denoiser.modulations(timesteps), which, memory)
        return self.diffusion.losses(out, noisy, self.normalizer)

    def contextualize(
        self,
        z: Float[Tensor, "B S D"],
        batch: Batch,
        index: Int[Tensor, " N"],
        dropped: Bool[Tensor, "B S"] | None = None,
    ) -> Memory:
        """The first tower: what the concepts at `index` see, keys and values of the concepts before them.

        index:   slots, counted over all rows
        dropped: slots that see the zero vector alone, as for classifier-free guidance
        """
        states = self.contextualiser(self.pre(z), batch.doc, batch.pos)
        before = document_mask(batch.doc).tril(-1)
        if dropped is not None:
            before = before & ~dropped[:, :, None]
        mask = pad(before, (1, 0), value=True)
        return Memory(self.denoiser.project_kv(states), mask[:, None], index)

    @torch.no_grad()
    def predict(self, batch: Batch, sampling: Sampling) -> Float[Tensor, "B S D"]:
        z = self.normalizer(batch.emb)
        index = (batch.doc != PAD).flatten().nonzero()[:, 0]
        memory = self.contextualize(z, batch, index)
        draws = Draws(sampling.seed, batch.row[:, None], z.shape[1], index)
        new = self._sample(FastDenoiser.of(self.denoiser), memory, draws, sampling)
        predicted = z.new_zeros(batch.doc.numel(), self.dim)
        predicted[index] = self.normalizer.inverse(new)
        return predicted.view_as(z)

    @torch.no_grad()
    def prefill(self, prompts: Prompts) -> "TwoTowerContext":
        """A prompt may be empty: then the first concept comes from the zero vector."""
        z, lengths, number = read_prompts(prompts, self.normalizer)
        room = z.shape[1] + ROOM
        contextualizer = with_packed_weights(self.contextualiser)
        states, cache = contextualizer.extend(self.pre(z), contextualizer.empty_cache(len(z), room), lengths)
        memory = KVCache([layer.grown(1 + room) for layer in self.denoiser.project_kv(states)], lengths + 1)
        return TwoTowerContext(cache, number, contextualizer, FastDenoiser.of(self.denoiser), memory)

    @torch.no_grad()
    def next(self, context: Context, sampling: Sampling) -> Float[Tensor, "B D"]:
        assert isinstance(context, TwoTowerContext)
        layers, mask = context.memory.filled()
        memory = Memory(layers, None if mask.all() else mask)
        new = self._sample(context.denoiser, memory, Draws(sampling.seed, context.keys), sampling)
        return self.normalizer.inverse(new)

    @torch.no_grad()
    def extend(self, context: Context, concepts: Float[Tensor, "B D"]) -> "TwoTowerContext":
        assert isinstance(context, TwoTowerContext)
        context.consume()
        z = self.normalizer(concepts.to(self.end_of_text.device))
        states, cache = context.contextualizer.extend(self.pre(z).unsqueeze(1), context.cache)
        memory, at, _ = context.memory.extended(1)
        for block, layer in zip(self.denoiser.layers, memory.layers, strict=True):
            layer.write(at, block.cross.project_kv(states))
        return TwoTowerContext(cache, context.prompt, context.contextualizer, context.denoiser, memory)

    def _sample(self, denoiser: FastDenoiser, memory: Memory, draws: Draws, sampling: Sampling) -> Float[Tensor, "N D"]:
        settings = resolve_sampling(sampling, self.defaults)
        modulations = denoiser.modulations(self.diffusion.timesteps(settings))

        def network(x: Float[Tensor, "N D"], i: int, twice: bool) -> Float[Tensor, "G D"]:
            return denoiser(x, modulations[i], memory, twice)

        return self.diffusion.sample(network, draws, settings)


@dataclass
class TwoTowerContext(Context):
    """The contextualizer's cache, both towers with weights packed for few rows, and what the denoiser sees.

    memory: keys and values of each layer of the denoiser: the zero vector's, then one per concept
    """

    contextualizer: Transformer
    denoiser: FastDenoiser
    memory: KVCache
