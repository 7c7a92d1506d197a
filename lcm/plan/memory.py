"""Memory of training on each GPU by strategy, and the first change with which a job fits.

lcm.plan.simulation runs the step; this adds the buffers of each engine. They were read in the engines' source (torch
2.9, Lightning 2.6, DeepSpeed 0.19), and tests/plan holds the sums to the peaks of ranks on CPUs. On a CPU only pages
that were written to take memory, so no test has seen the buffers that an engine allocates and never fills.

Sizes below.  whole: the weights, 4 bytes each · shard: the part of them that one rank holds
"""

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, replace

from lcm.config import Config
from lcm.errors import UserError
from lcm.plan.simulation import Device, SimulatedStep, simulate
from lcm.training.engine import SHARDED, check_strategy, choose

STRATEGIES = ("ddp", "fsdp", "deepspeed_1", "deepspeed_2", "deepspeed_3")
BUCKET, LIVE, PREFETCH = 5 * 10**8, 10**9, 5 * 10**7
"""DeepSpeed's defaults, in elements: reduce_bucket_size, stage3_max_live_parameters, stage3_prefetch_bucket_size."""
RESERVED = 3 * 2**29
"""Bytes of a GPU left to what is not torch's: CUDA's context, cuBLAS, NCCL. Assumed to be 1.5 GiB."""
MAX_GPUS = 4096
"""Largest job that is tried in search of one that fits."""
Options = Mapping[str, int | str]
"""Command-line options and their values."""


@dataclass(frozen=True)
class Usage:
    """Bytes of one rank at its peak.

    weights:     with the model's buffers and, under DeepSpeed, the copy of the weights that AdamW updates
    optimizer:   AdamW's two moments
    activations: what else the forward and the backward pass take
    engine:      gathered weights, buckets
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    engine: int

    @property
    def total(self) -> int:
        return sum(astuple(self))


def usage(
    step: SimulatedStep,
    strategy: str,
    world_size: int,
    *,
    accumulate: int = 1,
    offload: bool = False,
    device: Device = "cuda",
) -> Usage:
    """Add to a simulated step what the strategy (a name of `lcm.training.engine.choose`) holds on each rank.

    offload: AdamW is in the host's memory and does not count; nor do DeepSpeed's buffers for the transfer
    """
    whole = 4 * step.parameters
    shard = -(-whole // world_size)
    match strategy:
        case "single":
            # Lightning clears the gradients after the forward pass, so the old ones are alive during it.
            backward = step.backward_all_grads if accumulate == 1 else whole + step.backward
            peak = max(whole + step.forward, backward)
            return Usage(whole + step.buffers, whole, 2 * whole, peak - whole, 0)
        case "ddp":
            # Gradients are views of buckets. DDP rebuilds these in the second step, while the old ones are alive.
            activations = max(step.forward, step.backward)
            peak = max(step.forward + (whole if device == "cuda" else 0), step.backward)
            return Usage(whole + step.buffers, whole, 2 * whole, activations, peak - activations)
        case "fsdp":
            engine, peak = _fsdp_peak(step, world_size, shard)
            return Usage(shard + step.buffers, shard, 2 * shard, peak - engine - shard, engine)
    return _zero_usage(step, int(strategy.removeprefix("deepspeed_")), whole, shard, offload, device)


def _zero_usage(step: SimulatedStep, stage: int, whole: int, shard: int, offload: bool, device: Device) -> Usage:
    """DeepSpeed's ZeRO. On a CPU its bucket counts only where gradients fill it."""
    copies, moments = (0, 0) if offload else (shard, 2 * shard)
    bucket = 4 * BUCKET if device == "cuda" else 0
    filled = 4 * min(BUCKET, step.parameters)
    match stage:
        case 1:
            # Whole gradients accumulate from none, and then go through the bucket and a copy of it.
            peak = max(step.forward - bucket, step.backward_all_grads, whole + (0 if bucket else filled))
            return Usage(whole + step.buffers + copies, whole, moments, peak - whole, bucket)
        case 2:
            # Gradients go into the bucket and, when it is full or all are there, through a copy of it.
            if device == "cpu":
                peak = max(step.forward, step.backward_all_grads, 2 * filled)
                return Usage(whole + step.buffers + copies, shard, moments, peak - shard, 0)
            engine = bucket + (filled if step.parameters > BUCKET else 0)
            peak = max(step.forward, shard + step.backward + engine, shard + bucket + filled)
            return Usage(whole + step.buffers + copies, shard, moments, peak - shard - engine, engine)
        case _:
            # The bucket, a copy of it when it is full, gathered weights, and prefetched ones.
            engine = filled + bucket + 4 * min(LIVE, step.parameters) + 4 * min(PREFETCH, step.parameters)
            return Usage(shard + step.buffers + copies, shard, moments, max(step.forward, step.backward), engine)


