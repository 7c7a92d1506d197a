"""Can this job run, and how long does it take? Told without a GPU, and without building the model.

lcm plan --config configs/two_tower_7b.yaml --nodes 32 --gpus-per-node 8
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import NamedTuple

import torch
from lightning.fabric.utilities.throughput import _CUDA_FLOPS

from lcm.config import Config
from lcm.data import PreparedData
from lcm.errors import UserError
from lcm.models import build_model
from lcm.plan.alternatives import RESERVED, Job, first_that_fits
from lcm.plan.memory import STRATEGIES, Usage
from lcm.settings import from_command_line
from lcm.training import check_strategy, room_of_checkpoints

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
"""The row of Lightning's table of peaks, and GiB as torch finds them: somewhat less than what the name says."""


class GPU(NamedTuple):
    """peak: FLOP/s by the data sheet; memory: bytes."""

    name: str
    peak: float
    memory: int


def gpu_of(name: str, memory: str | None, precision: str) -> GPU:
    """name: one of `GPUS`, or with `memory` (GiB) any row of Lightning's table. Raises UserError for anything else."""
    row, gib = GPUS.get(name.lower(), (name.lower(), None))
    if row not in _CUDA_FLOPS or (gib is None and memory is None):
        others = ", ".join(sorted(_CUDA_FLOPS))
        raise UserError(f"--gpu={name}: expected one of {', '.join(GPUS)}, or with --memory GiB one of {others}")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if dtype not in _CUDA_FLOPS[row]:
        raise UserError(f"--gpu={name}: it does not compute in trainer.precision={precision}; take fp32")
    found = gib if memory is None else number("--memory", memory, 1e6)
    assert found is not None
    return GPU(name.lower(), float(_CUDA_FLOPS[row][dtype]), int(found * 2**30))


