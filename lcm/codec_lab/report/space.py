"""A codec's space: norms and spread, nearest neighbours, and the place of "End of text." in it.

Shapes.  n sentences · k neighbours · D concept width
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from lcm.codec.text import END_OF_TEXT
from lcm.codec_lab.report.sample import Coder, Sample
from lcm.codec_lab.similarity import centred

QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
END_QUANTILES = (0.01, 0.5, 0.9, 0.99, 0.999, 1.0)
NEAR_MISSES = (
    "End of text?", "End of text", "end of text.", "End of test.", "End of the text.", "End of file.",
    "The end of the text.", "End of chapter.", "The end.",
)  # fmt: skip
"""English sentences that are easily mistaken for the end of a text."""
BLOCK = 2048
"""Sentences whose cosines to all others are in memory at once."""


def statistics(vectors: Float[Tensor, "n D"]) -> dict[str, Any]:
    """Norms, standard deviations of the channels, and the number of directions in use.

    mean_cosine: of all pairs: 0 where the vectors surround the origin, near 1 where they lie in a narrow cone
    """
    x = vectors.double()
    n = len(x)
    spread = x.std(dim=0, correction=1 if n > 1 else 0)
    mean_direction = normalize(x, dim=1).mean(dim=0)
    return {
        "norm": _quantiles(x.norm(dim=1), QUANTILES),
        "channel_std": _quantiles(spread, QUANTILES),
        "participation_ratio": participation_ratio(vectors),
        "mean_cosine": (n * mean_direction.square().sum().item() - 1) / (n - 1) if n > 1 else None,
        "norm_of_mean": x.mean(dim=0).norm().item(),
    }


def participation_ratio(vectors: Float[Tensor, "n D"]) -> float | None:
    """Directions that the vectors use: (Σλ)² / Σλ² of their covariance's eigenvalues; None where nothing varies.

    D where all directions vary alike, 1 for a line.
    """
    x = vectors.double()
    x = x - x.mean(dim=0)
    covariance = x.T @ x
    total, squares = covariance.trace().item(), covariance.square().sum().item()
    return total**2 / squares if squares else None


def nearest(sample: Sample, k: int) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """The k nearest sentences of each by the centred cosine, without equal texts; and their cosines.

    Fewer than k columns where there are fewer texts.
    """
    directions = centred(sample.vectors)
    numbers = {text: number for number, text in enumerate(dict.fromkeys(sample.texts))}
    kind = torch.tensor([numbers[text] for text in sample.texts], dtype=torch.long)
    k = min(k, len(numbers) - 1)
    places, cosines = [], []
    for start in range(0, len(sample), BLOCK):
        cosine = directions[start : start + BLOCK] @ directions.T
        cosine[kind[start : start + BLOCK, None] == kind] = -torch.inf
        best, place = cosine.topk(k, dim=1)
        places.append(place)
        cosines.append(best)
    return torch.cat(places), torch.cat(cosines).clamp(-1, 1)


def end_of_text(coder: Coder, sample: Sample) -> dict[str, Any]:
    """Cosines of "End of text." to all other sentences, and the stop threshold that they suggest.

    It is halfway between 1 and the highest cosine of any sentence or near miss, rounded down to two digits. Near misses
    are English; for a codec without English there are none, and the most frequent language counts.
    """
    english = "eng_Latn" in coder.codec.languages
    lang = "eng_Latn" if english else max(sorted(set(sample.langs)), key=sample.langs.count)
    misses = NEAR_MISSES if english else ()
    directions = normalize(coder.encode([END_OF_TEXT, *misses], [lang] * (1 + len(misses))), dim=1)
    others = sample.part([i for i, text in enumerate(sample.texts) if text != END_OF_TEXT])
    cosines = (normalize(others.vectors, dim=1) @ directions[0]).clamp(-1, 1)
    near = {text: float(row @ directions[0]) for text, row in zip(misses, directions[1:], strict=True)}
    highest = max([*near.values(), float(cosines.max()) if len(cosines) else -1.0])
    return {
        "sentences": len(others),
        "cosine_quantiles": _quantiles(cosines.double(), END_QUANTILES),
        "nearest": others.texts[int(cosines.argmax())] if len(cosines) else None,
        "near_misses": near,
        "suggested_threshold": max(0.0, math.floor(50 * (1 + highest) + 1e-4) / 100),
    }


def _quantiles(values: Float[Tensor, " n"], at: Sequence[float]) -> dict[str, float]:
    """Quantile → value, by linear interpolation, with JSON keys; empty where there are no values."""
    if not len(values):
        return {}
    found = torch.quantile(values, torch.tensor(at, dtype=values.dtype))
    return {f"{q:g}": value for q, value in zip(at, found.tolist(), strict=True)}
