"""Can this job run, and how long does it take? Answered without a GPU, and without memory for the model.

lcm plan --config configs/two_tower_7b.yaml --nodes 32 --gpus-per-node 8
"""

import argparse
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch
from lightning.fabric.utilities.throughput import _CUDA_FLOPS

from lcm.config import Config
from lcm.data.dataset import PreparedData
from lcm.data.mixture import THOUSAND, rows_in_thousand
from lcm.errors import UserError, without_secrets
from lcm.models import build_model
from lcm.options import Option, add_options, options_from
from lcm.plan.memory import RESERVED, STRATEGIES, Job, Usage, first_that_fits
from lcm.training.checkpoint import checkpoint_bytes
from lcm.training.engine import check_strategy

GPUS = {
    "h100": ("h100 sxm", 79.1),
    "h100-pcie": ("h100 pcie", 79.1),
    # Its own row counts sparse products, twice what it can do; the chip is an H100's.
    "h200": ("h100 sxm", 139.7),
    "a100": ("a100", 79.1),
    "a100-40": ("a100", 39.4),
    "l40": ("l40", 44.3),
    "l4": ("l4", 22.0),
}
"""Row of Lightning's table of peaks, and GiB as torch reports them: somewhat less than the name says."""


def number(option: str, text: str, most: float) -> float:
    """A number above 0, `most` at most. Raises UserError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= most:
        raise UserError(f"{option}={text}: expected a number above 0, and {most:,.0f} at most")
    return value


def count(option: str, text: str) -> int:
    """A whole number from 1. Raises UserError."""
    if not text.isdecimal() or not 0 < int(text) <= 2**20:
        raise UserError(f"{option}={text}: expected a whole number from 1")
    return int(text)


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The options of `lcm plan` beside the configuration."""

    nodes: Annotated[int, Option("N", parse=partial(count, "--nodes"))] = 1
    """Nodes of the job; trainer.nodes does not count (default: 1)."""
    gpus_per_node: Annotated[int, Option("G", parse=partial(count, "--gpus-per-node"))] = 8
    """GPUs of each node; trainer.devices does not count (default: 8)."""
    gpu: Annotated[str, Option("NAME")] = "h100"
    """h100, h100-pcie, h200, a100, a100-40, l40, l4; with --memory any in Lightning's table (default: h100)."""
    memory: Annotated[float | None, Option("GiB", parse=partial(number, "--memory", most=1e6))] = None
    """Memory of each GPU, instead of what is known of it."""
    mfu: Annotated[float, Option("PART", parse=partial(number, "--mfu", most=1.0))] = 0.4
    """Model FLOPs utilization: the part of the peak that training reaches (default: 0.4)."""


class GPU(NamedTuple):
    """peak: FLOP/s by the data sheet, in this precision; memory: bytes."""

    name: str
    precision: Literal["fp32", "bf16"]
    peak: float
    memory: int


def gpu_of(name: str, gib: float | None, precision: str) -> GPU:
    """A GPU of `GPUS`, or with `gib` of memory of Lightning's table. Raises UserError for any other."""
    row, known = GPUS.get(name.lower(), (name.lower(), None))
    gib = gib or known
    if row not in _CUDA_FLOPS or gib is None:
        others = ", ".join(sorted(_CUDA_FLOPS))
        raise UserError(f"--gpu={name}: expected one of {', '.join(GPUS)}, or with --memory GiB one of {others}")
    half = precision == "bf16" or (precision == "auto" and torch.bfloat16 in _CUDA_FLOPS[row])
    dtype = torch.bfloat16 if half else torch.float32
    if dtype not in _CUDA_FLOPS[row]:
        raise UserError(f"--gpu={name}: it does not compute in trainer.precision={precision}; take fp32")
    peak, memory = float(_CUDA_FLOPS[row][dtype]), int(gib * 2**30)
    return GPU(name.lower(), "bf16" if half else "fp32", peak, memory)


def plan(config: Config, options: PlanOptions) -> None:
    """Print what a job takes. Raises UserError where it does not fit, with options under which it does."""
    gpu = gpu_of(options.gpu, options.memory, config.trainer.precision)
    trainer = config.trainer.model_copy(update={"precision": gpu.precision})  # auto depends on the GPU
    config = config.model_copy(update={"trainer": trainer})
    with torch.device("meta"):
        model = build_model(config.model)
    parameters = sum(p.numel() for p in model.parameters())
    job = Job(config, parameters, options.nodes, options.gpus_per_node, gpu.memory)
    check_strategy(chosen := job.strategy, config)
    for name, text in _lines(job, gpu, options.mfu, model.training_flops(config.data.slots)):
        print(f"{name:12} {text}")
    used = {name: job.usage(name) for name in (STRATEGIES if chosen in STRATEGIES else (chosen, *STRATEGIES))}
    print("", *_table(job, used), sep="\n")
    if job.fits(used[chosen]):
        return
    free = (gpu.memory - RESERVED) / 2**30
    message = f"does not fit: {chosen} takes {used[chosen].total / 2**30:.2f} GiB of {free:.2f} on each GPU"
    if (found := first_that_fits(job)) is None:
        ways = "other strategies, one row, recomputed blocks and more GPUs"
        raise UserError(f"{message}; nor with {ways}: take a smaller model")
    changes, less = found
    words = " ".join(f"{name} {value}" for name, value in changes.items())
    raise UserError(f"{message}; this does: {words} ({less.total / 2**30:.2f} GiB)")


