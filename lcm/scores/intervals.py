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


def mean_of_texts(values: Float64[np.ndarray, " n"], samples: int = 1000, seed: int = 0) -> Interval:
    """The mean of one score of n texts, with its interval. A text that is not scored, NaN, is in no mean."""
    return bootstrap(np.nan_to_num(values), (~np.isnan(values)).astype(np.float64), samples, seed)
