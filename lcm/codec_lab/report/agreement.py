"""Agreement with a public encoder on which sentences are alike: rank correlation of the two encoders' cosines.

Shapes.  n sentences · p pairs · D concept width · E width of the public encoder
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor
from torch.nn.functional import normalize

from lcm.codec_lab.report.sample import Sample
from lcm.codec_lab.similarity import centred
from lcm.evaluation import Interval

PARTNERS = 10
"""Random pairs that each sentence begins."""


def agreement(
    sample: Sample, public: Float[Tensor, "n E"], neighbours: Int[Tensor, "n k"], samples: int, seed: int
) -> dict[str, Any]:
    """Spearman's correlation over random pairs, and over pairs of nearest neighbours in the codec's space.

    raw:     the codec's plain cosine
    centred: the cosine seen from the mean of the sentences
    """
    kinds = {"random": random_pairs(sample)}
    if neighbours.shape[1]:
        own = torch.arange(len(sample))
        pairs = torch.stack([own, neighbours[:, 0]], dim=1).sort(dim=1).values
        kinds["neighbours"] = torch.unique(pairs, dim=0)
    spaces = {"raw": normalize(sample.vectors, dim=1), "centred": centred(sample.vectors)}
    return {
        kind: {"pairs": len(pairs)}
        | {
            name: asdict(correlation(cosines(space, pairs), cosines(public, pairs), pairs, samples, seed))
            for name, space in spaces.items()
        }
        for kind, pairs in kinds.items()
    }


def random_pairs(sample: Sample) -> Int[Tensor, "p 2"]:
    """Each sentence with the next ones of the sample, whose order is random. Equal texts are no pair."""
    n, texts = len(sample), sample.texts
    steps = range(1, min(PARTNERS, (n - 1) // 2) + 1)
    pairs = [(i, (i + step) % n) for step in steps for i in range(n) if texts[i] != texts[(i + step) % n]]
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)


def cosines(directions: Float[Tensor, "n W"], pairs: Int[Tensor, "p 2"]) -> Float64[np.ndarray, " p"]:
    return (directions[pairs[:, 0]].double() * directions[pairs[:, 1]].double()).sum(dim=1).numpy()


def correlation(
    a: Float64[np.ndarray, " p"], b: Float64[np.ndarray, " p"], pairs: Int[Tensor, "p 2"], samples: int, seed: int
) -> Interval:
    """Spearman's correlation and its 95% bootstrap interval over *sentences*. NaN for fewer than three pairs.

    Pairs that share a sentence are not independent. A sentence that is drawn w times brings each of its pairs w times:
    a pair counts as the product of its two (Owen 2007, "The pigeonhole bootstrap": never too narrow, too wide by up to
    √3 where hardly any pairs share a sentence).
    """
    if len(a) < 3:
        return Interval(float("nan"), float("nan"), float("nan"))
    first, second = pairs.numpy().T
    size = int(pairs.max()) + 1
    present = np.unique(pairs.numpy())
    ranks = dense_ranks(a), dense_ranks(b)
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(samples):
        times = np.bincount(random.choice(present, len(present)), minlength=size)
        drawn.append(spearman(*ranks, (times[first] * times[second]).astype(np.float64)))
    low, high = np.nanquantile(drawn, (0.025, 0.975)) if drawn and not np.isnan(drawn).all() else (np.nan, np.nan)
    return Interval(spearman(*ranks, np.ones(len(a))), float(low), float(high))


def dense_ranks(values: Float64[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
    """Ranks from 0 without gaps; equal values share one."""
    return np.unique(values, return_inverse=True)[1]


def spearman(a: Int64[np.ndarray, " p"], b: Int64[np.ndarray, " p"], weights: Float64[np.ndarray, " p"]) -> float:
    """Spearman's correlation of dense ranks that occur `weights` times; equal ones share the middle rank.

    NaN where either side is constant.
    """
    total = weights.sum()
    ranks = []
    for group in (a, b):
        mass = np.bincount(group, weights=weights)
        middle = (np.cumsum(mass) - mass / 2)[group]
        ranks.append(middle - (weights @ middle) / total if total else middle)
    x, y = ranks
    spread = np.sqrt((weights @ x**2) * (weights @ y**2))
    return float((weights @ (x * y)) / spread) if spread > 0 else float("nan")
