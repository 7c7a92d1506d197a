"""Metrics as pure functions: predicted concepts against true ones, texts against references.

Shapes.  n predictions · c candidates · s concepts of one document · D concept width
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn.functional import normalize

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
PAR_FLOOR = 0.1
"""Smallest cosine that PAR divides by; below it the ratio says more about the cosine than about the prediction."""
BLOCK = 1024
"""Predictions whose distances to all candidates are in memory at once."""


def l2(predicted: Float[Tensor, "n D"], truth: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
    """‖x̂_n − x_n‖ (paper §2.4.1); the round-trip L2 if x̂_n was decoded and encoded again first."""
    return (predicted - truth).norm(dim=-1)


def contrastive_accuracy(
    predicted: Float[Tensor, "n D"],
    candidates: Float[Tensor, "c D"],
    document: Int[Tensor, " c"],
    place: Int[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """Share of the candidates that are farther from x̂_n than x_n is, without x_n and its two neighbours (§2.4.1).

    candidates: the true concepts of the test set, document after document; x_n is the one at `place`

    A candidate equal to x_n is not farther. NaN if no candidate is left. Memory: BLOCK × c distances, never c × c × D.
    """
    everything = candidates.double()
    squared = everything.square().sum(dim=1)
    # Equal vectors may come out of a matrix product with different last digits: these are ties, not victories.
    tie = 1e-9 * squared.max().clamp(min=1e-12)
    shares = []
    for rows, own in zip(torch.split(predicted.double(), BLOCK), torch.split(place, BLOCK), strict=True):
        # ‖x̂‖² is left out: it is the same on both sides of every comparison.
        distance = squared - 2 * rows @ everything.T
        allowed = torch.ones_like(distance, dtype=torch.bool)
        for step in (-1, 0, 1):
            other = (own + step).clamp(0, len(candidates) - 1)
            same = document[other] == document[own]
            allowed[same.nonzero().squeeze(1), other[same]] = False
        farther = (distance > distance.gather(1, own[:, None]) + tie) & allowed
        shares.append(farther.sum(dim=1) / allowed.sum(dim=1))
    return torch.cat(shares).float()


def par(
    predicted: Float[Tensor, "n D"], sequence: Float[Tensor, "s D"], place: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """max_{m<n} cos(x̂_n, x_m) / max_{m<n} cos(x_n, x_m): above 1, closer to its past than the true sentence (§2.4.1).

    sequence: the true concepts of one document; x_n is the one at `place`
    NaN for n = 0, and where the denominator is below PAR_FLOOR.
    """
    past = torch.arange(len(sequence)) < place[:, None]
    directions = normalize(sequence.float(), dim=1)
    ours = (normalize(predicted.float(), dim=1) @ directions.T).masked_fill(~past, -torch.inf).amax(dim=1)
    theirs = (directions[place] @ directions.T).masked_fill(~past, -torch.inf).amax(dim=1)
    return torch.where(theirs >= PAR_FLOOR, ours / theirs, torch.nan)


def rouge(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> dict[str, Float64[np.ndarray, " n"]]:
    """ROUGE-1, -2, -L and -Lsum: the F measure of each text in [0, 1], stemmed; texts are lists of sentences.

    Tokens are runs of a–z and 0–9, so only English and languages like it can be scored. Nothing is downloaded.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [
        scorer.score(target="\n".join(reference), prediction="\n".join(prediction))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {name: np.array([score[name].fmeasure for score in scores], dtype=np.float64) for name in ROUGE}


def length_ratio(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """Words of all predictions divided by words of all references."""
    written, wanted = (sum(len(s.split()) for text in texts for s in text) for texts in (predictions, references))
    return written / wanted if wanted else float("nan")


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% bootstrap interval; all NaN if there was nothing to average."""

    value: float
    low: float
    high: float


def bootstrap(
    totals: Float64[np.ndarray, " n"], counts: Float64[np.ndarray, " n"], samples: int = 1000, seed: int = 0
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
