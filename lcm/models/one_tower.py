"""One-Tower LCM: one transformer denoises each concept beside the clean ones before it (paper §2.3.3).

Shapes.  B rows · S slots · N concepts · G outputs, N or 2N · D concept width · M model width
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import embedding

from lcm.batch import Batch
from lcm.config import OneTowerConfig
from lcm.models.denoiser import TimestepEmbedding
from lcm.models.diffusion import Diffusion, DiffusionSampling
from lcm.models.interface import Losses, Sampling, resolve_sampling
from lcm.models.interleaved import Conditioning, InterleavedLCM
from lcm.models.transformer import BlockHook, no_hook


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
