"""Keep learned writes out of the directions that carry positions: the gates of the analytic start then stay exact.

Shapes.  K directions · D width
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lcm.codec.architecture import Decoder, Encoder, FeedForward, SonarText
from lcm.codec_lab.training.analytic import coded_positions

EMPTY = 1e-4
"""A direction is empty where the pieces' power is below so much of its median over all directions."""
EMBEDDING_EVERY = 8
"""Steps between projections of the embedding table, whose rate is low and whose size is large."""


def empty_directions(model: SonarText) -> Float[Tensor, "K D"]:
    """The directions in which no piece has anything: those of the positions and their codes; none of a random start.

    Read from the embedding table, and not made again from a seed: the complement of the sinusoids that a linear
    algebra library finds is its own affair, and differs from one to the next.
    """
    table = model.encoder.embed.weight.detach().cpu().double()
    if len(table) <= table.shape[1]:
        return torch.empty(0, table.shape[1])
    power, directions = torch.linalg.eigh(table.T @ table)
    empty = directions[:, power < EMPTY * power.median()]
    # Directions of equal power come in any rotation; of random ones, projected, there is but one.
    random = torch.randn(empty.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(empty @ (empty.T @ random))[0].T.float().contiguous()


@torch.no_grad()
def protect(model: SonarText, directions: Float[Tensor, "K D"], max_pieces: int, embedding: bool) -> None:
    """Project everything that learns and could write into `directions` out of them; the code's own units may write.

    embedding: whether to take its table along
    """
    code_units = coded_positions(max_pieces)
    for side in (model.encoder, model.decoder):
        if not first_block(side).output_proj.weight.requires_grad:
            continue
        for name, module in side.named_modules():
            if name.endswith("attn.output_proj") and isinstance(module, nn.Linear):
                _project_columns(module.weight, directions)
                _project_columns(module.bias, directions)
        output = first_block(side).output_proj
        _project_columns(output.weight[:, code_units:], directions)
        _project_columns(output.bias, directions)
    table = model.encoder.embed.weight
    if embedding and table.requires_grad:
        table.sub_((table @ directions.T) @ directions)


def _project_columns(weight: Tensor, directions: Float[Tensor, "K D"]) -> None:
    """Of a matrix or a bias whose first axis is the width."""
    weight -= directions.T @ (directions @ weight)


def hold_code_units(model: SonarText, max_pieces: int) -> None:
    """Forget the gradient of the units that write the code: they are exact already."""
    count = coded_positions(max_pieces)
    for side in (model.encoder, model.decoder):
        block = first_block(side)
        for parameter, held in (
            (block.inner_proj.weight, slice(count)),
            (block.inner_proj.bias, slice(count)),
            (block.output_proj.weight, (slice(None), slice(count))),
        ):
            if parameter.grad is not None:
                parameter.grad[held] = 0


def first_block(side: Encoder | Decoder) -> FeedForward:
    block = side.layers[0].ffn
    assert isinstance(block, FeedForward)
    return block
