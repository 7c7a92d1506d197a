"""What training takes of each GPU, by strategy: the step that lcm.plan.simulation ran, and what each engine adds to it.

What the engines hold was read in their source (torch 2.9, Lightning 2.6, DeepSpeed 0.19) and held to the peaks of
processes on CPUs by tests/plan. A process on a CPU only has the pages that it wrote to: buffers that an
engine makes and never fills count on a GPU alone, and so no test has seen them.

Sizes below.  whole: the weights, 4 bytes each · slice: the part of them that one process owns
"""

from dataclasses import dataclass

from lcm.plan.simulation import Device, Step

STRATEGIES = ("ddp", "fsdp", "deepspeed_1", "deepspeed_2", "deepspeed_3")
BUCKET, LIVE, PREFETCH = 5 * 10**8, 10**9, 5 * 10**7
"""DeepSpeed's defaults in numbers: reduce_bucket_size, stage3_max_live_parameters, stage3_prefetch_bucket_size."""


@dataclass(frozen=True)
class Usage:
    """Bytes of one process at its peak.

    weights:     with the model's buffers and, in DeepSpeed, the copy of them that AdamW updates
    optimizer:   AdamW's two moments
    activations: what else the forward and the backward pass take
    engine:      gathered slices, buckets
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    engine: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.engine


def usage(
    step: Step, strategy: str, processes: int, *, accumulate: int = 1, offload: bool = False, device: Device = "cuda"
) -> Usage:
    """strategy: as `lcm.training.strategies.choose` names it; processes: of the whole run.

    offload: without AdamW, which is then in the machine's memory; DeepSpeed's own buffers for it are not counted
    """
    whole = 4 * step.parameters
    part = -(-whole // processes)
    pass_ = max(step.forward, step.backward)
    match strategy:
        case "single":
            # Lightning clears the gradients after the forward pass, in which they are therefore still there.
            backward = step.piled if accumulate == 1 else whole + step.backward
            peak = max(whole + step.forward, backward)
            return Usage(whole + step.buffers, whole, 2 * whole, peak - whole, 0)
        case "ddp":
            # Gradients are views of buckets, which are made anew in the second step, while the old ones are there.
            peak = max(step.forward + (whole if device == "cuda" else 0), step.backward)
            return Usage(whole + step.buffers, whole, 2 * whole, pass_, peak - pass_)
        case "fsdp":
            engine, peak = _gathered(step, processes, part)
            return Usage(part + step.buffers, part, 2 * part, peak - engine - part, engine)
    copies = 0 if offload else part
    moments = 0 if offload else 2 * part
    bucket = 4 * BUCKET if device == "cuda" else 0
    filled = 4 * min(BUCKET, step.parameters)
    match strategy:
        case "deepspeed_1":
            # Whole gradients pile up, from none. Then they go through the bucket, and through a copy of it.
            peak = max(step.forward - bucket, step.piled, whole + (0 if bucket else filled))
            return Usage(whole + step.buffers + copies, whole, moments, peak - whole, bucket)
        case "deepspeed_2":
            # Gradients go into the bucket, and when it is full or all are there, through a copy of it.
            if device == "cpu":
                peak = max(step.forward, step.piled, 2 * filled)
                return Usage(whole + step.buffers + copies, part, moments, peak - part, 0)
            engine = bucket + (filled if step.parameters > BUCKET else 0)
            peak = max(step.forward, part + step.backward + engine, part + bucket + filled)
            return Usage(whole + step.buffers + copies, part, moments, peak - part - engine, engine)
        case "deepspeed_3":
            # The bucket, a copy of it when it is full, weights that are used soon, and the last ones fetched.
            engine = filled + bucket + 4 * min(LIVE, step.parameters) + 4 * min(PREFETCH, step.parameters)
            return Usage(part + step.buffers + copies, part, moments, pass_, engine)
    raise AssertionError(strategy)


def _gathered(step: Step, processes: int, part: int) -> tuple[int, int]:
    """FSDP2's buffers, and the peak of all that is not weights and AdamW.

    In the forward pass a block, and the buffer through which it was gathered; the last step's gradients are still
    there. In the backward pass also the gradients of the block before, which are being reduced; how many slices of
    gradients there are by then lies between none and all. What is outside the blocks stays whole.
    """
    block, rest = 4 * max(step.slices[:-1]), 4 * step.slices[-1]
    # The largest sum of two quantities grows at most linearly with the weight of one of them.
    backward = step.backward + (step.piled - step.backward) // processes
    forward = part + step.forward
    if forward + 2 * block > backward + 3 * block:
        return rest + 2 * block, rest + 2 * block + forward
    return rest + 3 * block, rest + 3 * block + backward
