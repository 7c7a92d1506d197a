"""A training step without its numbers: how many bytes are alive at its peaks. Needs no GPU, and no room for weights.

The model's own loss and backward pass run on tensors that have shapes and no contents (torch's FakeTensorMode). Every
storage counts from when it is made until it is freed, so what autograd keeps, what autocast copies and what recomputing
saves need no formula, for no family. What one kernel needs for itself alone is not seen.

Shapes.  B rows · S slots
"""

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
DRAWN = 2**27
"""Numbers of noise that are drawn for real, at most (512 MiB): what needs more is extrapolated."""


@dataclass(frozen=True)
class Step:
    """What a micro-batch takes in a process that holds the whole model, beside its parameters.

    parameters: how many numbers
    buffers:    bytes of codebooks, normalizer and schedule
    slices:     parameters of each part that strategies slice by itself; the last is what is left of the model
    forward:    bytes at the peak of the forward pass
    backward:   bytes at the peak of the backward pass, where each gradient goes as soon as it is complete
    piled:      the same, where gradients stay
    """

    parameters: int
    buffers: int
    slices: tuple[int, ...]
    forward: int
    backward: int
    piled: int


def simulate(config: Config, device: Device = "cuda", sliced: bool = False) -> Step:
    """Of full rows of data.rows × data.slots concepts, a document each, in a GPU's kernels or in a CPU's.

    trainer.compile is not simulated: compiled blocks take a tenth less. Raises UserError where the model cannot be
    built.
    """
    data, trainer = config.data, config.trainer
    # Where blocks are not recomputed, autograd keeps the copies that autocast makes, and a cache of them adds nothing.
    caches = not (sliced and trainer.checkpoint_activations)
    half = max(1, DRAWN // (data.slots * config.model.dim) // 2)
    model, recompute, bf16 = config.model, trainer.checkpoint_activations, trainer.precision == "bf16"
    if data.rows <= 2 * half:
        return _simulated(model, data.rows, data.slots, recompute, bf16, caches, device)
    few, more = (_simulated(model, rows, data.slots, recompute, bf16, caches, device) for rows in (half, 2 * half))

    def at_all_rows(one: int, two: int) -> int:
        return two + (two - one) * (data.rows - 2 * half) // half

    peaks = {name: at_all_rows(getattr(few, name), getattr(more, name)) for name in ("forward", "backward", "piled")}
    return Step(more.parameters, more.buffers, more.slices, **peaks)


@lru_cache(maxsize=64)
def _simulated(
    config: ModelConfig, rows: int, slots: int, recompute: bool, bf16: bool, caches: bool, device: Device
) -> Step:
    parts = list[nn.Module]()
    with torch.device("meta"):
        model = build_model(config, parts.append)
    slices = _slices(model, parts)
    without_contents = FakeTensorMode(allow_non_fake_inputs=True)
    _empty(model, without_contents)
    buffers = sum(b.untyped_storage().nbytes() for b in model.buffers())
    for stack in model.stacks():
        stack.dense_mask, stack.recompute = True, recompute
    live = Live(model)
    with ExitStack() as simulation:
        if device == "cuda":
            _replace_dropout(model)
            simulation.enter_context(Kernels(bf16))
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(live.complete)  # type: ignore[no-untyped-call]
        batch = _full_rows(config, rows, slots, without_contents)
        simulation.enter_context(live)
        live.count(batch.emb)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=caches):
            loss = model.train()(batch).per_target.sum()
        forward = live.peak
        live.peak = live.peak_of_incomplete = 0
        torch.autograd.backward(loss)  # Tensor.backward would leave the modes that are entered here
    return Step(sum(slices), buffers, slices, forward, live.peak_of_incomplete, live.peak)


def _slices(model: nn.Module, parts: Sequence[nn.Module]) -> tuple[int, ...]:
    """How many parameters each part has that no part before it has; then, of the model."""
    taken, found = set[nn.Parameter](), []
    for part in (*parts, model):
        own = set(part.parameters()) - taken
        found.append(sum(p.numel() for p in own))
        taken |= own
    return tuple(found)


def _empty(model: nn.Module, mode: FakeTensorMode) -> None:
    """From the device meta, for which torch takes other kernels, to tensors of a CPU that have no contents."""

    def like(tensor: Tensor) -> Tensor:
        with mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")

    for part in model.modules():
        for name, parameter in part._parameters.items():
            part._parameters[name] = None if parameter is None else nn.Parameter(like(parameter))
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else like(buffer)


def _full_rows(config: ModelConfig, rows: int, slots: int, mode: FakeTensorMode) -> Batch:
    """Positions, targets and seeds are real: how many concepts are drawn and asked for depends on them."""
    longest = config.max_positions if isinstance(config, InterleavedConfig) else slots
    place = torch.arange(slots).expand(rows, -1)
    with mode:
        emb = torch.empty(rows, slots, config.dim, dtype=torch.float16)
        doc = torch.empty(rows, slots, dtype=torch.long)
    everything = torch.ones(rows, slots, dtype=torch.bool)
    return Batch(emb, doc, place % longest, everything, torch.arange(rows), torch.tensor(rows * slots))


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are made while it is entered and are not freed yet; not the model's own.

    peak:               the most there ever were
    peak_of_incomplete: the same, without gradients that are complete
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.peak_of_incomplete = self._now = self._complete = 0
        self._sizes = {p.untyped_storage()._cdata: 0 for p in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], [number for index in args[1] for number in _numbers(index)])
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
        self.peak_of_incomplete = max(self.peak_of_incomplete, self._now - self._complete)

    def _freed(self, key: int) -> None:
        self._now -= self._sizes.pop(key)

    def complete(self, parameter: Tensor) -> None:
        """The parameter's gradient, which stays."""
        assert parameter.grad is not None
        self._complete += parameter.grad.untyped_storage().nbytes()


def _numbers(index: Tensor | None) -> Sequence[Tensor | None]:
    """Which ones a real mask chooses: a tensor without contents cannot ask it."""
    if index is None or isinstance(index, FakeTensor) or index.dtype != torch.bool:
        return [index]
    return index.nonzero().unbind(1)


# ---- what a GPU does otherwise ----


class Kernels(TorchFunctionMode):
    """Norms and dropout as one CUDA kernel each, and autocast's rule for `addcmul`, which the CPU's has not."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self.autocast = autocast
        self.fused_norm = hasattr(torch, "_fused_rms_norm")

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.autograd.backward:
            # Torch 2.13 asks, having left this mode, in which blocks must be recomputed. It does not ask for an edge.
            with self:
                return func([get_gradient_edge(loss) for loss in args[0]])
        if func is nn.functional.rms_norm and self.fused_norm:
            return FusedNorm.apply(args[0], kwargs["weight"])  # type: ignore[no-untyped-call]
        if func is torch.addcmul and self.autocast:
            # https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-promote-to-the-widest-input-type
            args = tuple(x.float() for x in args)
        return func(*args, **kwargs)


class FusedNorm(torch.autograd.Function):
    """What CUDA's kernel keeps since torch 2.8: the input, the weight, and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "*n M"], weight: Float[Tensor, " M"]) -> Float[Tensor, "*n M"]:
        ctx.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1)))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "*n M"]) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


class FusedDropout(nn.Dropout):
    """CUDA's: keeps one byte a number."""

    def forward(self, input: Float[Tensor, "*n M"]) -> Float[Tensor, "*n M"]:
        return torch.native_dropout(input, self.p, True)[0] if self.p else input


def _replace_dropout(model: nn.Module) -> None:
    for part in list(model.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.Dropout):
                setattr(part, name, FusedDropout(child.p))
