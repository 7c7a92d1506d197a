"""Parts of a model, by name: which of them stand still, and how fast the others learn (fine-tuning).

A part is a module by its name, at any depth: `denoiser`, `denoiser.blocks.0`, or `feed_forward` of every block.
"""

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from lcm.config import OptimizerConfig
from lcm.errors import UserError
from lcm.options import did_you_mean


def freeze(model: nn.Module, optimizer: OptimizerConfig) -> None:
    """Take the frozen parts out of training.

    Raises UserError for a part that is not there or has a rate but is frozen, and if nothing would be left to train.
    """
    check_parts(model, optimizer.frozen, "optimizer.frozen")
    check_parts(model, list(optimizer.lr_factors), "optimizer.lr_factors")
    for name, parameter in model.named_parameters():
        if any(is_of(name, part) for part in optimizer.frozen):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"optimizer.frozen={','.join(optimizer.frozen)}: is the whole model; leave a part to train")
    for part in optimizer.lr_factors:
        if not any(parameter.requires_grad for name, parameter in model.named_parameters() if is_of(name, part)):
            raise UserError(f"optimizer.lr_factors: {part} is in optimizer.frozen; leave it out of one of them")


def describe(model: nn.Module, optimizer: OptimizerConfig) -> Iterator[str]:
    """A line for all frozen parts, and one for each part with a rate of its own."""

    def count(parts: Sequence[str]) -> str:
        sizes = [p.numel() for name, p in model.named_parameters() if any(is_of(name, part) for part in parts)]
        return f"{sum(sizes):,} parameters"

    if optimizer.frozen:
        yield f"frozen     {', '.join(optimizer.frozen)}: {count(optimizer.frozen)}"
    for part, factor in optimizer.lr_factors.items():
        yield f"rate       {part}: at most {factor * optimizer.lr:g}, {factor:g} times optimizer.lr; {count([part])}"


def rate_of(name: str, rates: Mapping[str, float]) -> float:
    """The factor of the learning rate of a parameter: its innermost part's; of two names for that, the longer's."""
    found = [part for part in rates if is_of(name, part)]
    return rates[max(found, key=lambda part: (f".{name}.".rfind(f".{part}.") + len(part), len(part)))] if found else 1.0


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
