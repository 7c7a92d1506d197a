"""How fast each part learns: groups of parameters, and the rate as a function of what is done."""

from typing import Any

from lcm.codec.architecture import SonarText
from lcm.codec_lab.training.settings import Limit, Optimizer

STRUCTURED = {
    "encoder": ("layers.1.ffn.",),
    "decoder": ("layers.1.ffn.", "layers.1.encoder_decoder_attn."),
}
"""Where the analytic start has put its mathematics; norms count with it."""


def is_free(name: str) -> bool:
    """Whether the analytic start leaves this parameter alone: attention, and blocks outside its two layers.

    The first feed-forward block counts as free: its units that write the code get no gradient at all.
    """
    side, _, rest = name.partition(".")
    block = any(f".{kind}." in name for kind in ("self_attn", "encoder_decoder_attn", "ffn"))
    return block and not rest.startswith(STRUCTURED[side])


def parameter_groups(model: SonarText, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Structured, embedding, free: what learns, with the base rate of each group."""
    groups: dict[str, list[Any]] = {"structured": [], "embedding": [], "free": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "embedding" if name.endswith("embed.weight") else "free" if is_free(name) else "structured"
            groups[kind].append(parameter)
    factors = {"structured": 1.0, "embedding": optimizer.embedding_factor, "free": optimizer.free_factor}
    return [
        {"params": parameters, "lr": optimizer.lr * factors[kind], "base": optimizer.lr * factors[kind]}
        for kind, parameters in groups.items()
        if parameters
    ]


def share_done(limit: Limit, steps: int, seconds: float) -> float:
    """From 0 to 1: of the steps, or of the minutes."""
    done = steps / limit.steps if limit.steps is not None else seconds / (60 * (limit.minutes or 1.0))
    return min(1.0, done)


def rate(step: int, done: float, optimizer: Optimizer) -> float:
    """A factor of every base rate: up over the warm-up, constant, then straight down over the last `decay`."""
    warm = min(1.0, (step + 1) / optimizer.warmup_steps) if optimizer.warmup_steps else 1.0
    left = (1 - done) / optimizer.decay if optimizer.decay else 1.0
    low = optimizer.final_factor
    return warm * (low + (1 - low) * min(1.0, left))
