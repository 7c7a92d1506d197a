"""Products of a few rows, which take as long as reading the weights: these lie in the order that is quickest to read.

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
class Product:
    """x → x · weightᵀ + bias, in the type that autocast had when it was made."""

    weight: Float[Tensor, "to of"]
    bias: Float[Tensor, " to"]

    @staticmethod
    def of(weight: Float[Tensor, "to of"], bias: Float[Tensor, " to"]) -> "Product":
        device = weight.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            return Product(weight.to(dtype), bias.to(dtype))
        if is_quicker_packed(weight):
            return Product(torch.ops.mkldnn._reorder_linear_weight(weight.detach()), bias)
        return Product(weight, bias)

    def __call__(self, x: Float[Tensor, "*n of"]) -> Float[Tensor, "*n to"]:
        x = x.to(self.weight.dtype)
        if not self.weight.is_mkldnn:
            return linear(x, self.weight, self.bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
        return y


class PackedLinear(nn.Linear):
    """A linear layer whose weights are there a second time, packed."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = linear.weight, linear.bias
        self.product = Product.of(linear.weight, linear.bias)

    def forward(self, input: Float[Tensor, "*n of"]) -> Float[Tensor, "*n to"]:
        return self.product(input)


M = TypeVar("M", bound=nn.Module)


def packed(module: M) -> M:
    """The module for few rows, without gradients: its linear layers hold copies of their weights, and share the rest.

    Once the module's weights change, the result must not be used again. The module itself, where packing is no use.
    """
    weight = next(module.parameters())
    if torch.is_autocast_enabled(weight.device.type) or not is_quicker_packed(weight):
        return module
    return _packed(module)


def _packed(module: M) -> M:
    twin = copy.copy(module)
    parts = module._modules.items()
    twin._modules = {name: PackedLinear(p) if isinstance(p, nn.Linear) else p and _packed(p) for name, p in parts}
    return twin


def is_quicker_packed(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and can_pack()


def can_pack() -> bool:
    """Whether this torch can keep weights in oneDNN's order, in which a few rows are done quicker."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's own
    return available and all(hasattr(torch.ops.mkldnn, name) for name in names)
