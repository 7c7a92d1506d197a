"""Noising concepts: schedules, timesteps, what the denoiser predicts, and how much each target's loss weighs.

Shapes.  N targets · D concept width

ᾱ_t is the square of the paper's α_t: x_t = √ᾱ_t z + √(1−ᾱ_t) ε (paper §2.3.2). Timesteps are counted from 0; at the
last one ᾱ is exactly 0, pure noise. Tables are float64, because 1 − ᾱ cancels in anything less; concepts are fp32.
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from lcm.config import DiffusionConfig
from lcm.errors import UserError
from lcm.models.fragility import Fragility, load_fragility
from lcm.models.normalizer import Normalizer

QUADRATIC = {"quadratic-1": (0.001, 0.0012), "quadratic-2": (0.02, 0.022)}
"""First and last β of the paper's two, which make sense only after the rescaling (paper §2.4.3)."""
LINEAR = (1e-4, 0.02)
PARAMETERS = {
    **dict.fromkeys(("cosine", "linear", *QUADRATIC), ()),
    "quadratic": ("b0", "b1"),
    "sigmoid": ("gamma", "delta"),
}
"""The parameters that each schedule needs; it takes no others."""


def alpha_bar(
    schedule: str,
    steps: int = 100,
    *,
    b0: float | None = None,
    b1: float | None = None,
    gamma: float | None = None,
    delta: float | None = None,
) -> Float64[Tensor, " steps"]:
    """ᾱ of every timestep after the rescaling to zero terminal signal-to-noise (paper §2.3.2), on the CPU.

    b0, b1:       of `quadratic`: √β grows linearly between their roots
    gamma, delta: of `sigmoid`: scale and centre of the log signal-to-noise ratio
    Raises UserError for an unknown schedule, for parameters that it lacks or has no use for, and for a table that does
    not fall from below 1 to 0.
    """
    given = {"b0": b0, "b1": b1, "gamma": gamma, "delta": delta}
    parameters = {name: value for name, value in given.items() if value is not None}
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


def _betas(schedule: str, steps: int, parameters: Mapping[str, float]) -> Float64[Tensor, " steps"]:
    """β_t = 1 − ᾱ_t / ᾱ_{t−1} before the rescaling."""
    match schedule:
        case "cosine":
            return _betas_of(lambda u: torch.cos((u + 0.008) / 1.008 * torch.pi / 2).square(), steps)
        case "sigmoid":
            gamma, delta = parameters["gamma"], parameters["delta"]
            return _betas_of(lambda u: torch.sigmoid(delta - gamma * torch.logit(u)), steps)
        case "linear":
            return torch.linspace(*LINEAR, steps, dtype=torch.float64, device="cpu")
        case _:
            b0, b1 = QUADRATIC[schedule] if schedule in QUADRATIC else (parameters["b0"], parameters["b1"])
            return torch.linspace(b0**0.5, b1**0.5, steps, dtype=torch.float64, device="cpu").square()


def _betas_of(f: Callable[[Float64[Tensor, " n"]], Float64[Tensor, " n"]], steps: int) -> Float64[Tensor, " steps"]:
    """For a schedule whose ᾱ is f(u) / f(0), u = t/T."""
    values = f(torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps)
    return (1 - values[1:] / values[:-1]).clamp(max=0.999)


def _rescaled(table: Float64[Tensor, " steps"]) -> Float64[Tensor, " steps"]:
    """√ᾱ shifted so that its last is 0, then stretched so that its first stays (Lin et al. 2024, algorithm 1)."""
    root = table.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()


def sampling_timesteps(train_steps: int, sampling_steps: int) -> list[int]:
    """`sampling_steps` timesteps from the last one down, evenly spread: round(T − i·T/S) − 1 (paper §2.3.2).

    Halves go to the even side, in exact arithmetic: with a truncated stride, 40 steps of 100 are really 50.
    Raises UserError where there are not that many.
    """
    if not 1 <= sampling_steps <= train_steps:
        raise UserError(
            f"steps={sampling_steps}: the model was trained with {train_steps}; expected 1 to {train_steps}"
        )
    return [round(train_steps - Fraction(i * train_steps, sampling_steps)) - 1 for i in range(sampling_steps)]


def beta_probabilities(steps: int, a: float, b: float) -> Float64[Tensor, " steps"]:
    """p(t) ∝ u^(a−1) (1−u)^(b−1) with u = (t+1)/T."""
    u = torch.arange(1, steps + 1, dtype=torch.float64, device="cpu") / steps
    density = u ** (a - 1) * (1 - u) ** (b - 1)
    return density / density.sum()


