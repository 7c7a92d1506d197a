"""Keep updates out of the directions that carry positions, so that the gates of the analytic start stay exact.

Shapes.  K directions · D width
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lcm.codec.architecture import SonarText
from lcm.codec_lab.training.analytic import coded_positions, feed_forward

EMPTY = 1e-4
"""A direction is empty where the power of the pieces is below this share of its median over all directions."""
EMBEDDING_EVERY = 8
"""Steps between projections of the embedding table, which is large and learns slowly."""


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
    units = slice(coded_positions(max_pieces))
    for side in (model.encoder, model.decoder):
        block = feed_forward(side, 0)
        for parameter, held in (
            (block.inner_proj.weight, units),
            (block.inner_proj.bias, units),
            (block.output_proj.weight, (slice(None), units)),
        ):
            if parameter.grad is not None:
                parameter.grad[held] = 0
