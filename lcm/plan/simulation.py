"""Memory of a training step, simulated: bytes that are alive at its peaks. Needs no GPU, and no room for weights.

The model's own loss and backward pass run on tensors that have shapes and no contents (torch's FakeTensorMode). Every
storage counts from its allocation until it is freed. So what autograd keeps, what autocast copies and what
recomputation saves need no formula for any family. Scratch memory inside a kernel is not seen.

Shapes.  B rows · S slots
"""

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lcm.batch import Batch
from lcm.config import Config, InterleavedConfig, ModelConfig
from lcm.models import build_model

Device = Literal["cuda", "cpu"]
MAX_NOISE = 2**27
"""Elements of noise that are drawn for real, at most (512 MiB). Beyond, memory is extrapolated."""


@dataclass(frozen=True)
class SimulatedStep:
    """Memory of one micro-batch on a rank that holds the whole model, beside its parameters.

    parameters: their number
    buffers:    bytes of codebooks, normalizer and schedule
    units:      parameters of each block that strategies shard as a unit; last, those of the rest of the model
    forward:    bytes at the peak of the forward pass
    backward:   bytes at the peak of the backward pass, where each gradient is gone as soon as it is complete
    backward_all_grads: the same, where gradients stay
    """

    parameters: int
    buffers: int
    units: tuple[int, ...]
    forward: int
    backward: int
    backward_all_grads: int


def simulate(config: Config, device: Device = "cuda", sharded: bool = False) -> SimulatedStep:
    """A step of full rows, data.rows × data.slots concepts, a document each, with a GPU's kernels or a CPU's.

    Without trainer.compile, by which blocks take a tenth less. Raises UserError where the model cannot be built.
    """
    data, trainer = config.data, config.trainer
    recompute, bf16 = trainer.checkpoint_activations, trainer.precision != "fp32"
    # Without recomputation, autograd keeps autocast's copies of weights anyway, and a cache of them adds nothing.
    cache = not (sharded and recompute)

    def step(rows: int) -> SimulatedStep:
        return _simulate(config.model, rows, data.slots, recompute, bf16, cache, device)

    half = max(1, MAX_NOISE // (data.slots * config.model.dim) // 2)
    if data.rows <= 2 * half:
        return step(data.rows)
    few, more = step(half), step(2 * half)

    def at_all_rows(one: int, two: int) -> int:
        return two + (two - one) * (data.rows - 2 * half) // half

    return replace(
        more,
        forward=at_all_rows(few.forward, more.forward),
        backward=at_all_rows(few.backward, more.backward),
        backward_all_grads=at_all_rows(few.backward_all_grads, more.backward_all_grads),
    )


@lru_cache(maxsize=64)
def _simulate(
    config: ModelConfig, rows: int, slots: int, recompute: bool, bf16: bool, cache: bool, device: Device
) -> SimulatedStep:
    """cache: autocast caches its copies of weights."""
    blocks = list[nn.Module]()
    with torch.device("meta"):
        model = build_model(config, blocks.append)
    units = _units(model, blocks)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        model.to_empty(device="cpu")  # on meta, torch picks other kernels
    buffers = sum(b.untyped_storage().nbytes() for b in model.buffers())
    for stack in model.stacks():
        stack.dense_mask, stack.recompute = True, recompute
    memory = LiveMemory(model)
    with ExitStack() as simulation:
        if device == "cuda":
            for part in model.modules():
                if isinstance(part, nn.Dropout):
                    part.__class__ = FusedDropout
            simulation.enter_context(CudaKernels(bf16))
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(memory.complete)  # type: ignore[no-untyped-call]
        batch = _full_rows(config, rows, slots, fake)
        simulation.enter_context(memory)
        memory.count(batch.emb)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=cache):
            loss = model.train()(batch).per_target.sum()
        forward = memory.peak
        memory.peak = memory.peak_without_grads = 0
        torch.autograd.backward(loss)  # Tensor.backward would leave the modes entered here
    return SimulatedStep(sum(units), buffers, units, forward, memory.peak_without_grads, memory.peak)


