"""The section `model`: one record for each family, chosen by its `kind`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lcm.settings import Needs, Place, Section


class DiffusionConfig(Section):
    """Noise of the diffusion, and what the denoiser predicts (paper §2.3.2)."""

    needs: ClassVar[Needs] = {
        ("schedule", "quadratic"): ("b0", "b1"),
        ("schedule", "sigmoid"): ("gamma", "delta"),
        ("weight", "snr"): ("min_snr", "max_snr"),
        ("weight", "fragility"): ("fragility",),
        ("timesteps", "beta"): ("beta_a", "beta_b"),
    }
    schedule: Literal["cosine", "linear", "quadratic-1", "quadratic-2", "quadratic", "sigmoid"] = "cosine"
    """Noise schedule (paper §2.3.2; quadratic and sigmoid take the parameters below)."""
    steps: int = Field(100, ge=2)
    """Number of diffusion timesteps in training."""
    b0: float | None = Field(None, gt=0, lt=1)
    """First beta of schedule quadratic."""
    b1: float | None = Field(None, gt=0, lt=1)
    """Last beta of schedule quadratic."""
    gamma: float | None = Field(None, gt=0)
    """Scale of the log signal-to-noise ratio, for schedule sigmoid."""
    delta: float | None = None
    """Center of the log signal-to-noise ratio, for schedule sigmoid."""
    prediction: Literal["x0", "eps", "v"] = "x0"
    """Prediction target of the denoiser: the clean concept (x0), the noise (eps) or the velocity (v)."""
    weight: Literal["none", "snr", "fragility"] = "none"
    """Loss weight of each target: none, its clamped signal-to-noise ratio, or less for a more fragile one (§2.4.4)."""
    min_snr: float = Field(0.0, ge=0)
    """Lower bound of the signal-to-noise ratio in loss weight snr."""
    max_snr: float = Field(10.0, gt=0)
    """Upper bound of the signal-to-noise ratio in loss weight snr."""
    fragility: Place = ""
    """File of data_prep/fit_fragility.py, for loss weight fragility. Read only when training starts."""
    timesteps: Literal["uniform", "beta"] = "uniform"
    """Distribution of the timesteps drawn in training; beta favors small ones."""
    beta_a: float = Field(0.8, gt=0)
    """Parameter a of the Beta distribution of timesteps."""
    beta_b: float = Field(1.0, ge=1)
    """Parameter b of the Beta distribution of timesteps."""
    context_drop: float = Field(0.15, ge=0, lt=1)
    """Probability of training a target without its context, for classifier-free guidance."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "DiffusionConfig":
        if self.min_snr > self.max_snr:
            raise ValueError(f"min_snr={self.min_snr} is above max_snr={self.max_snr}; swap them")
        return self


class Widths(Section):
    """Settings that every model family has."""

    kind: str
    dim: int = Field(1024, gt=0)
    """Dimension of a concept, which is the codec's embedding dimension."""
    width: int = Field(2048, gt=0)
    """Hidden size of the transformer (d_model), in Two-Tower of both towers."""
    heads: int = Field(16, gt=0)
    """Number of attention heads."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout probability on the output of each attention and feed-forward block, before the residual addition."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Widths":
        if self.width % (2 * self.heads):
            raise ValueError(
                f"model.width={self.width} cannot be split over model.heads={self.heads} "
                "into heads of an even width; change either"
            )
        return self


class BaseLCMConfig(Widths):
    """Base-LCM: a causal transformer that regresses the next concept (paper §2.3.1)."""

    kind: Literal["base"]
    layers: int = Field(32, gt=0)
    """Number of transformer layers."""


class TwoTowerConfig(Widths):
    """Two-Tower diffusion LCM: a contextualizer, and a denoiser with cross-attention to it (paper §2.3.4)."""

    kind: Literal["two_tower"]
    context_layers: int = Field(5, gt=0)
    """Number of layers of the contextualizer."""
    denoiser_layers: int = Field(13, gt=0)
    """Number of layers of the denoiser."""
    diffusion: DiffusionConfig = Field(default_factory=DiffusionConfig)


class InterleavedConfig(Widths):
    """Settings of One-Tower and Quant-LCM: one transformer over clean and predicted concepts side by side."""

    needs: ClassVar[Needs] = {("positions", "learned"): ("max_positions",)}
    heads: int = Field(32, gt=0)
    """Number of attention heads."""
    layers: int = Field(32, gt=0)
    """Number of transformer layers."""
    positions: Literal["learned", "rotary"] = "learned"
    """Position embeddings: learned vectors (paper §2.4.1), or rotary embeddings, for contexts of any length."""
    max_positions: int = Field(2048, gt=0)
    """Maximum document length in concepts, with learned position embeddings."""
    step_width: int = Field(256, gt=0)
    """Width of the timestep or codebook embedding, which is concatenated to the concept."""


class OneTowerConfig(InterleavedConfig):
    """One-Tower diffusion LCM: one transformer that sees every concept twice, clean and noisy (paper §2.3.3)."""

    kind: Literal["one_tower"]
    diffusion: DiffusionConfig = Field(default_factory=DiffusionConfig)


class QuantConfig(InterleavedConfig):
    """Quant-LCM: predicts a concept as a sum of units, one per codebook of a residual quantizer (paper §2.3.5)."""

    kind: Literal["quant_c", "quant_d"]
    """Model family. quant_c regresses a concept and takes a unit near it; quant_d classifies the next unit."""
    codebooks: int = Field(64, gt=0)
    """Number of codebooks of the residual quantizer."""
    units: int = Field(8192, gt=1)
    """Number of units per codebook (codebook size)."""
    quantizer: Place = ""
    """File of data_prep/fit_quantizer.py with the codebooks. Read only when training starts."""
    context_drop: float = Field(0.15, ge=0, lt=1)
    """Probability of training a target without its context, for classifier-free guidance."""


ModelConfig = Annotated[BaseLCMConfig | TwoTowerConfig | OneTowerConfig | QuantConfig, Field(discriminator="kind")]
