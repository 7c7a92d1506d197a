"""Learning rates: a base rate for each group of parameters, and the factor by which all of them change over time."""

from typing import Any

from lcm.codec.architecture import SonarText
from lcm.codec_lab.training.settings import LimitSettings, OptimizerSettings

STRUCTURED = {
    "encoder": ("layers.1.ffn.",),
    "decoder": ("layers.1.ffn.", "layers.1.encoder_decoder_attn."),
}
"""Blocks that hold the construction of the analytic start; the norms count with them."""


def is_free(name: str) -> bool:
    """True for parameters that the analytic start does not set: attention, and blocks outside its two layers.

    The first feed-forward block counts as free, because its units that write the code get no gradient.
    """
    side, _, rest = name.partition(".")
    block = any(f".{kind}." in name for kind in ("self_attn", "encoder_decoder_attn", "ffn"))
    return block and not rest.startswith(STRUCTURED[side])


def parameter_groups(model: SonarText, optimizer: OptimizerSettings) -> list[dict[str, Any]]:
    """Trained parameters in three groups (structured, embedding, free), each with its base rate."""
    groups: dict[str, list[Any]] = {"structured": [], "embedding": [], "free": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "embedding" if name.endswith("embed.weight") else "free" if is_free(name) else "structured"
            groups[kind].append(parameter)
    factors = {"structured": 1.0, "embedding": optimizer.embedding_factor, "free": optimizer.free_factor}
    rates = {kind: optimizer.lr * factor for kind, factor in factors.items()}
    return [{"params": group, "lr": rates[kind], "base": rates[kind]} for kind, group in groups.items() if group]


def share_done(limit: LimitSettings, steps: int, seconds: float) -> float:
    """Share of the limit that is reached, from 0 to 1, in steps or in minutes."""
    done = steps / limit.steps if limit.steps is not None else seconds / (60 * (limit.minutes or 1.0))
    return min(1.0, done)


def rate(step: int, done: float, optimizer: OptimizerSettings) -> float:
    """Factor of every base rate: linear warm-up, constant, linear decay over the last `decay` of the limit."""
    warm = min(1.0, (step + 1) / optimizer.warmup_steps) if optimizer.warmup_steps else 1.0
    left = (1 - done) / optimizer.decay if optimizer.decay else 1.0
    low = optimizer.final_factor
    return warm * (low + (1 - low) * min(1.0, left))
