"""Products of a few rows, which take as long as reading the weights: these lie in the order that is quickest to read.

Shapes.  n rows
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
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
        if device == "cpu" and weight.dtype == torch.float32 and can_pack():
            return Product(torch.ops.mkldnn._reorder_linear_weight(weight.detach()), bias)
        return Product(weight, bias)

    def __call__(self, x: Float[Tensor, "*n of"]) -> Float[Tensor, "*n to"]:
        x = x.to(self.weight.dtype)
        if not self.weight.is_mkldnn:
            return linear(x, self.weight, self.bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
        return y


def can_pack() -> bool:
    """Whether this torch can keep weights in oneDNN's order, in which a few rows are done quicker."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's own
    return available and all(hasattr(torch.ops.mkldnn, name) for name in names)