def _lines(job: Job, gpu: GPU, mfu: float, flops: int) -> Iterator[tuple[str, str]]:
    data, settings, vector = job.config.data, job.config.trainer, 2 * job.config.model.dim
    step = data.rows * data.slots * settings.accumulate * job.world_size
    concepts = step * settings.max_steps
    per_gpu = mfu * gpu.peak / flops
    days = concepts / (per_gpu * job.world_size) / 86_400
    yield "model", f"{job.config.model.kind}, {job.parameters:,} parameters, {flops / 1e9:,.2f} GFLOPs a concept"
    yield "job", f"{job.nodes} nodes of {job.gpus} {gpu.name} with {gpu.memory / 2**30:.1f} GiB each"
    yield "training", f"{settings.max_steps:,} steps of {step:,} concepts: {concepts:,}"
    speed = f"{per_gpu * job.world_size:,.0f} concepts/s at {mfu:.0%} of {gpu.peak / 1e12:,.0f} TFLOP/s a GPU"
    yield "time", f"{days:,.2f} days: {speed}"
    yield "loader", f"{readable(per_gpu * vector)}/s a process, {readable(per_gpu * vector * job.gpus)}/s a node"
    yield "data", _data(job.config, concepts)
    yield "checkpoints", f"at most {readable(checkpoint_bytes(job.parameters, settings.keep))} in run.dir"


def _data(config: Config, concepts: int) -> str:
    """Size of the data, and how often each concept is seen. concepts: number of concepts trained on in all."""
    vector = 2 * config.model.dim
    if not config.data.folders:
        needed = f"{readable(vector * concepts)} if none is seen twice"
        return f"{readable(vector * 10**9)} a billion concepts; {needed}"
    prepared = PreparedData(config.data.folders)
    prepared.check_dim(config.model.dim)
    size = sum(shard.record.concepts for shard in prepared.shards("train"))
    whole, mix = f"{readable(vector * size)}: {size:,} concepts", config.data.mix
    if not mix:
        return f"{whole}, each seen {concepts / size:,.2f} times"
    shares = rows_in_thousand([one.weight for one in mix], [one.path for one in mix]) / THOUSAND
    sizes = [sum(shard.record.concepts for shard in prepared.shards("train", one.path)) for one in mix]
    seen = (concepts * share / max(own, 1) for share, own in zip(shares.tolist(), sizes, strict=True))
    parts = (f"those of {one.path} {times:,.2f} times" for one, times in zip(mix, seen, strict=True))
    return without_secrets(f"{whole}; seen: {', '.join(parts)}")


def readable(size: int | float) -> str:
    """Format bytes with three digits: 13.8 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"


def _table(job: Job, used: dict[str, Usage]) -> Iterator[str]:
    data, trainer = job.config.data, job.config.trainer
    recomputed = ", blocks recomputed" if trainer.checkpoint_activations else ""
    rows = f"{data.rows} rows of {data.slots} in {trainer.precision}{recomputed}"
    yield f"GiB of each GPU, {rows}; {RESERVED / 2**30:.1f} more are CUDA's and NCCL's"
    yield f"{'':12} {'weights':>9} {'gradients':>9} {'AdamW':>9} {'activations':>11} {'engine':>9} {'total':>9}"
    for name, usage in used.items():
        verdict = "fits" if job.fits(usage) else "too much"
        mark = " ← lcm train takes this one" if name == job.strategy else ""
        columns = zip((*astuple(usage), usage.total), (9, 9, 9, 11, 9, 9), strict=True)
        numbers = " ".join(f"{size / 2**30:>{width}.2f}" for size, width in columns)
        yield f"{name:12} {numbers}  {verdict}{mark}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="lcm plan",
        usage="%(prog)s --config FILE [--nodes N] [--gpus-per-node G] [--SECTION.SETTING VALUE …]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser, PlanOptions)
    args, config = Config.from_command_line(parser, argv)
    options = options_from(args, PlanOptions)
    plan(config, options)
    settings = parser.parse_known_args(argv)[1]
    each = f"--ntasks-per-node={options.gpus_per_node} --gpus-per-node={options.gpus_per_node}"
    words = shlex.join(["slurm/train.sbatch", args.config, *settings])
    print(f"\nsbatch --nodes={options.nodes} {each} {words}")
    return 0
