"""What every model that denoises concepts shares: what it is trained on, its loss, and how it samples.

Shapes.  B rows · S slots · N concepts · D concept width
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcm.models.diffusion import Diffusion, sampling_timesteps
from lcm.models.interface import Losses
from lcm.models.normalizer import Normalizer
from lcm.models.randomness import Draws
from lcm.models.samplers import ddim, dpm_solver, guided
from lcm.seeds import generators

Pair = Callable[[Float[Tensor, "N D"], int], tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]]
"""(x_t, number of the step) → the network's output with the context, and without it."""
Alone = Callable[[Float[Tensor, "N D"], int], Float[Tensor, "N D"]]
"""(x_t, number of the step) → the network's output with the context."""
DRAWING = 8
"""Threads that draw noise, at most."""


@dataclass(frozen=True)
class DiffusionSampling:
    """The paper's settings (§2.4.1); `Sampling` says what each does."""

    guidance: float = 3.0
    rescale: float = 0.7
    steps: int = 40
    sampler: Literal["ddim", "dpm"] = "ddim"
    initial_noise: float = 0.6
    epsilon_scaling: float = 1.00045
    eta: float = 0.0


class Noising(NamedTuple):
    """A timestep and noise for every slot, and whether it is to be denoised without its context."""

    t: Int[Tensor, "B S"]
    eps: Float[Tensor, "B S D"]
    dropped: Bool[Tensor, "B S"]


def draw_noising(diffusion: Diffusion, row: Int[Tensor, " B"], slots: int, dim: int, drops: bool) -> Noising:
    """Each row's is a function of its number in `row` alone. drops: whether contexts are dropped at all."""

    def of_row(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        t, eps = diffusion.draw_timesteps((slots,), g), torch.randn(slots, dim, generator=g)
        return t, eps, torch.rand(slots, generator=g) < diffusion.config.context_drop

    # torch draws a row in one thread, and a GPU would wait for all of them.
    with ThreadPoolExecutor(min(DRAWING, os.cpu_count() or 1)) as pool:
        drawn = list(pool.map(of_row, generators(0, row[:, None])))
    t, eps, dropped = (torch.stack(parts).to(row.device) for parts in zip(*drawn, strict=True))
    return Noising(t, eps, dropped if drops else torch.zeros_like(dropped))


def denoising_losses(
    diffusion: Diffusion,
    normalizer: Normalizer,
    out: Float[Tensor, "N D"],
    z: Float[Tensor, "N D"],
    x_t: Float[Tensor, "N D"],
    t: Int[Tensor, " N"],
    eps: Float[Tensor, "N D"],
) -> Losses:
    """w(t) · |target - out|², summed over channels (paper eq. 16); in fp32.

    Meter l2_denoised: the distance between the denoised concept and the true one as raw vectors.
    """
    error = (diffusion.target(z, t, eps) - out).square().sum(-1)
    with torch.no_grad():
        denoised = normalizer.inverse(diffusion.x0(out, x_t, t))
        l2 = (denoised - normalizer.inverse(z)).norm(dim=-1)
    return Losses(diffusion.weight(z, t) * error, {"l2_denoised": l2})


def sample(
    diffusion: Diffusion,
    both: Pair,
    alone: Alone,
    timesteps: Sequence[int],
    draws: Draws,
    dim: int,
    settings: DiffusionSampling,
) -> Float[Tensor, "N D"]:
    """Concepts in normalized space, by one call of the network a timestep."""
    number = {t: i for i, t in enumerate(timesteps)}
    noise = draws.gaussian(0, dim)
    every = noise.new_empty(len(noise), dtype=torch.long)

    def x0(out: Float[Tensor, "N D"], x: Float[Tensor, "N D"], t: int) -> Float[Tensor, "N D"]:
        return out.float() if diffusion.config.prediction == "x0" else diffusion.x0(out, x, every.fill_(t))

    def conditional(x: Float[Tensor, "N D"], t: int) -> Float[Tensor, "N D"]:
        return x0(alone(x, number[t]), x, t)

    def pair(x: Float[Tensor, "N D"], t: int) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
        with_context, without = both(x, number[t])
        return x0(with_context, x, t), x0(without, x, t)

    denoise = guided(pair, conditional, diffusion.alpha_bar, settings.guidance, settings.rescale)
    start = settings.initial_noise * noise
    if settings.sampler == "dpm":
        return dpm_solver(denoise, start, diffusion.alpha_bar, timesteps)
    return ddim(
        denoise,
        start,
        diffusion.alpha_bar,
        timesteps,
        eta=settings.eta,
        epsilon_scaling=settings.epsilon_scaling,
        noise=lambda step: draws.gaussian(1 + step, dim),
    )


def timesteps_of(diffusion: Diffusion, settings: DiffusionSampling) -> list[int]:
    """Raises UserError for more steps than the model was trained with."""
    return sampling_timesteps(diffusion.config.steps, settings.steps)
