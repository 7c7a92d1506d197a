"""Noise schedules: the table ᾱ, the timesteps to sample at, and the distribution of timesteps to train on.

Shapes.  T timesteps of training · n any number of them

ᾱ_t is the square of the paper's α_t: x_t = √ᾱ_t z + √(1−ᾱ_t) ε (paper §2.3.2). Timesteps count from 0, and at the last
one ᾱ is exactly 0: pure noise. Tables are float64, because 1 − ᾱ cancels in anything less.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction

import torch
from jaxtyping import Float64
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
    table = _rescaled(torch.cumprod(1 - _betas(schedule, steps, parameters), dim=0))
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


def _rescaled(table: Float64[Tensor, " T"]) -> Float64[Tensor, " T"]:
    """Shift √ᾱ until the last is 0, then stretch it until the first is what it was (Lin et al. 2024, algorithm 1)."""
    root = table.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()


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