def _units(model: nn.Module, blocks: Sequence[nn.Module]) -> tuple[int, ...]:
    """Parameters of each block that no block before it has, and last those of the rest of the model."""
    taken, counts = set[nn.Parameter](), []
    for part in (*blocks, model):
        own = set(part.parameters()) - taken
        counts.append(sum(p.numel() for p in own))
        taken |= own
    return tuple(counts)


def _full_rows(config: ModelConfig, rows: int, slots: int, fake: FakeTensorMode) -> Batch:
    """A batch without padding. Positions, targets and row numbers are real, because control flow depends on them."""
    longest = config.max_positions if isinstance(config, InterleavedConfig) else slots
    place = torch.arange(slots).expand(rows, -1)
    with fake:
        emb = torch.empty(rows, slots, config.dim, dtype=torch.float16)
        doc = torch.empty(rows, slots, dtype=torch.long)
    is_target = torch.ones(rows, slots, dtype=torch.bool)
    return Batch(emb, doc, place % longest, is_target, torch.arange(rows), torch.tensor(rows * slots))


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all storages allocated while it is entered, until they are freed; not the model's own.

    peak:               the most bytes that were alive at once
    peak_without_grads: the same, without gradients that are complete
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.peak_without_grads = self._now = self._complete = 0
        self._sizes = {p.untyped_storage()._cdata: 0 for p in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], [numbers for index in args[1] for numbers in _to_numbers(index)])
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return out

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self._now += storage.nbytes()
        weakref.finalize(storage, self._freed, key)
        self.peak = max(self.peak, self._now)
        self.peak_without_grads = max(self.peak_without_grads, self._now - self._complete)

    def _freed(self, key: int) -> None:
        self._now -= self._sizes.pop(key)

    def complete(self, parameter: Tensor) -> None:
        """Count the parameter's gradient, which is complete, apart. A hook after its accumulation."""
        assert parameter.grad is not None
        self._complete += parameter.grad.untyped_storage().nbytes()


def _to_numbers(index: Tensor | None) -> Sequence[Tensor | None]:
    """Replace a real mask by the numbers that it selects: fake tensors cannot be indexed by a mask."""
    if index is None or isinstance(index, FakeTensor) or index.dtype != torch.bool:
        return [index]
    return index.nonzero().unbind(1)


class CudaKernels(TorchFunctionMode):
    """RMSNorm as CUDA's fused kernel, and autocast's rule for `addcmul`, which autocast on CPUs does not have."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self.autocast = autocast
        self.fused_norm = hasattr(torch, "_fused_rms_norm")

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.autograd.backward:
            # torch 2.13 dispatches this call to the mode and so leaves it, though blocks are recomputed in it. It does
            # not dispatch a call with an edge.
            with self:
                return func([get_gradient_edge(loss) for loss in args[0]])
        if func is nn.functional.rms_norm and self.fused_norm:
            return FusedNorm.apply(args[0], kwargs["weight"])  # type: ignore[no-untyped-call]
        if func is torch.addcmul and self.autocast:
            # https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-promote-to-the-widest-input-type
            args = tuple(x.float() for x in args)
        return func(*args, **kwargs)


class FusedNorm(torch.autograd.Function):
    """CUDA's RMSNorm since torch 2.8: saves the input, the weight, and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "*n M"], weight: Float[Tensor, " M"]) -> Float[Tensor, "*n M"]:
        ctx.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1)))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "*n M"]) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


class FusedDropout(nn.Dropout):
    """CUDA's dropout: saves one byte per element."""

    def forward(self, input: Float[Tensor, "*n M"]) -> Float[Tensor, "*n M"]:
        return torch.native_dropout(input, self.p, True)[0] if self.p else input
