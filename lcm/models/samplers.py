"""From noise to a concept: DDIM, DPM-Solver++, and guidance.

Shapes.  N concepts · D concept width · T timesteps of the schedule

Pure functions over `denoise(x, t)`, which predicts the clean concept. All of them work in normalized space and in fp32,
with coefficients from the float64 table; a table is read once a call, so that a GPU is not waited for at each step.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf, log, sqrt

import torch
from jaxtyping import Float, Float64
from torch import Tensor

Denoiser = Callable[[Float[Tensor, "N D"], int], Float[Tensor, "N D"]]
"""(x, t) → the prediction of x_0."""
Pair = Callable[[Float[Tensor, "N D"], int], tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]]
"""(x, t) → the predictions of x_0 with the context and without it."""
Noise = Callable[[int], Float[Tensor, "N D"]]
"""Number of the step → standard Gaussian noise."""


def ddim(
    denoise: Denoiser,
    x: Float[Tensor, "N D"],
    alpha_bar: Float64[Tensor, " T"],
    timesteps: Sequence[int],
    *,
    eta: float = 0.0,
    epsilon_scaling: float = 1.0,
    clip: float | None = None,
    noise: Noise | None = None,
) -> Float[Tensor, "N D"]:
    """DDIM (Song et al. 2021, eq. 12) as in paper §2.3.2; the last prediction of x_0.

    x:               noise, already multiplied by its initial scale
    timesteps:       falling; one call of `denoise` for each
    eta:             0 is deterministic, 1 ancestral sampling; above, no step adds more noise than it leaves
    epsilon_scaling: divides ε where x moves on, not in the prediction (λ_ε of paper §2.4.1)
    clip:            bound on the predictions' absolute values
    noise:           needed where eta is above 0
    """
    assert eta == 0 or noise is not None, "eta above 0 needs noise"
    x, levels = x.float(), _levels(alpha_bar, timesteps)
    for step, ((t, here), (_, there)) in enumerate(pairwise(zip(timesteps, levels, strict=True))):
        x_0 = _clipped(denoise(x, t), clip)
        variance = min(eta**2 * (1 - there) / (1 - here) * (1 - here / there), 1 - there)
        # √ᾱ' · x_0 + √(1 - ᾱ' - variance) / λ_ε · ε, where ε = (x - √ᾱ · x_0) / √(1 - ᾱ)
        kept = sqrt((1 - there - variance) / (1 - here)) / epsilon_scaling
        x = torch.add(kept * x, x_0, alpha=sqrt(there) - kept * sqrt(here))
        if noise is not None and variance:
            x = x + sqrt(variance) * noise(step).float()
    return _clipped(denoise(x, timesteps[-1]), clip)


def dpm_solver(
    denoise: Denoiser,
    x: Float[Tensor, "N D"],
    alpha_bar: Float64[Tensor, " T"],
    timesteps: Sequence[int],
    *,
    clip: float | None = None,
) -> Float[Tensor, "N D"]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) for predictions of x_0; first order in its first and last step.

    Arguments as for `ddim`. λ = log(√ᾱ / √(1−ᾱ)) is −∞ at pure noise and +∞ at the end, so h, how far a step raises it,
    can be infinite; e^−h and the ratio of two steps' h never are.
    """
    x, levels = x.float(), _levels(alpha_bar, timesteps)
    before, h_before = None, inf
    for (t, here), (_, there) in pairwise(zip(timesteps, levels, strict=True)):
        x_0 = _clipped(denoise(x, t), clip)
        decay = sqrt(here / (1 - here) * (1 - there) / there)
        h = -log(decay) if decay else inf
        # The first step has nothing before it; after pure noise the ratio is 0, which is first order, too.
        ahead = x_0 if before is None else x_0 + h / (2 * h_before) * (x_0 - before)
        x = sqrt((1 - there) / (1 - here)) * x + sqrt(there) * (1 - decay) * ahead
        before, h_before = x_0, h
    return _clipped(denoise(x, timesteps[-1]), clip)


def guided(
    both: Pair, alone: Denoiser, alpha_bar: Float64[Tensor, " T"], scale: float, rescale: float = 0.0
) -> Denoiser:
    """Classifier-free guidance as a denoiser (paper §2.3.2): ε = ε_u + scale · (ε_c − ε_u), one call of `both` a step.

    alone:   with the context; used at pure noise, where ε says nothing of x_0. For scale 1 it is all there is
    rescale: 0 to 1, how far ε is given the spread over the channels that ε_c has (Lin et al. 2024, eqs. 15 and 16)
    """
    if scale == 1:
        return alone
    table = alpha_bar.tolist()

    def denoise(x: Float[Tensor, "N D"], t: int) -> Float[Tensor, "N D"]:
        if table[t] == 0:
            return alone(x, t)
        signal = sqrt(table[t])
        # √(1 - ᾱ) · ε, because guidance of a multiple of ε is this multiple of the guided ε.
        with_context, without = (torch.sub(x, x_0.float(), alpha=signal) for x_0 in both(x, t))
        return (x - guided_eps(with_context, without, scale, rescale)) / signal

    return denoise


def guided_eps(
    with_context: Float[Tensor, "N D"], without: Float[Tensor, "N D"], scale: float, rescale: float
) -> Float[Tensor, "N D"]:
    """The guided ε. Where it has no spread over the channels, there is nothing to rescale."""
    eps = without.lerp(with_context, scale)
    if not rescale:
        return eps
    wanted, found = (e.std(dim=-1, keepdim=True) for e in (with_context, eps))
    ratio = torch.where(found > 0, wanted / found, 1)
    return eps * (rescale * ratio + 1 - rescale)


def _levels(alpha_bar: Float64[Tensor, " T"], timesteps: Sequence[int]) -> list[float]:
    """ᾱ at each of these timesteps, on the CPU."""
    assert timesteps, "a timestep at least"
    assert all(a > b for a, b in pairwise(timesteps)), "timesteps fall"
    table = alpha_bar.tolist()
    return [table[t] for t in timesteps]


def _clipped(x_0: Float[Tensor, "N D"], clip: float | None) -> Float[Tensor, "N D"]:
    return x_0.float() if clip is None else x_0.float().clamp(-clip, clip)
