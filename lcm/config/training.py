"""The sections `data`, `optimizer`, `trainer` and `run`."""

from typing import Literal

from pydantic import Field, model_validator

from lcm.files import CACHE_GB, RETRIES
from lcm.settings import Beta, Devices, Factor, Names, Place, Places, Section

Watched = Literal[
    "val/loss",
    "summaries.rouge1",
    "summaries.rouge2",
    "summaries.rougeL",
    "summaries.rougeLsum",
    "truth.grammatical",
    "truth.consistent",
    "truth.gist",
]
"""Scores that may choose the best model. Of the loss less is better, of all others more."""


class MixedSet(Section):
    """A data set of a mixture."""

    path: Place
    """Folder written by `lcm prepare`, local or at a URL."""
    weight: float = Field(1.0, gt=0)
    """Share of the rows, in proportion to the other weights."""


class DataConfig(Section):
    """The training data, and how documents become rows."""

    path: Places = ()
    """Data sets: folders written by `lcm prepare`, local or at a URL that fsspec knows. Several are mixed by size."""
    mix: tuple[MixedSet, ...] = ()
    """Instead of path: data sets that are mixed by weight, [{path: DIR, weight: 3}, …]. The weights hold exactly over
    every 1,000 rows, and each set has its own epochs."""
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

    @model_validator(mode="after")
    def _path_or_mix(self) -> "DataConfig":
        if self.path and self.mix:
            raise ValueError(
                f"path={', '.join(self.path)}: data.mix names the data sets, too; leave one out (--data.path [])"
            )
        return self

    @property
    def folders(self) -> tuple[str, ...]:
        """The data sets, of path or mix."""
        return self.path or tuple(one.path for one in self.mix)


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
    frozen: Names = ()
    """Parts of the model that are not trained, by the names of its modules, as in [contextualiser]."""
    lr_factors: dict[str, Factor] = Field(default_factory=dict)
    """Learning rates of parts as multiples of lr, as in {denoiser: 0.1}; all others have 1."""


class TrainerConfig(Section):
    """Steps, precision, devices and strategy; when to validate, log and save."""

    start: Place = ""
    """Model to fine-tune: a folder of lcm train or lcm export, or a packaged name such as tales."""
    max_steps: int = Field(250_000, gt=0, le=10**12)
    """Number of optimizer steps."""
    accumulate: int = Field(1, gt=0, le=10**6)
    """Gradient accumulation: micro-batches per optimizer step."""
    precision: Literal["fp32", "bf16", "auto"] = "bf16"
    """Precision of matrix products; weights and optimizer state are always fp32. auto: bf16 where the device has
    instructions for it (CPUs: AVX512-BF16), else fp32."""
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
    write_every: int = Field(0, ge=0)
    """Optimizer steps between validations that also write texts: a multiple of validate_every; 0: none."""
    write_rows: int = Field(50, gt=0)
    """Number of held-out pairs to sum up, and of stories to continue, whenever texts are written."""
    watch: Watched = "val/loss"
    """Score by which the best model is chosen: val/loss, or a score of the texts that are written."""
    early_stop: int = Field(0, ge=0)
    """Number of scores in a row without a new best one after which the run ends; 0: never."""
    checkpoint_every: int = Field(1000, gt=0)
    """Optimizer steps between checkpoints."""
    skips: int = Field(3, ge=0)
    """Maximum number of consecutive steps skipped for a gradient that is not finite, before the run ends. Checked with
    each report and before each checkpoint."""
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

    @model_validator(mode="after")
    def _written_at_validations(self) -> "TrainerConfig":
        if self.write_every % self.validate_every:
            raise ValueError(f"write_every={self.write_every} is no multiple of validate_every={self.validate_every}")
        if self.watch != "val/loss" and not self.write_every:
            raise ValueError(f"watch={self.watch} needs texts: set write_every, as in {self.validate_every}")
        return self


class RunConfig(Section):
    """The folder of the results, and the seed of everything random."""

    dir: Place = Field("runs/unnamed", min_length=1)
    """Output folder of the run: model, configuration, checkpoints, metrics."""
    seed: int = Field(1, ge=0, lt=2**63)
    """Random seed."""
