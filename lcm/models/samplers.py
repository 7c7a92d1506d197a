"""From noise to concepts: DDIM, DPM-Solver++, and classifier-free guidance.

Shapes.  N concepts · D concept width

A sampler takes `denoise(x, i)`, which predicts the clean concepts x_0 from x at step i, and `levels`, ᾱ at each step,
rising. It calls `denoise` once a step and returns the last prediction. x is fp32, in normalized space; coefficients are
in double precision; no step waits for a GPU.

To add one: a function here, its name in `DiffusionSampling` and its call in `Diffusion.sample` (diffusion.py), its name
in `Sampling` (interface.py).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf, log, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

Denoise = Callable[[Float[Tensor, "N D"], int], Float[Tensor, "N D"]]
"""(x, i) → x_0."""
DenoisePair = Callable[[Float[Tensor, "N D"], int], tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]]
"""(x, i) → x_0 with the context, x_0 without it."""
Noise = Callable[[int], Float[Tensor, "N D"]]
"""i → standard Gaussian noise."""


def ddim(
    denoise: Denoise,
    x: Float[Tensor, "N D"],
    levels: Sequence[float],
    *,
    eta: float = 0.0,
    epsilon_scaling: float = 1.0,
    noise: Noise | None = None,
) -> Float[Tensor, "N D"]:
    """DDIM (Song et al. 2021, eq. 12), as in paper §2.3.2.

    x:               noise, multiplied by its initial scale
    eta:             0 is deterministic, 1 ancestral sampling; above 1 the variance is capped at 1 − ᾱ
    epsilon_scaling: λ_ε of paper §2.4.1, divides ε where x moves on but not in the prediction
    noise:           required where eta is above 0
    """
    assert eta == 0 or noise is not None, "eta above 0 needs noise"
    x = x.float()
    for i, (here, there) in enumerate(_steps(levels)):
        x_0 = denoise(x, i).float()
        variance = min(eta**2 * (1 - there) / (1 - here) * (1 - here / there), 1 - there)
        # √ᾱ' · x_0 + √(1 − ᾱ' − variance) / λ_ε · ε, where ε = (x − √ᾱ · x_0) / √(1 − ᾱ), in one pass over memory
        kept = sqrt((1 - there - variance) / (1 - here)) / epsilon_scaling
        x = torch.add(kept * x, x_0, alpha=sqrt(there) - kept * sqrt(here))
        if noise is not None and variance:
            x = x + sqrt(variance) * noise(i).float()
    return denoise(x, len(levels) - 1).float()


def dpm_solver(denoise: Denoise, x: Float[Tensor, "N D"], levels: Sequence[float]) -> Float[Tensor, "N D"]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) for predictions of x_0; first order in its first and last step.

    λ = log(√ᾱ / √(1−ᾱ)) is −∞ at pure noise and +∞ at the end, so h, the rise of λ over a step, can be infinite. The
    update only uses e^−h and the ratio of two rises, which are finite.
    """
    x = x.float()
    before, h_before = None, inf
    for i, (here, there) in enumerate(_steps(levels)):
        x_0 = denoise(x, i).float()
        decay = sqrt(here / (1 - here) * (1 - there) / there)
        h = -log(decay) if decay else inf
        # The first step has no step before it. After pure noise the ratio is 0, which is first order, too.
        ahead = x_0 if before is None else x_0 + h / (2 * h_before) * (x_0 - before)
        x = sqrt((1 - there) / (1 - here)) * x + sqrt(there) * (1 - decay) * ahead
        before, h_before = x_0, h
    return denoise(x, len(levels) - 1).float()


def _steps(levels: Sequence[float]) -> list[tuple[float, float]]:
    """ᾱ before and after each step but the last."""
    steps = list(pairwise(levels))
    assert levels, "at least one step"
    assert all(here < there for here, there in steps), "ᾱ rises"
    return steps


def guided(
    pair: DenoisePair, conditional: Denoise, levels: Sequence[float], scale: float, rescale: float = 0.0
) -> Denoise:
    """Classifier-free guidance (paper §2.3.2): ε = ε_u + scale · (ε_c − ε_u), with one call of `pair` a step.

    conditional: the prediction with the context. At pure noise, where ε says nothing about x_0, and for scale 1 it is
                 the guided one
    rescale:     0 to 1, how far ε is brought back to the spread of ε_c over channels (Lin et al. 2024, eqs. 15 and 16)
    """
    if scale == 1:
        return conditional

    def denoise(x: Float[Tensor, "N D"], i: int) -> Float[Tensor, "N D"]:
        if levels[i] == 0:
            return conditional(x, i)
        signal = sqrt(levels[i])
        # √(1 − ᾱ) · ε instead of ε: guidance and rescaling commute with a factor.
        eps_c, eps_u = (torch.sub(x, x_0.float(), alpha=signal) for x_0 in pair(x, i))
        return (x - guided_eps(eps_c, eps_u, scale, rescale)) / signal

    return denoise


def guided_eps(
    eps_c: Float[Tensor, "N D"], eps_u: Float[Tensor, "N D"], scale: float, rescale: float
) -> Float[Tensor, "N D"]:
    """The guided ε. One that does not vary over channels is not rescaled."""
    eps = eps_u.lerp(eps_c, scale)
    if not rescale:
        return eps
    spread_c, spread = (e.std(dim=-1, keepdim=True) for e in (eps_c, eps))
    ratio = torch.where(spread > 0, spread_c / spread, 1)
    return eps * (rescale * ratio + 1 - rescale)
