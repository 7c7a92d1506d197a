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


class BaseLCMConfig(Section):
    """Base-LCM: a causal transformer that regresses the next concept (paper §2.3.1)."""

    kind: Literal["base"]
    dim: int = Field(1024, gt=0)
    """Width of a concept: the codec's dimension."""
    width: int = Field(2048, gt=0)
    """Width of the transformer."""
    heads: int = Field(16, gt=0)
    layers: int = Field(32, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    """On the output of each attention and feed-forward block, before it is added to the residual stream."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "BaseLCMConfig":
        if self.width % (2 * self.heads):
            raise ValueError(
                f"model.width={self.width} cannot be split over model.heads={self.heads} "
                "into heads of an even width; change either"
            )
        return self


ModelConfig = Annotated[BaseLCMConfig, Field(discriminator="kind")]


class DataConfig(Section):
    """Which shards to train on, and how documents become rows."""

    path: tuple[str, ...] = ()
    """Folders written by `lcm prepare`. Several are mixed document by document."""
    slots: int = Field(128, ge=2)
    """Concepts in a row; longer documents are cut (paper §2.4.1)."""
    rows: int = Field(8, gt=0)
    """Rows of a micro-batch on one rank."""
    group: int = Field(16, gt=0)
    """Shards whose documents are shuffled together."""
    workers: int = Field(2, ge=0)
    """Reader threads of each rank; 0 reads in the training loop. The order of the data does not depend on them."""

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
    nodes: int = Field(1, gt=0)
    validate_every: int = Field(1000, gt=0)
    """Optimizer steps between validations."""
    validation_rows: int = Field(512, gt=0)
    """Rows of the validation split that one validation reads."""
    checkpoint_every: int = Field(1000, gt=0)
    """Optimizer steps between checkpoints."""
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
