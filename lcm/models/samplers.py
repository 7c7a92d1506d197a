"""Noise schedules, and the samplers that walk down one: DDIM, DPM-Solver++, classifier-free guidance (paper §2.3.2).

Shapes.  N concepts · D concept width · T timesteps of training · n any number of them

A schedule is the table ᾱ. ᾱ_t is the square of the paper's α_t: x_t = √ᾱ_t z + √(1−ᾱ_t) ε. Timesteps count from 0, and
at the last one ᾱ is exactly 0: pure noise. Tables are float64, because 1 − ᾱ cancels in anything less.

A sampler takes `denoise(x, i)`, which predicts the clean concepts x_0 from x at step i, and `levels`, ᾱ at each step,
rising. It calls `denoise` once a step and returns the last prediction. x is fp32, in normalized space; coefficients are
in double precision; no step waits for a GPU.

To add a sampler: a function here, its name in `DiffusionSampling` and its call in `Diffusion.sample` (diffusion.py),
its name in `SamplingOptions` (lcm/sampling.py). A schedule: a case in `_betas`, its name in `PARAMETERS` and in
lcm/config/models.py.
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import inf, log, sqrt

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lcm.errors import UserError

QUADRATIC = {"quadratic-1": (0.001, 0.0012), "quadratic-2": (0.02, 0.022)}
"""First and last β of the paper's two quadratic schedules, meant to be rescaled (paper §2.4.3)."""
LINEAR = (1e-4, 0.02)
PARAMETERS = {
    **dict.fromkeys(("cosine", "linear", *QUADRATIC), ()),
    "quadratic": ("b0", "b1"),
    "sigmoid": ("gamma", "delta"),
}
"""The parameters of each schedule, all of them required."""


def alpha_bar(
    schedule: str,
    steps: int = 100,
    *,
    b0: float | None = None,
    b1: float | None = None,
    gamma: float | None = None,
    delta: float | None = None,
) -> Float64[Tensor, " T"]:
    """ᾱ of every timestep, rescaled to zero terminal signal-to-noise ratio (paper §2.3.2), on the CPU.

    b0, b1:       first and last β of `quadratic`; √β grows linearly in between
    gamma, delta: scale and center of the log signal-to-noise ratio of `sigmoid`
    Raises UserError for an unknown schedule, for a missing or superfluous parameter, and for a table that does not
    fall from below 1 to 0.
    """
    options = {"b0": b0, "b1": b1, "gamma": gamma, "delta": delta}
    parameters = {name: value for name, value in options.items() if value is not None}
    if schedule not in PARAMETERS:
        raise UserError(f"schedule={schedule!r}: expected one of {', '.join(PARAMETERS)}")
    if missing := [name for name in PARAMETERS[schedule] if name not in parameters]:
        raise UserError(f"{missing[0]} is missing: schedule {schedule!r} needs {' and '.join(PARAMETERS[schedule])}")
    if superfluous := [name for name in parameters if name not in PARAMETERS[schedule]]:
        raise UserError(f"{superfluous[0]} is set, but schedule {schedule!r} has no use for it; leave it out")
    if steps < 2:
        raise UserError(f"steps={steps}: expected 2 or more")
    root = torch.cumprod(1 - _betas(schedule, steps, parameters), dim=0).sqrt()
    # Shift √ᾱ until the last is 0, then stretch it until the first is what it was (Lin et al. 2024, algorithm 1).
    table = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()
    if not (table[0] < 1 and bool((table.diff() < 0).all())):
        settings = ", ".join(f"{name}={value}" for name, value in parameters.items())
        raise UserError(
            f"{settings}: schedule {schedule!r} then has steps that add no noise; expected ᾱ to fall at every step"
        )
    return table


def _betas(schedule: str, steps: int, parameters: Mapping[str, float]) -> Float64[Tensor, " T"]:
    """β_t = 1 − ᾱ_t / ᾱ_{t−1}, before rescaling."""
    match schedule:
        case "cosine":
            return _betas_from(lambda u: torch.cos((u + 0.008) / 1.008 * torch.pi / 2).square(), steps)
        case "sigmoid":
            gamma, delta = parameters["gamma"], parameters["delta"]
            return _betas_from(lambda u: torch.sigmoid(delta - gamma * torch.logit(u)), steps)
        case "linear":
            return torch.linspace(*LINEAR, steps, dtype=torch.float64, device="cpu")
        case _:
            b0, b1 = QUADRATIC[schedule] if schedule in QUADRATIC else (parameters["b0"], parameters["b1"])
            return torch.linspace(b0**0.5, b1**0.5, steps, dtype=torch.float64, device="cpu").square()


def _betas_from(f: Callable[[Float64[Tensor, " n"]], Float64[Tensor, " n"]], steps: int) -> Float64[Tensor, " T"]:
    """β of the schedule ᾱ(u) = f(u) / f(0), u = t/T."""
    values = f(torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps)
    return (1 - values[1:] / values[:-1]).clamp(max=0.999)


def sampling_timesteps(train_steps: int, sampling_steps: int) -> list[int]:
    """`sampling_steps` timesteps from the last one down, evenly spread: round(T − i·T/S) − 1 (paper §2.3.2).

    Halves go to the even side, in exact arithmetic: with a truncated stride, 40 steps of 100 are really 50.
    Raises UserError for more sampling steps than training steps, or none.
    """
    if not 1 <= sampling_steps <= train_steps:
        raise UserError(
            f"steps={sampling_steps}: the model was trained with {train_steps}; expected 1 to {train_steps}"
        )
    return [round(train_steps - Fraction(i * train_steps, sampling_steps)) - 1 for i in range(sampling_steps)]


def beta_probabilities(steps: int, a: float, b: float) -> Float64[Tensor, " T"]:
    """Probabilities of the timesteps: p(t) ∝ u^(a−1) (1−u)^(b−1), u = (t+1)/T."""
    u = torch.arange(1, steps + 1, dtype=torch.float64, device="cpu") / steps
    density = u ** (a - 1) * (1 - u) ** (b - 1)
    return density / density.sum()


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
