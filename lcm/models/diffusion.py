"""The diffusion of concepts: what a network is trained on, its loss, and how it samples (paper §2.3.2).

Shapes.  B rows · S slots · N concepts · D concept width · T timesteps of training
         G outputs: N, or 2N for the concepts with their context and then without it

All of it happens in normalized space and in fp32, with coefficients from the float64 table ᾱ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from lcm.batch import Draws, draw_rows
from lcm.config import DiffusionConfig
from lcm.errors import UserError
from lcm.models.fragility import FragilityNetwork, load_fragility
from lcm.models.interface import Losses, Normalizer
from lcm.models.samplers import alpha_bar, beta_probabilities, ddim, dpm_solver, guided, sampling_timesteps

Network = Callable[[Float[Tensor, "N D"], int, bool], Float[Tensor, "G D"]]
"""(x_t, number of the sampling step, twice) → its output with the context; `twice`: followed by that without it."""


@dataclass(frozen=True)
class DiffusionSampling:
    """The paper's settings (§2.4.1); `Sampling` documents each."""

    guidance: float = 3.0
    rescale: float = 0.7
    steps: int = 40
    sampler: Literal["ddim", "dpm"] = "ddim"
    initial_noise: float = 0.6
    epsilon_scaling: float = 1.00045
    eta: float = 0.0


class Noising(NamedTuple):
    """The random numbers of a batch: a timestep and noise for every slot, and whether its context is dropped."""

    t: Int[Tensor, "B S"]
    eps: Float[Tensor, "B S D"]
    dropped: Bool[Tensor, "B S"]


class Noisy(NamedTuple):
    """Targets z, and what becomes of them after t + 1 steps of the noise eps."""

    z: Float[Tensor, "N D"]
    t: Int[Tensor, " N"]
    eps: Float[Tensor, "N D"]
    x_t: Float[Tensor, "N D"]


