"""Updates of a codec's weights: a learning rate for each group of parameters, and directions that no update enters.

The directions carry the positions. Protecting them keeps the gates of the analytic start exact.

Shapes.  K directions · D width
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lcm.codec.architecture import SonarText
from lcm.codec_lab.training.analytic import coded_positions, feed_forward
from lcm.codec_lab.training.settings import LimitSettings, OptimizerSettings

STRUCTURED = {"encoder": ("layers.1.ffn.",), "decoder": ("layers.1.ffn.", "layers.1.encoder_decoder_attn.")}
"""Blocks that hold the construction of the analytic start; the norms count with them."""
EMPTY = 1e-4
"""A direction is empty where the power of the pieces is below this share of its median over all directions."""
EMBEDDING_EVERY = 8
"""Steps between projections of the embedding table, which is large and learns slowly."""


def parameter_groups(model: SonarText, optimizer: OptimizerSettings) -> list[dict[str, Any]]:
    """Trained parameters in three groups (structured, embedding, free), each with its base rate."""
    groups: dict[str, list[Any]] = {"structured": [], "embedding": [], "free": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "embedding" if name.endswith("embed.weight") else "free" if _is_free(name) else "structured"
            groups[kind].append(parameter)
    factors = {"structured": 1.0, "embedding": optimizer.embedding_factor, "free": optimizer.free_factor}
    rates = {kind: optimizer.lr * factor for kind, factor in factors.items()}
    return [{"params": group, "lr": rates[kind], "base": rates[kind]} for kind, group in groups.items() if group]


def _is_free(name: str) -> bool:
    """True for parameters that the analytic start does not set: attention, and blocks outside its two layers.

    The first feed-forward block counts as free, because its units that write the code get no gradient.
    """
    side, _, rest = name.partition(".")
    block = any(f".{kind}." in name for kind in ("self_attn", "encoder_decoder_attn", "ffn"))
    return block and not rest.startswith(STRUCTURED[side])


def share_done(limit: LimitSettings, steps: int, seconds: float) -> float:
    """Share of the limit that is reached, from 0 to 1, in steps or in minutes."""
    return min(1.0, steps / limit.steps if limit.steps else seconds / (60 * (limit.minutes or 1.0)))


def rate(step: int, done: float, optimizer: OptimizerSettings) -> float:
    """Factor of every base rate: linear warm-up, constant, linear decay over the last `decay` of the limit."""
    warm = min(1.0, (step + 1) / optimizer.warmup_steps) if optimizer.warmup_steps else 1.0
    left = (1 - done) / optimizer.decay if optimizer.decay else 1.0
    low = optimizer.final_factor
    return warm * (low + (1 - low) * min(1.0, left))


def empty_directions(model: SonarText) -> Float[Tensor, "K D"]:
    """The directions that no piece uses: those of positions and their codes. A random start has none.

    Read from the embedding table instead of constructed again: the complement of the sinusoids that a linear algebra
    library returns differs from one library to the next.
    """
    table = model.encoder.embed.weight.detach().cpu().double()
    if len(table) <= table.shape[1]:
        return torch.empty(0, table.shape[1])
    power, directions = torch.linalg.eigh(table.T @ table)
    empty = directions[:, power < EMPTY * power.median()]
    # Eigenvectors of equal power come in any rotation. Projected random vectors are unique.
    random = torch.randn(empty.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(empty @ (empty.T @ random))[0].T.float().contiguous()


@torch.no_grad()
def protect(model: SonarText, directions: Float[Tensor, "K D"], max_pieces: int, embedding: bool) -> None:
    """Project all trained weights that write into `directions` out of them, except the units that write the code.

    embedding: project the embedding table, too
    """
    for side in (model.encoder, model.decoder):
        output = feed_forward(side, 0).output_proj
        if not output.weight.requires_grad:
            continue
        writers = [output.weight[:, coded_positions(max_pieces) :], output.bias]
        for name, module in side.named_modules():
            if name.endswith("attn.output_proj") and isinstance(module, nn.Linear):
                writers += [module.weight, module.bias]
        for writer in writers:
            writer.sub_(directions.T @ (directions @ writer))
    table = model.encoder.embed.weight
    if embedding and table.requires_grad:
        table.sub_((table @ directions.T) @ directions)


def hold_code_units(model: SonarText, max_pieces: int) -> None:
    """Zero the gradient of the units that write the code: they are exact already."""
    units = coded_positions(max_pieces)
    for side in (model.encoder, model.decoder):
        block = feed_forward(side, 0)
        for gradient in (block.inner_proj.weight.grad, block.inner_proj.bias.grad):
            if gradient is not None:
                gradient[:units] = 0
        if block.output_proj.weight.grad is not None:
            block.output_proj.weight.grad[:, :units] = 0
