"""MAUVE (Pillutla et al. 2021): how alike are the distributions of two sets of texts, those of people and of a system?

Vectors of GPT-2 are clustered, and the divergence of the two histograms is read off a curve. The number depends on the
clusters, their seed, the number of texts and their lengths, so all of these are stated. Meant for 5,000 texts of equal
length; twenty tokens say little.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int

from lcm.scores.weights import Weights, batches, longest, padded

SCALE = 5.0
"""c of the paper: exp(−c · KL)."""
POINTS = 25
"""Mixtures on the curve."""
VARIANCE = 0.9
"""Share of the variance that the principal components keep."""
SEEDS = (25, 26, 27, 28, 29)
"""Seeds of k-means: the value is of the first, the default of mauve-text; low and high are the extremes of all."""
MOST = 256
"""Tokens of a text that are read, on both sides."""
MEANT = 5000
"""Texts that MAUVE is meant for."""


@dataclass(frozen=True)
class Mauve:
    """MAUVE with what it depends on. low, high: extremes over `SEEDS`; tokens_*: mean length as read, up to `MOST`"""

    value: float
    low: float
    high: float
    k: int
    seeds: tuple[int, ...]
    n: tuple[int, int]
    tokens_people: float
    tokens_system: float
    most_tokens: int = MOST

    @property
    def stored(self) -> dict[str, Any]:
        return asdict(self)


class Features:
    """The last hidden vector of a language model at each text's last token (default of the package: gpt2-large)."""

    def __init__(self, weights: Weights) -> None:
        self.tokenizer, self.model = weights.tokenizer(), weights.load("AutoModel")
        self.most = min(MOST, longest(self.tokenizer, self.model.config))

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> tuple[Float[np.ndarray, "n D"], float]:
        """(vectors of the texts that are not empty, their mean length in tokens)"""
        tokens = [self.tokenizer(text, max_length=self.most, truncation=True)["input_ids"] for text in texts if text]
        found: dict[int, Float[np.ndarray, " D"]] = {}
        for numbers in batches([len(t) for t in tokens]):
            ids, mask = padded([tokens[i] for i in numbers], 0)
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float().cpu()
            found |= {i: state[len(tokens[i]) - 1].numpy() for i, state in zip(numbers, states, strict=True)}
        return np.stack([found[i] for i in range(len(tokens))]), float(np.mean([len(t) for t in tokens]))


def compare(features: Features, people: Sequence[str], system: Sequence[str]) -> Mauve | None:
    """MAUVE of two sets of texts; None with fewer than two texts on a side."""
    if min(sum(map(bool, people)), sum(map(bool, system))) < 2:
        return None
    (p, tokens_people), (q, tokens_system) = features(people), features(system)
    values = [mauve(p, q, seed) for seed in SEEDS]
    n = (len(p), len(q))
    return Mauve(values[0], min(values), max(values), clusters(*n), SEEDS, n, tokens_people, tokens_system)


def clusters(p: int, q: int) -> int:
    """Number of clusters: a tenth of the texts on the smaller side, at least 2."""
    return max(2, round(min(p, q) / 10))


def mauve(p: Float[np.ndarray, "p D"], q: Float[np.ndarray, "q D"], seed: int) -> float:
    """MAUVE of two sets of vectors in [0, 1]: 1 for equal distributions."""
    k = clusters(len(p), len(q))
    labels = _clustered(np.vstack([q, p]), k, seed)
    counts = (np.bincount(part, minlength=k).astype(np.float64) for part in (labels[len(q) :], labels[: len(q)]))
    return area(*(count / count.sum() for count in counts))


def _clustered(vectors: Float[np.ndarray, "n D"], k: int, seed: int) -> Int[np.ndarray, " n"]:
    """k-means of unit vectors in their principal components, that keep `VARIANCE`."""
    import faiss

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    centered = unit - unit.mean(axis=0)
    _, spread, directions = np.linalg.svd(centered, full_matrices=False)
    share = np.cumsum(spread**2) / max(float((spread**2).sum()), 1e-30)
    reduced = np.ascontiguousarray(centered @ directions[: int(np.argmax(share >= VARIANCE)) + 1].T, dtype=np.float32)
    means = faiss.Kmeans(reduced.shape[1], k, niter=500, nredo=5, update_index=True, seed=seed + 2)
    means.cp.min_points_per_centroid = 1  # or faiss prints a warning; a tenth of the texts is fewer than it likes
    means.train(reduced)
    return means.index.search(reduced, 1)[1].reshape(-1)


def area(p: Float64[np.ndarray, " k"], q: Float64[np.ndarray, " k"]) -> float:
    """Area under the curve of (exp(−c KL(q‖r)), exp(−c KL(p‖r))) over the mixtures r = w p + (1 − w) q."""
    curve = [(0.0, 1.0)]  # where one of the divergences is infinite
    for w in np.linspace(1e-6, 1 - 1e-6, POINTS):
        r = w * p + (1 - w) * q
        curve.append((np.exp(-SCALE * _kl(q, r)), np.exp(-SCALE * _kl(p, r))))
    x, y = np.array([*curve, (1.0, 0.0)]).T
    return (_under(x, y) + _under(y, x)) / 2


def _under(x: Float64[np.ndarray, " m"], y: Float64[np.ndarray, " m"]) -> float:
    """Area under y over x, by trapezoids, of a curve that falls."""
    order = np.lexsort((-y, x))
    return float((np.diff(x[order]) * (y[order][1:] + y[order][:-1]) / 2).sum())


def _kl(p: Float64[np.ndarray, " k"], r: Float64[np.ndarray, " k"]) -> float:
    inside = p > 0
    return float((p[inside] * np.log(p[inside] / r[inside])).sum())
