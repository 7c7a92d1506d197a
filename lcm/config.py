"""The configuration of a training run: one YAML file, one frozen record.

    config = load_config("configs/base_toy.yaml", ["model.width=512", "trainer.max_steps=100"])

Four hops from a YAML value to the tensor it changes: the file, a field here, `build_model` or `train`, the constructor.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as section_of

from lcm.files import CACHE_GB, RETRIES
from lcm.sampling import SamplingOptions
from lcm.settings import Beta, Devices, Needs, Place, Places, Section, Settings, add_descriptions


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


class DataConfig(Section):
    """The training data, and how documents become rows."""

    path: Places = ()
    """Data sets: folders written by `lcm prepare`, local or at a URL that fsspec knows. Several are mixed."""
    slots: int = Field(128, ge=2, le=10**6)
    """Sequence length in concepts: documents are packed into rows of it, longer ones are cut (paper §2.4.1)."""
    rows: int = Field(8, gt=0, le=10**6)
    """Micro-batch size per rank, in rows."""
    group: int = Field(16, gt=0)
    """Shuffle buffer in shards: documents of this many shards are shuffled together."""
    workers: int = Field(2, ge=0)
    """Number of loader threads per rank; 0 reads in the training loop. The order of the data does not depend on it."""
    cache: Place = ""
    """Cache folder for shards behind URLs, shared by the ranks of a node. Default: shards in $LCM_CACHE, else in
    $XDG_CACHE_HOME/lcm, else in ~/.cache/lcm."""
    cache_gb: float = Field(CACHE_GB, gt=0, le=1e9)
    """Maximum size of the cache folder, in GB (10⁹ bytes)."""
    retries: int = Field(RETRIES, ge=0)
    """Number of retries for a file that cannot be fetched, after waiting longer each time."""
    skip_dead: bool = False
    """Train without shards that cannot be fetched, and count them, instead of ending the run."""


class OptimizerConfig(Section):
    """AdamW with a linear warm-up and a cosine decay of the learning rate."""

    lr: float = Field(4e-4, gt=0)
    """Peak learning rate, after the warm-up."""
    start_lr: float = Field(1e-7, ge=0)
    """Learning rate at the first step of the warm-up."""
    final_lr: float = Field(1e-5, ge=0)
    """Learning rate at the end of the cosine decay."""
    warmup_steps: int = Field(10_000, ge=0)
    """Number of warm-up steps."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's decay rates of the first and the second moment."""
    eps: float = Field(1e-5, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(0.1, ge=0)
    """Weight decay of matrices; biases, norms and other vectors never decay."""
    clip: float = Field(25.0, ge=0)
    """Gradient clipping norm (max_norm); 0 switches clipping off."""


class TrainerConfig(Section):
    """Steps, precision, devices and strategy; when to validate, log and save."""

    start: Place = ""
    """Model to fine-tune: a folder of lcm train or lcm export, or a packaged name such as tales."""
    max_steps: int = Field(250_000, gt=0, le=10**12)
    """Number of optimizer steps."""
    accumulate: int = Field(1, gt=0, le=10**6)
    """Gradient accumulation: micro-batches per optimizer step."""
    precision: Literal["fp32", "bf16", "auto"] = "bf16"
    """Precision of matrix products; the rest is fp32. auto: bf16 where there are instructions for it, else fp32."""
    compile: bool = False
    """Compile the blocks of the model with torch.compile."""
    checkpoint_activations: bool = False
    """Activation checkpointing: recompute each block in the backward pass instead of keeping its activations."""
    devices: Devices = "auto"
    """Number of devices per node, with one rank each."""
    nodes: int = Field(1, gt=0, le=10**6)
    """Number of nodes."""
    patience: float = Field(1800.0, gt=0, le=1e9)
    """Hang timeout in seconds: when a step takes longer, the rank that is behind is reported and the run ends."""
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed_1", "deepspeed_2", "deepspeed_3"] = "auto"
    """Parallel strategy. ddp: a copy of the model per rank. fsdp: everything is sharded. deepspeed_1, _2, _3 (ZeRO):
    the optimizer state is sharded, the gradients too, the weights as well. auto: ddp if it fits, else fsdp."""
    offload: bool = False
    """Offload the optimizer state to host memory, which is slow. DeepSpeed only."""
    validate_every: int = Field(1000, gt=0)
    """Optimizer steps between validations."""
    validation_rows: int = Field(512, gt=0, le=10**9)
    """Number of rows of the validation split per validation."""
    checkpoint_every: int = Field(1000, gt=0)
    """Optimizer steps between checkpoints."""
    skips: int = Field(3, ge=0)
    """Maximum number of consecutive steps skipped for a gradient that is not finite, before the run ends."""
    keep: int = Field(1, gt=0)
    """Number of newest checkpoints to keep, beside the best; more than one as step-00001000.ckpt, …"""
    log_every: int = Field(10, gt=0)
    """Optimizer steps between reports of training metrics."""
    loggers: tuple[Literal["tensorboard", "csv", "wandb"], ...] = ("tensorboard", "csv")
    """Loggers of metrics, beside the terminal."""
    restarts: int = Field(3, ge=0)
    """Number of times that slurm/train.sbatch requeues a job which the machine ended: a dead node, a killed rank."""
    resume: Place = Field("auto", min_length=1)
    """Checkpoint to resume from. auto: the run's own last.ckpt, if any. none: start a new run. Otherwise a path."""


class RunConfig(Section):
    """The folder of the results, and the seed of everything random."""

    dir: Place = Field("runs/unnamed", min_length=1)
    """Output folder of the run: model, configuration, checkpoints, metrics."""
    seed: int = Field(1, ge=0, lt=2**63)
    """Random seed."""


@section_of(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class SamplingConfig(SamplingOptions):
    """Settings by which the model is best sampled, the defaults of `lcm generate`. Training does not read them."""


add_descriptions(SamplingConfig)


class CodecRecord(Section):
    """The codec of the training data, copied from the data's manifest, never set by hand."""

    name: str
    """Name of the codec for `load_codec`."""
    fingerprint: str
    """Fingerprint of the codec's encoder."""
    dim: int
    """Embedding dimension."""
    lang: str
    """FLORES code of the text's language."""
    splitter: dict[str, Any]
    """Sentence splitter and its settings, so that prompts are split as the training text was."""
    end_of_text: str = "End of text."
    """Sentence that ends every document."""
    prompt_suffix: str = "[MODEL]:"
    """Sentence that ends the prompt of a pair; `lcm generate` and `lcm evaluate` append it."""
    default_task: Literal["continue", "answer"] = "continue"
    """Default task of generation: answer (append the prompt suffix) if every training document was a pair."""
    stop_threshold: float
    """Cosine similarity to the end-of-text vector above which a concept ends the text."""


class Config(Settings):
    """A training run. Values come from a YAML file and the command line, never from the environment."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    trainer: TrainerConfig = TrainerConfig()
    run: RunConfig = RunConfig()
    sampling: SamplingConfig = SamplingConfig()
    codec: CodecRecord | None = None


load_config = Config.load


def save_config(config: Config, path: str | Path) -> None:
    """Write a configuration such that `load_config(path) == config`."""
    sections = {name: section for name, section in config.model_dump(mode="json", exclude_none=True).items() if section}
    Path(path).write_text(yaml.safe_dump(sections, sort_keys=False, allow_unicode=True), encoding="utf-8")
