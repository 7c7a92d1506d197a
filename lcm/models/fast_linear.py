"""Linear layers for few rows. They are bound by reading the weights, so a copy is kept in oneDNN's packed layout.

Shapes.  n rows
"""

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear


@dataclass(frozen=True)
class FastLinear:
    """x → x · weightᵀ + bias, in the precision of the autocast it was built under."""

    weight: Float[Tensor, "to of"]
    bias: Float[Tensor, " to"]

    @staticmethod
    def of(weight: Float[Tensor, "to of"], bias: Float[Tensor, " to"]) -> "FastLinear":
        device = weight.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            return FastLinear(weight.to(dtype), bias.to(dtype))
        if prefer_packed(weight):
            return FastLinear(torch.ops.mkldnn._reorder_linear_weight(weight.detach()), bias)
        return FastLinear(weight, bias)

    def __call__(self, x: Float[Tensor, "*n of"]) -> Float[Tensor, "*n to"]:
        x = x.to(self.weight.dtype)
        if not self.weight.is_mkldnn:
            return linear(x, self.weight, self.bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
        return y


class PackedLinear(nn.Linear):
    """A linear layer with a packed copy of its weights."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = linear.weight, linear.bias
        self.fast = FastLinear.of(linear.weight, linear.bias)

    def forward(self, input: Float[Tensor, "*n of"]) -> Float[Tensor, "*n to"]:
        return self.fast(input)


M = TypeVar("M", bound=nn.Module)


def with_packed_weights(module: M) -> M:
    """A twin of the module for few rows, without gradients; its linear layers have packed copies of their weights.

    It must not be used after the weights change. The module itself, if packing does not help here.
    """
    weight = next(module.parameters())
    if torch.is_autocast_enabled(weight.device.type) or not prefer_packed(weight):
        return module
    return _twin(module)


def _twin(module: M) -> M:
    twin = copy.copy(module)
    parts = module._modules.items()
    twin._modules = {name: PackedLinear(p) if isinstance(p, nn.Linear) else p and _twin(p) for name, p in parts}
    return twin


def prefer_packed(weight: Tensor) -> bool:
    """True for fp32 weights on a CPU."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and can_pack()


def can_pack() -> bool:
    """True if this build of torch has the operators of oneDNN's packed layout."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's own
    return available and all(hasattr(torch.ops.mkldnn, name) for name in names)
