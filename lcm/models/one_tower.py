"""One-Tower LCM: one transformer denoises each concept beside the clean ones before it (paper §2.3.3).

Shapes.  B rows · S slots · N noisy concepts · G N, or 2N for them with their context and then without it
         D concept width · M model width · U steps

`InterleavedLCM` is what it shares with Quant-LCM: contexts of clean concepts, and noisy concepts beside them.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding

from lcm.batch import PAD, Batch, Draws, document_mask
from lcm.config import InterleavedConfig, OneTowerConfig
from lcm.models.diffusion import Diffusion, DiffusionSampling
from lcm.models.interface import ConceptModel, Context, Losses, Prompts, read_prompts, resolve_sampling
from lcm.models.interleaved import Interleaved, NoisySlots
from lcm.models.layers import LayerCache, TimestepEmbedding
from lcm.models.transformer import BlockHook, no_hook, with_packed_weights
from lcm.sampling import Sampling


@dataclass(frozen=True)
class Conditioning:
    """The context of N new concepts: clean keys and values, their slots and positions, and their random numbers."""

    layers: list[LayerCache]
    slots: NoisySlots
    pos: Int[Tensor, " N"]
    draws: Draws


class InterleavedLCM(ConceptModel):
    """Predicts every concept of a document, the first from nothing. Subclasses define the noisy concepts and steps.

    Step 0 is a clean concept; the steps of a noisy one count from 1.
    """

    predicts_first: ClassVar[bool] = True

    def __init__(self, config: InterleavedConfig, step_embedding: nn.Module, on_block: BlockHook) -> None:
        super().__init__(config.dim)
        self.step_embedding = step_embedding
        self.trunk = Interleaved(config, on_block)

    @abstractmethod
    def sample(self, conditioning: Conditioning, sampling: Sampling) -> Float[Tensor, "N D"]:
        """New concepts in normalized space."""

    @torch.no_grad()
    def predict(self, batch: Batch, sampling: Sampling) -> Float[Tensor, "B S D"]:
        z, pos = self.normalizer(batch.emb), batch.pos
        index = (batch.doc != PAD).flatten().nonzero()[:, 0]
        slots = NoisySlots(document_mask(batch.doc).tril(-1).unsqueeze(1), self.trunk.rotation(pos), index)
        layers = self.trunk.clean_kv(batch.doc, pos, self.clean_inputs(z, pos))
        draws = Draws(sampling.seed, batch.row[:, None], z.shape[1], index)
        new = self.sample(Conditioning(layers, slots, pos.flatten()[index], draws), sampling)
        predicted = z.new_zeros(pos.numel(), self.dim)
        predicted[index] = self.normalizer.inverse(new)
        return predicted.view_as(z)

    @torch.no_grad()
    def prefill(self, prompts: Prompts) -> "InterleavedContext":
        """A prompt may be empty: then the first concept comes from nothing."""
        z, lengths, number = read_prompts(prompts, self.normalizer)
        pos = torch.arange(z.shape[1], device=z.device).expand(len(prompts), -1)
        model = with_packed_weights(self)
        cache = model.trunk.extend(model.clean_inputs(z, pos), model.trunk.empty_cache(*pos.shape), lengths)
        return InterleavedContext(cache, number, model)

    @torch.no_grad()
    def next(self, context: Context, sampling: Sampling) -> Float[Tensor, "B D"]:
        assert isinstance(context, InterleavedContext)
        self.trunk.check_positions(context.lengths)
        layers, mask = context.cache.filled()
        slots = NoisySlots(mask, self.trunk.rotation(context.lengths[:, None]))
        conditioning = Conditioning(layers, slots, context.lengths, Draws(sampling.seed, context.keys))
        return self.normalizer.inverse(context.model.sample(conditioning, sampling))

    @torch.no_grad()
    def extend(self, context: Context, concepts: Float[Tensor, "B D"]) -> "InterleavedContext":
        assert isinstance(context, InterleavedContext)
        context.consume()
        z = self.normalizer(concepts.to(self.end_of_text.device)).unsqueeze(1)
        clean = context.model.clean_inputs(z, context.lengths[:, None])
        return InterleavedContext(context.model.trunk.extend(clean, context.cache), context.prompt, context.model)

    def clean_inputs(self, z: Float[Tensor, "B S D"], pos: Int[Tensor, "B S"]) -> Float[Tensor, "B S M"]:
        """The clean stream's input. Raises UserError for a document that is too long."""
        self.trunk.check_positions(pos)
        step = self.step_inputs(torch.zeros(1, dtype=torch.long, device=z.device))
        return self.trunk.inputs(z, step.expand(*z.shape[:2], -1), pos)

    def step_inputs(self, number: Int[Tensor, " U"]) -> Float[Tensor, "U M"]:
        return self.trunk.step_inputs(self.step_embedding(number))

    def states(
        self, x: Float[Tensor, "N D"], step: Float[Tensor, "1 M"], conditioning: Conditioning, twice: bool = False
    ) -> Float[Tensor, "G M"]:
        """The states of noisy concepts, all at one step; `twice`: with the context, then again without it."""
        inputs = self.trunk.inputs(x, step.expand(len(x), -1), conditioning.pos)
        if twice:
            inputs = torch.cat([inputs, inputs])
        return self.trunk.noisy_states(inputs, conditioning.layers, conditioning.slots, len(inputs) - len(x))


@dataclass
class InterleavedContext(Context):
    """The clean concepts. model: with weights packed for few rows."""

    model: InterleavedLCM


class OneTowerLCM(InterleavedLCM):
    """Step 0 is a clean concept, as in the paper's figure 7; timestep t is step t + 1."""

    defaults: ClassVar[DiffusionSampling] = DiffusionSampling()

    def __init__(self, config: OneTowerConfig, on_block: BlockHook = no_hook) -> None:
        super().__init__(config, TimestepEmbedding(config.step_width), on_block)
        self.config = config
        self.diffusion = Diffusion(config.diffusion, config.dim)
        self.post = nn.Linear(config.width, config.dim)

    def load_fitted(self, fingerprint: str) -> None:
        self.diffusion.load_fitted(self.normalizer, fingerprint)

    def loss(self, batch: Batch) -> Losses:
        """The loss of denoising each target at a timestep of its own, all of them in one pass."""
        z, pos = self.normalizer(batch.emb), batch.pos
        clean = self.clean_inputs(z, pos)
        noising = self.diffusion.draw_noising(batch.row, z.shape[1], drops=self.training)
        index = batch.targets(self.predicts_first).flatten().nonzero()[:, 0]
        noisy = self.diffusion.noisy(z, noising, index)
        timesteps, which = torch.unique(noisy.t, return_inverse=True)
        step = embedding(which, self.step_inputs(timesteps + 1))
        inputs = self.trunk.inputs(noisy.x_t, step, pos.flatten()[index])
        states = self.trunk(clean, inputs, batch.doc, pos, index, noising.dropped)
        return self.diffusion.losses(self.post(states).float(), noisy, self.normalizer)

    def sample(self, conditioning: Conditioning, sampling: Sampling) -> Float[Tensor, "N D"]:
        settings = resolve_sampling(sampling, self.defaults)
        timesteps = self.diffusion.timesteps(settings)
        steps = self.step_inputs(torch.tensor(timesteps, device=self.end_of_text.device) + 1)

        def network(x: Float[Tensor, "N D"], i: int, twice: bool) -> Float[Tensor, "G D"]:
            out: Tensor = self.post(self.states(x, steps[i : i + 1], conditioning, twice)).float()
            return out

        return self.diffusion.sample(network, conditioning.draws, settings)
