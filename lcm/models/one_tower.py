"""One-Tower LCM: one transformer denoises each concept beside the clean ones before it (paper §2.3.3).

Shapes.  B rows · S slots · N concepts · D concept width · M model width · U timesteps · E step width
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding, silu

from lcm.batch import Batch
from lcm.config import OneTowerConfig
from lcm.models.denoiser import FREQUENCIES, sinusoids
from lcm.models.diffusing import DiffusionSampling, denoising_losses, draw_noising, sample, timesteps_of
from lcm.models.diffusion import Diffusion
from lcm.models.interface import Losses, Sampling, settle
from lcm.models.interleaved import InterleavedLCM, Places
from lcm.models.transformer import BlockHook, no_hook


class StepEmbedding(nn.Module):
    """Sinusoids of the step, then linear, SiLU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(2 * FREQUENCIES, width), nn.Linear(width, width)

    def forward(self, step: Int[Tensor, " U"]) -> Float[Tensor, "U E"]:
        out: Tensor = self.out(silu(self.hidden(sinusoids(step))))
        return out


class OneTowerLCM(InterleavedLCM):
    """Step 0 is a clean concept, as in the paper's figure 7; timestep t is step t + 1."""

    defaults: ClassVar[DiffusionSampling] = DiffusionSampling()

    def __init__(self, config: OneTowerConfig, on_block: BlockHook = no_hook) -> None:
        super().__init__(config, StepEmbedding(config.step_width), on_block)
        self.config = config
        self.diffusion = Diffusion(config.diffusion, config.dim)
        self.post = nn.Linear(config.width, config.dim)

    def read_fitted(self, codec: str) -> None:
        self.diffusion.read_fragility(self.normalizer, codec)

    def loss(self, batch: Batch) -> Losses:
        """`denoising_losses` of each target at a timestep of its own, all of them in one pass."""
        z, pos = self.normalizer(batch.emb), batch.pos
        given = self.clean(z, pos)
        noising = draw_noising(self.diffusion, batch.row, z.shape[1], self.dim, drops=self.training)
        index = batch.targets(self.predicts_first).flatten().nonzero()[:, 0]
        clean, t, eps = z.flatten(0, 1)[index], noising.t.flatten()[index], noising.eps.flatten(0, 1)[index]
        x_t = self.diffusion.noise(clean, t, eps)
        steps, which = torch.unique(t, return_inverse=True)
        step = embedding(which, self.steps(steps + 1))
        making = self.trunk.inputs(x_t, step, pos.flatten()[index])
        state = self.trunk(given, making, batch.doc, pos, index, noising.dropped)
        out = self.post(state).float()
        return denoising_losses(self.diffusion, self.normalizer, out, clean, x_t, t, eps)

    def sample(self, places: Places, sampling: Sampling) -> Float[Tensor, "N D"]:
        settings = settle(sampling, self.defaults)
        timesteps = timesteps_of(self.diffusion, settings)
        steps = self.steps(torch.tensor(timesteps, device=self.end_of_text.device) + 1)

        def both(x: Float[Tensor, "N D"], number: int) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
            state = self.made(torch.cat([x, x]), steps[number : number + 1], places, without=len(x))
            out = self.post(state).float()
            return out[: len(x)], out[len(x) :]

        def alone(x: Float[Tensor, "N D"], number: int) -> Float[Tensor, "N D"]:
            out: Tensor = self.post(self.made(x, steps[number : number + 1], places)).float()
            return out

        return sample(self.diffusion, both, alone, timesteps, places.draws, self.dim, settings)
