"""Fit codebooks to vectors: faiss k-means on the residuals of the codebooks before, one after the other (paper §2.3.5).

Improved residual vector quantization (Liu et al. 2015, arXiv 1509.05195) with a beam of one: k-means starts in the
first principal direction and continues, from those centers, in more and more of them.

Shapes.  n vectors · D concept width · V units of a codebook
"""

from collections.abc import Callable

import faiss
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lcm.errors import UserError
from lcm.models.quantizer import ResidualQuantizer

STEPS = 10
"""Number of times that the principal directions increase, from 1 to D."""
ITERATIONS = 10
"""k-means iterations after each increase."""
ROWS = 2**16
"""Vectors processed at once, to keep temporary tables small beside the vectors themselves."""


def fit_quantizer(
    vectors: Float[Tensor, "n D"], codebooks: int, units: int, seed: int, report: Callable[[str], None] | None = None
) -> ResidualQuantizer:
    """Fit a residual quantizer. The same vectors, seed and number of threads give the same bytes.

    A codebook does not depend on how many follow it. Each k-means draws at most 256 vectors a unit.

    report: called with a line after each codebook
    Raises UserError for fewer vectors than units, and for numbers that are not finite.
    """
    if codebooks < 1 or units < 1:
        raise UserError(f"codebooks={codebooks}, units={units}: expected 1 or more of each")
    if len(vectors) < units:
        raise UserError(f"units={units}, but there are only {len(vectors):,} vectors to fit them to; lower it")
    if not vectors.isfinite().all():
        raise UserError("some vectors are not finite, and have no clusters; lcm verify finds them")
    faiss.omp_set_num_threads(torch.get_num_threads())  # faiss would use every processor
    residuals, fitted, total = vectors.float().clone(), [], variance(vectors)
    for k in range(codebooks):
        fitted.append(kmeans(residuals, units, seed + k))
        last = quantizer_of(fitted[-1:])
        for part in torch.split(residuals, ROWS):
            part -= last(part)
        if report:
            left = sum(float(part.square().sum()) for part in torch.split(residuals, ROWS))
            report(f"codebook {k + 1} of {codebooks}: {left / total if total else 0:.2%} of the variance left")
    return quantizer_of(fitted)


def kmeans(vectors: Float32[Tensor, "n D"], units: int, seed: int) -> Float32[Tensor, "V D"]:
    directions = principal_directions(vectors)
    rotated, centers = torch.empty_like(vectors), None
    for part, out in zip(torch.split(vectors, ROWS), torch.split(rotated, ROWS), strict=True):
        torch.mm(part, directions, out=out)
    for width in widths(vectors.shape[1]):
        means = faiss.Kmeans(
            width,
            units,
            niter=ITERATIONS,
            seed=seed,
            min_points_per_centroid=1,
            init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        )
        start = None if centers is None else torch.nn.functional.pad(centers, (0, width - centers.shape[1])).numpy()
        means.train(rotated[:, :width].contiguous().numpy(), init_centroids=start)
        centers = torch.from_numpy(means.centroids)
    assert centers is not None
    return centers @ directions.T


def principal_directions(vectors: Float32[Tensor, "n D"]) -> Float32[Tensor, "D D"]:
    """Columns of an orthogonal matrix, the direction of the largest variance first."""
    mean = vectors.mean(0, dtype=torch.float64)
    scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for part in torch.split(vectors, ROWS):
        centered = part.double() - mean
        scatter += centered.T @ centered
    return torch.linalg.eigh(scatter).eigenvectors.flip(1).float().contiguous()


def widths(dim: int) -> list[int]:
    """1, …, dim: STEPS + 1 numbers of directions in a geometric sequence, without duplicates."""
    return sorted({round(dim ** (i / STEPS)) for i in range(STEPS + 1)})


def quantizer_of(codebooks: list[Float32[Tensor, "V D"]]) -> ResidualQuantizer:
    quantizer = ResidualQuantizer(len(codebooks), *codebooks[0].shape)
    quantizer.set(torch.stack(codebooks))
    return quantizer


def variance(vectors: Float[Tensor, "n D"]) -> float:
    """Squared distance from the mean, summed over vectors and channels."""
    mean = vectors.float().mean(0)
    return sum(float((part.float() - mean).square().sum()) for part in torch.split(vectors, ROWS))
