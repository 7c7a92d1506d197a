"""One YAML file, one frozen record: everything that defines a training run.

    config = load_config("configs/base_toy.yaml", ["model.width=512", "trainer.max_steps=100"])

Four hops from a YAML value to the tensor it changes: the file, a field here, `build_model` or `train`, the constructor.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from lcm.settings import Section, Settings, load, parse


class DiffusionConfig(Section):
    """How concepts are noised in training, and what the denoiser is asked for (paper §2.3.2)."""

    schedule: Literal["cosine", "linear", "quadratic-1", "quadratic-2", "quadratic", "sigmoid"] = "cosine"
    steps: int = Field(100, ge=2)
    """Timesteps of the schedule."""
    b0: float | None = Field(None, gt=0, lt=1)
    """Of schedule quadratic: the first beta."""
    b1: float | None = Field(None, gt=0, lt=1)
    """Of schedule quadratic: the last beta."""
    gamma: float | None = Field(None, gt=0)
    """Of schedule sigmoid: the scale of the log signal-to-noise ratio."""
    delta: float | None = None
    """Of schedule sigmoid: its centre."""
    prediction: Literal["x0", "eps", "v"] = "x0"
    weight: Literal["none", "snr", "fragility"] = "none"
    """Of each target's loss: none; its signal-to-noise ratio, clamped; or the less, the more fragile (§2.4.4)."""
    min_snr: float = Field(0.0, ge=0)
    max_snr: float = Field(10.0, gt=0)
    """Bounds of weight snr."""
    fragility: str = ""
    """Of weight fragility: the file that data_prep/fit_fragility.py wrote. Only read when training starts."""
    timesteps: Literal["uniform", "beta"] = "uniform"
    """What timesteps are drawn from; beta favours small ones."""
    beta_a: float = Field(0.8, gt=0)
    beta_b: float = Field(1.0, ge=1)
    context_drop: float = Field(0.15, ge=0, lt=1)
    """How likely a target is to be predicted from nothing, for guidance. In training only."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "DiffusionConfig":
        if self.min_snr > self.max_snr:
            raise ValueError(f"min_snr={self.min_snr} is above max_snr={self.max_snr}; swap them")
        return self


class Widths(Section):
    """What every family has."""

    kind: str
    dim: int = Field(1024, gt=0)
    """Width of a concept: the codec's dimension."""
    width: int = Field(2048, gt=0)
    """Width of the transformer."""
    heads: int = Field(16, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    """On the output of each attention and feed-forward block, before it is added to the residual stream."""

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


class TwoTowerConfig(Widths):
    """Two-Tower: a contextualizer, and a denoiser that attends to it (paper §2.3.4)."""

    kind: Literal["two_tower"]
    width: int = Field(2048, gt=0)
    """Width of both towers."""
    heads: int = Field(16, gt=0)
    context_layers: int = Field(5, gt=0)
    denoiser_layers: int = Field(13, gt=0)
    diffusion: DiffusionConfig = DiffusionConfig()


class InterleavedConfig(Widths):
    """What One-Tower and Quant have in common: one transformer over clean concepts, and one concept in the making."""

    heads: int = Field(32, gt=0)
    layers: int = Field(32, gt=0)
    positions: Literal["learned", "rotary"] = "learned"
    """Learned vectors, added to the input (paper §2.4.1), or turned queries and keys, for contexts of any length."""
    max_positions: int = Field(2048, gt=0)
    """Concepts of the longest document, where positions are learned."""
    step_width: int = Field(256, gt=0)
    """Width of what tells the timestep or codebook, beside the concept in the input."""


class OneTowerConfig(InterleavedConfig):
    """One-Tower: one transformer, in which every concept is there twice, clean and noisy (paper §2.3.3)."""

    kind: Literal["one_tower"]
    diffusion: DiffusionConfig = DiffusionConfig()


class QuantConfig(InterleavedConfig):
    """Quant-LCM: a concept is made by adding up units, one of each codebook of a residual quantizer (paper §2.3.5)."""

    kind: Literal["quant_c", "quant_d"]
    """c: predicts the whole concept, and takes a unit near it. d: chooses among the units."""
    codebooks: int = Field(64, gt=0)
    units: int = Field(8192, gt=1)
    """Of each codebook."""
    quantizer: str = ""
    """The file that data_prep/fit_quantizer.py wrote. Only read when training starts."""
    context_drop: float = Field(0.15, ge=0, lt=1)
    """How likely a target is to be predicted from nothing, for guidance. In training only."""


ModelConfig = Annotated[BaseLCMConfig | TwoTowerConfig | OneTowerConfig | QuantConfig, Field(discriminator="kind")]


CACHE_GB, RETRIES = 100.0, 5
"""Of data behind URLs, where no configuration says otherwise."""


class DataConfig(Section):
    """Which shards to train on, and how documents become rows."""

    path: tuple[str, ...] = ()
    """Folders written by `lcm prepare`, here or at a URL that fsspec knows. Several are mixed document by document."""
    slots: int = Field(128, ge=2)
    """Concepts in a row; longer documents are cut (paper §2.4.1)."""
    rows: int = Field(8, gt=0)
    """Rows of a micro-batch on one rank."""
    group: int = Field(16, gt=0)
    """Shards whose documents are shuffled together."""
    workers: int = Field(2, ge=0)
    """Reader threads of each rank; 0 reads in the training loop. The order of the data does not depend on them."""
    cache: str = ""
    """Folder for shards that are fetched from URLs, for all processes of a machine. Without it ~/.cache/lcm/shards."""
    cache_gb: float = Field(CACHE_GB, gt=0)
    """Most that this folder takes, in GB (10⁹ bytes)."""
    retries: int = Field(RETRIES, ge=0)
    """How often a file that cannot be fetched is asked for again, after waiting longer each time."""
    skip_dead: bool = False
    """Train without shards that cannot be fetched, and count them, instead of ending the run."""

    @field_validator("path", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class OptimizerConfig(Section):
    """AdamW with a linear warm-up and a cosine to `final_lr`."""

    lr: float = Field(4e-4, gt=0)
    start_lr: float = Field(1e-7, ge=0)
    final_lr: float = Field(1e-5, ge=0)
    warmup_steps: int = Field(10_000, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    """On matrices only: biases, norms and other vectors are never decayed."""
    clip: float = Field(25.0, ge=0)
    """Largest gradient norm; 0 switches clipping off."""


class TrainerConfig(Section):
    """How long, on what, and how often to look."""

    max_steps: int = Field(250_000, gt=0)
    """Optimizer steps."""
    accumulate: int = Field(1, gt=0)
    """Micro-batches of one optimizer step."""
    precision: Literal["fp32", "bf16"] = "bf16"
    compile: bool = False
    """torch.compile the model."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""
    devices: int | Literal["auto"] = "auto"
    """Of each node, with a process each."""
    nodes: int = Field(1, gt=0)
    patience: float = Field(1800.0, gt=0)
    """Seconds that a step may take before the process that the others wait for is named, and the run ends."""
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed_1", "deepspeed_2", "deepspeed_3"] = "auto"
    """How processes share the model. ddp: copies. fsdp: slices of everything. deepspeed_1, _2, _3: slices of the
    optimizer, of the gradients too, of the weights as well. auto: copies where they fit, else fsdp."""
    offload: bool = False
    """Keep what is sliced in the machine's memory while it is not needed, which is slow; not with ddp."""
    validate_every: int = Field(1000, gt=0)
    """Optimizer steps between validations."""
    validation_rows: int = Field(512, gt=0)
    """Rows of the validation split that one validation reads."""
    checkpoint_every: int = Field(1000, gt=0)
    """Optimizer steps between checkpoints."""
    skips: int = Field(3, ge=0)
    """Steps in a row that are left out because their gradient is not finite, before the run gives up."""
    keep: int = Field(1, gt=0)
    """How many of the newest checkpoints stay, beside the best; more than one as step-00001000.ckpt, …"""
    log_every: int = Field(10, gt=0)
    loggers: tuple[Literal["tensorboard", "csv", "wandb"], ...] = ("tensorboard", "csv")
    resume: str = "auto"
    """auto: go on from checkpoints/last.ckpt of the run where there is one. none: start anew. Else a checkpoint."""


class RunConfig(Section):
    """Where the results go, and the seed of everything random."""

    dir: str = "runs/unnamed"
    seed: int = Field(1, ge=0)


class CodecRecord(Section):
    """What the model was trained on: filled in from the data's manifest, never by hand."""

    name: str
    """What `load_codec` takes."""
    fingerprint: str
    dim: int
    lang: str
    splitter: dict[str, Any]
    """The splitter and its settings, so that prompts are cut as the training text was."""
    end_of_text: str = "End of text."
    prompt_suffix: str = "[MODEL]:"
    """The sentence that ends the prompt of a pair; generate and evaluate append it."""
    default_task: Literal["continue", "answer"] = "continue"
    """answer where every training document was a pair: the prompt suffix is then appended unless told otherwise."""
    stop_threshold: float
    """Cosine to the end-of-text vector from which a concept ends the text."""


class Config(Settings):
    """A training run. Values come from the YAML file and the command line only, never from the environment."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    trainer: TrainerConfig = TrainerConfig()
    run: RunConfig = RunConfig()
    codec: CodecRecord | None = None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The run of a YAML file, with overrides such as "model.width=512" put on top.

    Raises UserError with one line a mistake: the key, its value, what was expected, the nearest valid name.
    """
    return load(Config, path, overrides)


def parse_config(values: dict[str, Any], overrides: Sequence[str], where: str) -> Config:
    """`values` (as read from YAML) with the overrides on top, validated. `where` opens every error message."""
    return parse(Config, values, overrides, where)


def save_config(config: Config, path: str | Path) -> None:
    """Write `config` so that `load_config(path) == config`."""
    text = yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
    Path(path).write_text(text, encoding="utf-8")
