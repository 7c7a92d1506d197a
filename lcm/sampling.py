"""Settings for drawing concepts: those of a call, and those that a model's configuration names as its best."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from lcm.errors import UserError
from lcm.options import Option, check_fields, refuse_idle

SAMPLING_HELP = "by default what the model's folder names as best, else what the paper uses for the model's kind"

OF_DDIM = ("epsilon_scaling", "eta")
"""Settings that the sampler dpm does not read."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Settings for drawing concepts. None stands for the default of the model's family, which is the paper's."""

    temperature: Annotated[float | None, Option(least=0)] = None
    """Base: spread of the noise added to the prediction (0); Quant: of the choice among units (d: 1, c: 0.005)."""
    top_k: Annotated[int | None, Option(least=1)] = None
    """Quant: units to choose among (d: 3, c: 5)."""
    guidance: Annotated[float | None, Option(least=0)] = None
    """Scale of the step from the prediction without context towards the one with it; 1 is no guidance
    (diffusion: 3, d: 1, c: 1.5)."""
    rescale: Annotated[float | None, Option(least=0, most=1)] = None
    """diffusion: how much of the larger spread that guidance causes is taken back, 0 to 1 (0.7)."""
    steps: Annotated[int | None, Option(least=1)] = None
    """diffusion: calls of the denoiser (40)."""
    sampler: Literal["ddim", "dpm"] | None = None
    """diffusion: ddim, or dpm for DPM-Solver++ (ddim)."""
    initial_noise: Annotated[float | None, Option(least=0)] = None
    """diffusion: spread of the noise to start from (0.6)."""
    epsilon_scaling: float | None = None
    """diffusion, ddim: λ_ε, what the noise is divided by at every step (1.00045)."""
    eta: Annotated[float | None, Option(least=0)] = None
    """diffusion, ddim: noise added on the way, 1 as much as in training (0)."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.epsilon_scaling is not None and not self.epsilon_scaling > 0:
            raise UserError(f"--epsilon-scaling={self.epsilon_scaling}: expected more than 0")
        if self.sampler == "dpm":
            refuse_idle(self, OF_DDIM, "means nothing to --sampler dpm; leave it out, or take --sampler ddim")


@dataclass(frozen=True, kw_only=True)
class Sampling(SamplingOptions):
    """Settings for drawing the next concept: arguments of `next` and `predict`; a model keeps no such state.

    A setting that the family does not have is refused. The noise of a prompt depends on (seed, prompt, position) alone,
    so a batch draws what single rows do.
    """

    seed: Annotated[int, Option(least=0, most=2**64 - 1)] = 0
    """Seed of everything that is drawn."""
    paper: bool = False
    """Sample as the paper does, instead of by the settings that the model's folder names."""

    def completed(self, own: SamplingOptions) -> "Sampling":
        """Fill the settings that are None with those of the model's folder, unless `paper` is set."""
        if self.paper:
            return self
        filled = {n: v for n, v in vars(own).items() if v is not None and getattr(self, n) is None}
        if self.sampler == "dpm":
            filled = {name: value for name, value in filled.items() if name not in OF_DDIM}
        return replace(self, **filled)