class Diffusion(nn.Module):
    """The schedule of a model and everything that follows from it. Holds buffers, no parameters.

    With weight `fragility` the frozen network is part of the model; `load_fitted` fills it for training.
    """

    alpha_bar: Float64[Tensor, " T"]

    def __init__(self, config: DiffusionConfig, dim: int) -> None:
        """Raises UserError for a schedule that its parameters do not fit."""
        super().__init__()
        self.config, self.dim = config, dim
        try:
            table = alpha_bar(
                config.schedule, config.steps, b0=config.b0, b1=config.b1, gamma=config.gamma, delta=config.delta
            )
        except UserError as error:
            raise UserError(f"model.diffusion: {error}") from error
        self.register_buffer("alpha_bar", table.to(torch.get_default_device()))
        self.fragility = FragilityNetwork(dim) if config.weight == "fragility" else None

    def load_fitted(self, normalizer: Normalizer, fingerprint: str) -> None:
        """With weight `fragility`, read the network. Raises UserError if it is missing, broken or of another codec."""
        if self.fragility is not None:
            fitted = load_fragility(self.config.fragility, self.dim, normalizer=normalizer, fingerprint=fingerprint)
            self.fragility.load_state_dict(fitted.state_dict())

    def draw_noising(self, row: Int[Tensor, " B"], slots: int, drops: bool) -> Noising:
        """Random numbers for every slot, a function of each row's number alone. drops: whether contexts are dropped."""

        def draw(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            t, eps = self.draw_timesteps((slots,), g), torch.randn(slots, self.dim, generator=g)
            return t, eps, torch.rand(slots, generator=g) < self.config.context_drop

        t, eps, dropped = draw_rows(row, draw)
        return Noising(t, eps, dropped if drops else torch.zeros_like(dropped))

    def noisy(self, z: Float[Tensor, "B S D"], noising: Noising, index: Int[Tensor, " N"]) -> Noisy:
        """The concepts at `index`, counted over all slots of the batch, with their noise."""
        clean, t, eps = z.flatten(0, 1)[index], noising.t.flatten()[index], noising.eps.flatten(0, 1)[index]
        return Noisy(clean, t, eps, self.noise(clean, t, eps))

    def losses(self, out: Float[Tensor, "N D"], noisy: Noisy, normalizer: Normalizer) -> Losses:
        """w(t) · |target − out|², summed over channels (paper eq. 16). Meter l2_denoised: distance as raw vectors."""
        z, t, eps, x_t = noisy
        error = (self.target(z, t, eps) - out).square().sum(-1)
        with torch.no_grad():
            l2 = normalizer.distance(self.x0(out, x_t, t), z)
        return Losses(self.weight(z, t) * error, {"l2_denoised": l2})

    def draw_timesteps(self, shape: Sequence[int], generator: torch.Generator) -> Int[Tensor, "..."]:
        """Timesteps to train on, uniform or with `beta_probabilities`, on the generator's device."""
        config, device = self.config, generator.device
        if config.timesteps == "uniform":
            return torch.randint(config.steps, tuple(shape), generator=generator, device=device)
        cumulative = beta_probabilities(config.steps, config.beta_a, config.beta_b).cumsum(0).to(device)
        u = torch.rand(tuple(shape), generator=generator, dtype=torch.float64, device=device)
        return torch.searchsorted(cumulative, u, right=True).clamp(max=config.steps - 1)

    def noise(self, z: Float[Tensor, "N D"], t: Int[Tensor, " N"], eps: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """x_t = √ᾱ z + √(1−ᾱ) ε: the concepts after t + 1 steps of noise."""
        signal, noise = self._roots(t)
        return signal * z.float() + noise * eps.float()

    def target(self, z: Float[Tensor, "N D"], t: Int[Tensor, " N"], eps: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """The network's target: z, ε, or v = √ᾱ ε − √(1−ᾱ) z."""
        signal, noise = self._roots(t)
        match self.config.prediction:
            case "x0":
                return z.float()
            case "eps":
                return eps.float()
            case "v":
                return signal * eps.float() - noise * z.float()

    def x0(
        self, out: Float[Tensor, "N D"], x_t: Float[Tensor, "N D"], t: Int[Tensor, " N"] | int
    ) -> Float[Tensor, "N D"]:
        """The clean concept that follows from the network's output; t: one for all, or one for each.

        At pure noise ε says nothing about the concept: the answer is 0, the center of normalized space.
        """
        if self.config.prediction == "x0":
            return out.float()
        signal, noise = self._roots(t)
        if self.config.prediction == "v":
            return signal * x_t.float() - noise * out.float()
        known = signal > 0
        return ((x_t.float() - noise * out.float()) / signal.where(known, 1)).where(known, 0)

    def weight(self, z: Float[Tensor, "N D"], t: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """w(t), the weight of each target's loss, which never depends on the other targets.

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

    def _roots(self, t: Int[Tensor, " N"] | int) -> tuple[Float[Tensor, "*n 1"], Float[Tensor, "*n 1"]]:
        """√ᾱ and √(1−ᾱ), the difference taken in float64."""
        ab = self.alpha_bar[t].unsqueeze(-1)
        return ab.sqrt().float(), (1 - ab).sqrt().float()

    def timesteps(self, settings: DiffusionSampling) -> list[int]:
        """Timesteps to sample at, falling. Raises UserError for more steps than the model was trained with."""
        return sampling_timesteps(self.config.steps, settings.steps)

    def sample(self, network: Network, draws: Draws, settings: DiffusionSampling) -> Float[Tensor, "N D"]:
        """New concepts, by one call of the network a timestep; the branches of guidance share a call."""
        timesteps, table = self.timesteps(settings), self.alpha_bar.tolist()
        levels = [table[t] for t in timesteps]

        def conditional(x: Float[Tensor, "N D"], i: int) -> Float[Tensor, "N D"]:
            return self.x0(network(x, i, False), x, timesteps[i])

        def pair(x: Float[Tensor, "N D"], i: int) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
            out, t = network(x, i, True), timesteps[i]
            return self.x0(out[: len(x)], x, t), self.x0(out[len(x) :], x, t)

        denoise = guided(pair, conditional, levels, settings.guidance, settings.rescale)
        x = settings.initial_noise * draws.gaussian(0, self.dim)
        if settings.sampler == "dpm":
            return dpm_solver(denoise, x, levels)
        return ddim(
            denoise,
            x,
            levels,
            eta=settings.eta,
            epsilon_scaling=settings.epsilon_scaling,
            noise=lambda i: draws.gaussian(1 + i, self.dim),
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Diffusion":
        """nn.Module's hook for moves and casts: a move takes the table along, a cast leaves it float64."""
        exact = self.alpha_bar
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.alpha_bar.dtype != torch.float64:
            self.alpha_bar = exact.to(self.alpha_bar.device)
        return self
