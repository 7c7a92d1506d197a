"""Means with their bootstrap intervals.

Shapes.  u units of a bootstrap: texts, or documents with all their sentences · n texts
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% bootstrap interval; all NaN if there was nothing to average."""

    value: float
    low: float
    high: float


def bootstrap(
    totals: Float64[np.ndarray, " u"], counts: Float64[np.ndarray, " u"], samples: int = 1000, seed: int = 0
) -> Interval:
    """Σ totals / Σ counts, with its 2.5% and 97.5% quantiles over resampled units.

    A unit is a text, or a document with the sum of its sentences' scores and their number: the sentences of a document
    are not independent, so they are resampled together.
    """
    totals, counts = totals[counts > 0], counts[counts > 0]
    if not len(totals):
        return Interval(float("nan"), float("nan"), float("nan"))
    random = np.random.default_rng(seed)
    step = max(1, 4_000_000 // len(totals))
    means = []
    for start in range(0, samples, step):
        drawn = random.integers(len(totals), size=(min(step, samples - start), len(totals)))
        means.append(totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return Interval(float(totals.sum() / counts.sum()), float(low), float(high))


@dataclass(frozen=True)
class Paired:
    """The means of two systems, the 95% interval of b − a, and its two-sided p-value."""

    a: float
    b: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    totals_a: Float64[np.ndarray, " u"],
    counts_a: Float64[np.ndarray, " u"],
    totals_b: Float64[np.ndarray, " u"],
    counts_b: Float64[np.ndarray, " u"],
    samples: int = 10_000,
    seed: int = 0,
) -> Paired:
    """Resample units, with the numbers of both systems of a unit together (Koehn 2004).

    p is twice the share of samples whose difference has the other sign, or is 0; with (k + 1) / (samples + 1) for k of
    them, so that it is never 0.
    """
    random = np.random.default_rng(seed)
    step = max(1, 4_000_000 // len(totals_a))
    found = []
    for start in range(0, samples, step):
        drawn = random.integers(len(totals_a), size=(min(step, samples - start), len(totals_a)))
        mean_a = totals_a[drawn].sum(axis=1) / counts_a[drawn].sum(axis=1)
        found.append(totals_b[drawn].sum(axis=1) / counts_b[drawn].sum(axis=1) - mean_a)
    differences = np.concatenate(found)
    low, high = np.quantile(differences, (0.025, 0.975))
    sides = [int((differences <= 0).sum()), int((differences >= 0).sum())]
    p = min(1.0, 2 * (min(sides) + 1) / (samples + 1))
    return Paired(
        float(totals_a.sum() / counts_a.sum()), float(totals_b.sum() / counts_b.sum()), float(low), float(high), p
    )


def mean_of_texts(values: Float64[np.ndarray, " n"], samples: int = 1000, seed: int = 0) -> Interval:
    """The mean of one score of n texts, with its interval. A text that is not scored, NaN, is in no mean."""
    return bootstrap(np.nan_to_num(values), (~np.isnan(values)).astype(np.float64), samples, seed)