class Diffusion(nn.Module):
    """The schedule of a model, and everything that follows from it. Has buffers alone, nothing to train.

    `alpha_bar` stays float64 when the model around it is cast to half precision. With weight `fragility` the frozen
    network is part of the model; `read_fragility` fills it for training.
    """

    alpha_bar: Float64[Tensor, " T"]

    def __init__(self, config: DiffusionConfig, dim: int) -> None:
        """Raises UserError where the schedule and its parameters do not fit."""
        super().__init__()
        self.config = config
        try:
            table = alpha_bar(
                config.schedule, config.steps, b0=config.b0, b1=config.b1, gamma=config.gamma, delta=config.delta
            )
        except UserError as error:
            raise UserError(f"model.diffusion: {error}") from error
        self.register_buffer("alpha_bar", table.to(torch.get_default_device()))
        self.fragility = Fragility(dim) if config.weight == "fragility" else None

    def read_fragility(self, normalizer: Normalizer, codec: str) -> None:
        """With weight `fragility`: the file that the configuration names, for this normalizer and codec fingerprint.

        Raises UserError where it is missing, broken, or another codec's.
        """
        if self.fragility is not None:
            dim = len(normalizer.location)
            fitted = load_fragility(self.config.fragility, dim, normalizer=normalizer, fingerprint=codec)
            self.fragility.load_state_dict(fitted.state_dict())

    def noise(self, z: Float[Tensor, "N D"], t: Int[Tensor, " N"], eps: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """x_t: the concepts after t + 1 steps of noise."""
        signal, noise = self._roots(t)
        return signal * z.float() + noise * eps.float()

    def target(self, z: Float[Tensor, "N D"], t: Int[Tensor, " N"], eps: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """What the denoiser is asked for: z, ε, or v = √ᾱ ε − √(1−ᾱ) z."""
        signal, noise = self._roots(t)
        match self.config.prediction:
            case "x0":
                return z.float()
            case "eps":
                return eps.float()
            case "v":
                return signal * eps.float() - noise * z.float()

    def x0(self, out: Float[Tensor, "N D"], x_t: Float[Tensor, "N D"], t: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
        """The concept that the denoiser's output stands for.

        At the last timestep ε says nothing about it: then it is 0, the centre of normalized space.
        """
        signal, noise = self._roots(t)
        match self.config.prediction:
            case "x0":
                return out.float()
            case "eps":
                known = signal > 0
                return ((x_t.float() - noise * out.float()) / signal.where(known, 1)).where(known, 0)
            case "v":
                return signal * x_t.float() - noise * out.float()

    def eps(self, out: Float[Tensor, "N D"], x_t: Float[Tensor, "N D"], t: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
        """The noise that the denoiser's output stands for."""
        signal, noise = self._roots(t)
        match self.config.prediction:
            case "x0":
                return (x_t.float() - signal * out.float()) / noise
            case "eps":
                return out.float()
            case "v":
                return signal * out.float() + noise * x_t.float()

    def weight(self, z: Float[Tensor, "N D"], t: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Of each target's loss; one target's never depends on another's.

        none: 1. snr: max(min(SNR_t, max_snr), min_snr) (paper eq. 17). fragility: sigmoid(−4 F(z) + 3.5) (§2.4.4).
        """
        match self.config.weight:
            case "none":
                return torch.ones_like(t, dtype=torch.float32)
            case "snr":
                ab = self.alpha_bar[t]
                return (ab / (1 - ab)).clamp(max=self.config.max_snr).clamp(min=self.config.min_snr).float()
            case "fragility":
                assert self.fragility is not None
                return torch.sigmoid(-4 * self.fragility(z) + 3.5)

    def draw_timesteps(self, shape: Sequence[int], generator: torch.Generator) -> Int[Tensor, "..."]:
        """Timesteps to train on, uniform or with `beta_probabilities`, on the generator's device."""
        config, device = self.config, generator.device
        if config.timesteps == "uniform":
            return torch.randint(config.steps, tuple(shape), generator=generator, device=device)
        up_to = beta_probabilities(config.steps, config.beta_a, config.beta_b).cumsum(0).to(device)
        u = torch.rand(tuple(shape), generator=generator, dtype=torch.float64, device=device)
        return torch.searchsorted(up_to, u, right=True).clamp(max=config.steps - 1)

    def _roots(self, t: Int[Tensor, " N"]) -> tuple[Float[Tensor, "N 1"], Float[Tensor, "N 1"]]:
        """√ᾱ and √(1−ᾱ), the difference taken in float64."""
        ab = self.alpha_bar[t].unsqueeze(-1)
        return ab.sqrt().float(), (1 - ab).sqrt().float()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Diffusion":
        """nn.Module's way to move and to cast. A cast leaves the table as it was, a move takes it along."""
        exact = self.alpha_bar
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.alpha_bar.dtype != torch.float64:
            self.alpha_bar = exact.to(self.alpha_bar.device)
        return self
