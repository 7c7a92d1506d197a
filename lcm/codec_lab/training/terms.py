"""The terms of a codec's loss, and the damage they learn to repair: pure functions, random by torch's generator.

Shapes.  B rows · P pieces of the source · Q pieces of the target · D concept width · E width of the public encoder
         V vocabulary
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcm.codec_lab.similarity import similarities
from lcm.models import Normalizer

IGNORED = -100
"""Target of a position that does not count."""


def damaged(row: Sequence[int], starts_word: Bool[Tensor, " V"], drop: float, swap: float) -> list[int]:
    """Drop words of `row` and swap neighbours; at least one word stays (paper §2.1: denoising)."""
    words: list[list[int]] = []
    for piece in row:
        if not words or bool(starts_word[piece]):
            words.append([])
        words[-1].append(piece)
    chances = torch.rand(2, len(words)).tolist()
    kept = [word for word, chance in zip(words, chances[0], strict=True) if chance >= drop] or words[:1]
    place = 0
    while place + 1 < len(kept):
        if chances[1][place] < swap:
            kept[place : place + 2] = kept[place + 1], kept[place]
            place += 1
        place += 1
    return [piece for word in kept for piece in word]


def with_unknowns(pieces: Int[Tensor, "B Q"], mean_share: float, unknown: int) -> Int[Tensor, "B Q"]:
    """Replace a share of each row's pieces by `unknown`. The share is uniform from 0 to twice the mean."""
    share = 2 * mean_share * torch.rand(len(pieces), 1, device=pieces.device)
    return pieces.masked_fill(torch.rand(pieces.shape, device=pieces.device) < share, unknown)


def with_noise(vectors: Float[Tensor, "B D"], size: float) -> Float[Tensor, "B D"]:
    """Add Gaussian noise of up to `size` standard deviations of each channel over the batch, uniform for each row."""
    if len(vectors) < 2:
        return vectors
    sigma = size * torch.rand(len(vectors), 1, device=vectors.device)
    return vectors + sigma * vectors.detach().std(0) * torch.randn_like(vectors)


def robust(vectors: Float[Tensor, "B D"], normalizer: Normalizer, most: float) -> Float[Tensor, "B D"]:
    """x(a, e) = denorm(sqrt(1 - a) norm(x) + sqrt(a) e), e Gaussian, a uniform from 0 to `most` (paper §2.5.2)."""
    a = most * torch.rand(len(vectors), 1, device=vectors.device)
    noise = torch.randn_like(vectors)
    return normalizer.inverse((1 - a).sqrt() * normalizer(vectors) + a.sqrt() * noise)


def targets(pieces: Int[Tensor, "B Q"], lengths: Int[Tensor, " B"], end: int) -> Int[Tensor, "B Q+1"]:
    """The pieces and their end; positions beyond are IGNORED."""
    place = torch.arange(pieces.shape[1] + 1, device=pieces.device)
    longer = F.pad(pieces, (0, 1)).masked_fill(place == lengths[:, None], end)
    return longer.masked_fill(place > lengths[:, None], IGNORED)


def cross_entropy(logits: Float[Tensor, "B Q V"], wanted: Int[Tensor, "B Q"]) -> Float[Tensor, ""]:
    """Mean over the pieces that count."""
    return F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=IGNORED)


def similarity_loss(
    vectors: Float[Tensor, "B D"], teacher: Float[Tensor, "B E"], kind: str, temperature: float
) -> Float[Tensor, ""]:
    """Distance between the batch's similarities and the public encoder's, self-similarities excluded.

    mse: squared difference of the cosines. kl: Kullback-Leibler divergence of their softmax over each row. 0 for fewer
    than three rows: after centring, two always point away from each other.
    """
    if len(vectors) < 3:
        return vectors.sum() * 0
    others = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    ours, theirs = (similarities(x)[others].view(len(vectors), -1) for x in (vectors, teacher))
    if kind == "mse":
        return (ours - theirs).square().mean()
    ours, theirs = ((x / temperature).log_softmax(1) for x in (ours, theirs))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