def _fsdp_peak(step: SimulatedStep, world_size: int, shard: int) -> tuple[int, int]:
    """FSDP2's buffers, and the peak of everything but weights and AdamW.

    The forward pass holds a block, the buffer that gathered it, and the gradients of the last step. The backward pass
    also holds the gradients of the block before, which are being reduced, and between none and all shards of gradients.
    Parameters outside the blocks stay gathered.
    """
    block, rest = 4 * max(step.units[:-1]), 4 * step.units[-1]
    # The largest sum of two quantities grows at most linearly with the weight of one of them.
    backward = step.backward + (step.backward_all_grads - step.backward) // world_size
    forward = shard + step.forward
    blocks, peak = max((3 * block, backward), (2 * block, forward), key=sum)
    return rest + blocks, rest + blocks + peak


@dataclass(frozen=True)
class Job:
    """A configuration on `nodes` nodes of `gpus` GPUs, each with `memory` bytes; its model has `parameters`."""

    config: Config
    parameters: int
    nodes: int
    gpus: int
    memory: int

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus

    @property
    def strategy(self) -> str:
        """The strategy that `lcm train` would take."""
        return choose(self.config.trainer.strategy, self.parameters, self.memory, self.world_size)[0]

    def usage(self, strategy: str) -> Usage:
        settings = self.config.trainer
        step = simulate(self.config, sharded=strategy in SHARDED)
        offload = settings.offload and strategy.startswith("deepspeed")
        return usage(step, strategy, self.world_size, accumulate=settings.accumulate, offload=offload)

    def fits(self, used: Usage) -> bool:
        return used.total + RESERVED <= self.memory

    def with_options(self, options: Options) -> "Job":
        """The job with these options at the end of its command line."""
        settings = [f"{name}={value}" for name, value in options.items() if "." in name]
        config = Config.parse(self.config.model_dump(mode="json", exclude_none=True), settings, where="lcm plan")
        nodes, gpus = options.get("--nodes", self.nodes), options.get("--gpus-per-node", self.gpus)
        return replace(self, config=config, nodes=int(nodes), gpus=int(gpus))


def first_that_fits(job: Job) -> tuple[Options, Usage] | None:
    """Options with which the job fits: another strategy, fewer rows, recomputed blocks, more GPUs, then all of these.

    None where nothing helps.
    """
    for options in _alternatives(job):
        other = job.with_options(options)
        try:
            check_strategy(other.strategy, other.config)
        except UserError:
            continue
        if other.fits(used := other.usage(other.strategy)):
            return options, used
    return None


def _alternatives(job: Job) -> Iterator[Options]:
    trainer, rows = job.config.trainer, job.config.data.rows
    if job.world_size > 1:
        yield from ({"--trainer.strategy": strategy} for strategy in STRATEGIES)
    yield from ({"--data.rows": count} for count in _fewer_rows(job))
    recomputed: Options = {} if trainer.checkpoint_activations else {"--trainer.checkpoint_activations": "true"}
    one_row: Options = {} if rows == 1 else {"--data.rows": 1}
    yield recomputed
    sharded: Options = {} if trainer.strategy in SHARDED else {"--trainer.strategy": "fsdp"}
    for more in ({}, recomputed, {**recomputed, **one_row}):
        yield from ({**gpus, **sharded, **more} for gpus in _more_gpus(job))


def _fewer_rows(job: Job) -> Iterator[int]:
    """The most rows that should fit, and some fewer: memory grows by the same with every row."""
    rows = job.config.data.rows
    if rows == 1:
        return
    one, all_ = (job.with_options({"--data.rows": count}).usage(job.strategy).total for count in (1, rows))
    free = job.memory - RESERVED - one
    if free >= 0 and all_ > one:
        most = min(rows - 1, 1 + free * (rows - 1) // (all_ - one))
        yield from (count for count in dict.fromkeys((most, most * 9 // 10, most // 2, 1)) if count)


def _more_gpus(job: Job) -> Iterator[Options]:
    """Nodes are filled up to 8 GPUs first; then their number doubles."""
    nodes, gpus = job.nodes, max(job.gpus, 8)
    filled = {"--gpus-per-node": gpus} if gpus > job.gpus else {}
    if filled:
        yield filled
    while (nodes := 2 * nodes) * gpus <= MAX_GPUS:
        yield {"--nodes": nodes, **filled}
