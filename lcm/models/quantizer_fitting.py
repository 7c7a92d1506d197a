"""Codebooks from vectors: faiss k-means on what the codebooks before have left, one after the other (paper §2.3.5).

Improved residual vector quantization (Liu et al. 2015, arXiv 1509.05195) with a beam of one: the clusters of a codebook
are looked for along the first principal direction, then, from there, in more and more of them.

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
"""Numbers of directions, from 1 to D, in which the clusters are looked for."""
ITERATIONS = 10
"""Of k-means, in each of them."""
ROWS = 2**16
"""Vectors that are handled together, so that the table of vectors is the only large one."""


def fit_quantizer(
    vectors: Float[Tensor, "n D"],
    codebooks: int,
    units: int,
    seed: int,
    tell: Callable[[str], None] | None = None,
) -> ResidualQuantizer:
    """The same vectors, seed and number of threads give the same bytes. `tell` gets a line for each codebook.

    The first codebooks do not depend on how many follow. Beyond 256 vectors a unit, each k-means draws so many.
    Raises UserError where there are fewer vectors than units, and for numbers that are not finite.
    """
    if codebooks < 1 or units < 1:
        raise UserError(f"codebooks={codebooks}, units={units}: expected 1 or more of each")
    if len(vectors) < units:
        raise UserError(f"units={units}, but there are only {len(vectors):,} vectors to fit them to; lower it")
    if not vectors.isfinite().all():
        raise UserError("some vectors are not finite, and have no clusters; lcm verify finds them")
    faiss.omp_set_num_threads(torch.get_num_threads())  # it has a pool of its own, of all processors
    rests, found, whole = vectors.float().clone(), [], variance(vectors)
    for k in range(codebooks):
        found.append(clusters(rests, units, seed + k))
        last = quantizer_of(found[-1:])
        for part in torch.split(rests, ROWS):
            part -= last(part)
        if tell:
            tell(f"codebook {k + 1} of {codebooks}: {_share(rests, whole):.2%} of the variance left")
    return quantizer_of(found)


def clusters(vectors: Float32[Tensor, "n D"], units: int, seed: int) -> Float32[Tensor, "V D"]:
    """The centres of so many clusters."""
    directions = principal_directions(vectors)
    rotated, centres = torch.empty_like(vectors), None
    for part, turned in zip(torch.split(vectors, ROWS), torch.split(rotated, ROWS), strict=True):
        torch.mm(part, directions, out=turned)
    for width in widths(vectors.shape[1]):
        means = faiss.Kmeans(
            width,
            units,
            niter=ITERATIONS,
            seed=seed,
            min_points_per_centroid=1,
            init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        )
        start = None if centres is None else torch.nn.functional.pad(centres, (0, width - centres.shape[1])).numpy()
        means.train(rotated[:, :width].contiguous().numpy(), init_centroids=start)
        centres = torch.from_numpy(means.centroids)
    assert centres is not None
    return centres @ directions.T


def principal_directions(vectors: Float32[Tensor, "n D"]) -> Float32[Tensor, "D D"]:
    """Columns of an orthogonal matrix, that of the largest variance first."""
    middle = vectors.mean(0, dtype=torch.float64)
    scatter = torch.zeros(len(middle), len(middle), dtype=torch.float64)
    for part in torch.split(vectors, ROWS):
        centred = part.double() - middle
        scatter += centred.T @ centred
    return torch.linalg.eigh(scatter).eigenvectors.flip(1).float().contiguous()


def widths(dim: int) -> list[int]:
    """1, …, dim: STEPS + 1 numbers, each about as many times the one before; fewer where they would be equal."""
    return sorted({round(dim ** (i / STEPS)) for i in range(STEPS + 1)})


def quantizer_of(codebooks: list[Float32[Tensor, "V D"]]) -> ResidualQuantizer:
    quantizer = ResidualQuantizer(len(codebooks), *codebooks[0].shape)
    quantizer.set(torch.stack(codebooks))
    return quantizer


def variance(vectors: Float[Tensor, "n D"]) -> float:
    """Summed over vectors and channels."""
    middle = vectors.float().mean(0)
    return sum(float((part.float() - middle).square().sum()) for part in torch.split(vectors, ROWS))


def _share(rests: Float32[Tensor, "n D"], whole: float) -> float:
    return sum(float(part.square().sum()) for part in torch.split(rests, ROWS)) / whole if whole else 0.0
