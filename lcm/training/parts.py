"""Parts of a model, by name: which of them stand still, and how fast the others learn (fine-tuning).

A part is a module by its name, at any depth: `denoiser`, `denoiser.blocks.0`, or `feed_forward` of every block.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from lcm.errors import UserError
from lcm.options import did_you_mean


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Take these parts out of training. Raises UserError for one that is not there, and if nothing would be left."""
    check_parts(model, parts, "optimizer.frozen")
    for name, parameter in model.named_parameters():
        if any(is_of(name, part) for part in parts):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"optimizer.frozen={','.join(parts)}: that is the whole model; leave a part to train")


def rate_of(name: str, rates: Mapping[str, float]) -> float:
    """The factor of the learning rate of a parameter; of parts inside each other, that of the longest name counts."""
    found = [part for part in rates if is_of(name, part)]
    return rates[max(found, key=len)] if found else 1.0


def is_of(name: str, part: str) -> bool:
    """True if the parameter belongs to the part."""
    return f".{part}." in f".{name}."


def check_parts(model: nn.Module, parts: Sequence[str], setting: str) -> None:
    """Raises UserError for a part that the model does not have."""
    parameters = [name for name, _ in model.named_parameters()]
    for part in parts:
        if not any(is_of(name, part) for name in parameters):
            modules = dict.fromkeys(
                piece for name in parameters for piece in name.split(".")[:-1] if piece.isidentifier()
            )
            raise UserError(
                f"{setting}: {part} is not a part of this model{did_you_mean(part, list(modules))}; "
                f"expected some of {', '.join(modules)}"
            )