def number(option: str, text: str, most: float) -> float:
    """Above 0, and `most` at most. Raises UserError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= most:
        raise UserError(f"{option}={text}: expected a number above 0, and {most:,.0f} at most")
    return value


def count(option: str, text: str) -> int:
    """Raises UserError."""
    if not text.isdecimal() or not 0 < int(text) <= 2**20:
        raise UserError(f"{option}={text}: expected a whole number from 1")
    return int(text)


def plan(job: Job, gpu: GPU, mfu: float) -> None:
    """Print it all. mfu: the part of the peak that training reaches.

    Raises UserError where the job does not fit, with what does.
    """
    with torch.device("meta"):
        model = build_model(job.config.model)
    parameters = sum(p.numel() for p in model.parameters())
    chosen = job.chosen(parameters)
    check_strategy(chosen, job.config)
    flops = model.training_flops(job.config.data.slots)
    for name, text in _lines(job, gpu, mfu, parameters, flops):
        print(f"{name:12} {text}")
    names = STRATEGIES if chosen in STRATEGIES else (chosen, *STRATEGIES)
    used = {name: job.usage(name) for name in names}
    print()
    for line in _table(job, used, chosen):
        print(line)
    if not job.fits(used[chosen]):
        raise UserError(_refusal(job, gpu, chosen, used[chosen]))


def _lines(job: Job, gpu: GPU, mfu: float, parameters: int, flops: int) -> Iterator[tuple[str, str]]:
    data, settings, vector = job.config.data, job.config.trainer, 2 * job.config.model.dim
    step = data.rows * data.slots * settings.accumulate * job.processes
    concepts = step * settings.max_steps
    each = mfu * gpu.peak / flops
    days = concepts / (each * job.processes) / 86_400
    yield "model", f"{job.config.model.kind}, {parameters:,} parameters, {flops / 1e9:,.2f} GFLOPs a concept"
    yield "job", f"{job.nodes} nodes of {job.gpus} {gpu.name} with {gpu.memory / 2**30:.1f} GiB each"
    yield "training", f"{settings.max_steps:,} steps of {step:,} concepts: {concepts:,}"
    speed = f"{each * job.processes:,.0f} concepts/s at {mfu:.0%} of {gpu.peak / 1e12:,.0f} TFLOP/s a GPU"
    yield "time", f"{days:,.2f} days: {speed}"
    yield "loader", f"{readable(each * vector)}/s a process, {readable(each * vector * job.gpus)}/s a node"
    yield "data", _data(job.config, concepts)
    yield "checkpoints", f"at most {readable(room_of_checkpoints(parameters, settings.keep))} in run.dir"


def _data(config: Config, concepts: int) -> str:
    """concepts: that are trained on in all."""
    vector = 2 * config.model.dim
    if not config.data.path:
        needed = f"{readable(vector * concepts)} if none is seen twice"
        return f"{readable(vector * 10**9)} a billion concepts; {needed}"
    prepared = PreparedData(config.data.path)
    if prepared.codec.dim != config.model.dim:
        raise UserError(
            f"model.dim={config.model.dim}, but the concepts of data.path have {prepared.codec.dim} numbers"
        )
    there = sum(shard.concepts for shard in prepared.shards("train"))
    return f"{readable(vector * there)}: {there:,} concepts, each seen {concepts / there:,.2f} times"


def readable(size: int | float) -> str:
    """Bytes with three digits: 13.8 MB."""
    units = ("B", "kB", "MB", "GB", "TB", "PB")
    place = 0
    while size >= 999.5 and place < len(units) - 1:
        size, place = size / 1000, place + 1
    return f"{size:.3g} {units[place]}"


def _table(job: Job, used: dict[str, Usage], chosen: str) -> Iterator[str]:
    settings = job.config
    recomputed = ", blocks recomputed" if settings.trainer.checkpoint_activations else ""
    rows = f"{settings.data.rows} rows of {settings.data.slots} in {settings.trainer.precision}{recomputed}"
    yield f"GiB of each GPU, {rows}; {RESERVED / 2**30:.1f} more are CUDA's and NCCL's"
    yield f"{'':12} {'weights':>9} {'gradients':>9} {'AdamW':>9} {'activations':>11} {'engine':>9} {'total':>9}"
    for name, of_one in used.items():
        *parts, activations, engine = (f"{size / 2**30:.2f}" for size in astuple(of_one))
        columns = " ".join(f"{part:>9}" for part in parts)
        verdict = "fits" if job.fits(of_one) else "too much"
        mark = " ← lcm train takes this one" if name == chosen else ""
        total = f"{of_one.total / 2**30:.2f}"
        yield f"{name:12} {columns} {activations:>11} {engine:>9} {total:>9}  {verdict}{mark}"


def _refusal(job: Job, gpu: GPU, chosen: str, used: Usage) -> str:
    room = (gpu.memory - RESERVED) / 2**30
    told = f"does not fit: {chosen} takes {used.total / 2**30:.2f} GiB of {room:.2f} on each GPU"
    if (found := first_that_fits(job)) is None:
        return f"{told}; nor with other strategies, one row, recomputed blocks and more GPUs: take a smaller model"
    other, less = found
    return f"{told}; this does: {other.options(job)} ({less.total / 2**30:.2f} GiB)"


def main(argv: Sequence[str] | None = None) -> int:
    """`lcm plan`: what a job takes, on stdout. Raises UserError where it does not fit."""
    parser = argparse.ArgumentParser(
        prog="lcm plan",
        usage="%(prog)s --config FILE [--nodes N] [--gpus-per-node G] [--SECTION.SETTING VALUE …]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--nodes", default="1", metavar="N", help="default: 1; trainer.nodes does not count")
    parser.add_argument("--gpus-per-node", default="8", metavar="G", help="default: 8; trainer.devices does not count")
    parser.add_argument("--gpu", default="h100", metavar="NAME", help=f"{', '.join(GPUS)} (default: h100)")
    parser.add_argument("--memory", metavar="GiB", help="of each GPU, instead of what is known of it")
    parser.add_argument("--mfu", default="0.4", metavar="PART", help="of the peak that is reached (default: 0.4)")
    args, config = from_command_line(Config, parser, argv)
    gpu = gpu_of(args.gpu, args.memory, config.trainer.precision)
    nodes, gpus = count("--nodes", args.nodes), count("--gpus-per-node", args.gpus_per_node)
    plan(Job(config, nodes, gpus, gpu.memory), gpu, number("--mfu", args.mfu, 1.0))
    return 0
