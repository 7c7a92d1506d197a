"""A codec's space: its spread, nearest neighbours, agreement with a public encoder, attribute binding, end of text.

Attribute binding: does a codec tell "the black cat and the white dog" from "the white cat and the black dog"?

Shapes.  n sentences · p pairs · k neighbours · W width of the vectors · D concept width · E width of the public encoder
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from lcm.codec import Codec
from lcm.codec.text import END_OF_TEXT
from lcm.codec_lab.decoding import Coder, Encode
from lcm.codec_lab.sentences import Sample
from lcm.scores import Interval

ENGLISH = "eng_Latn"
QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
END_QUANTILES = (0.01, 0.5, 0.9, 0.99, 0.999, 1.0)
NEAR_MISSES = (
    "End of text?", "End of text", "end of text.", "End of test.", "End of the text.", "End of file.",
    "The end of the text.", "End of chapter.", "The end.",
)  # fmt: skip
"""English sentences that are easily mistaken for the end of a text."""
ATTRIBUTES = (
    ("black", "white"), ("big", "small"), ("old", "young"), ("red", "green"),
    ("rich", "poor"), ("tall", "short"), ("happy", "sad"), ("cold", "warm"),
)  # fmt: skip
THINGS = (("cat", "dog"), ("man", "woman"), ("house", "garden"), ("king", "queen"), ("river", "mountain"))
FRAMES = (
    "The {} {} and the {} {} were there.",
    "We saw the {} {} and the {} {}.",
    "The {} {} was beside the {} {}.",
    "There is a {} {} and a {} {}.",
)
BLOCK = 2048
"""Sentences whose cosines to all others are in memory at once."""
PARTNERS = 10
"""Random pairs that each sentence begins."""


def centred(vectors: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
    """Directions seen from the mean of the vectors: a component that all of them share says nothing."""
    return normalize(vectors.float() - vectors.float().mean(dim=0), dim=1)


def similarities(vectors: Float[Tensor, "n D"]) -> Float[Tensor, "n n"]:
    """Centred cosines of all pairs."""
    directions = centred(vectors)
    return directions @ directions.T


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
    present = np.unique(pairs.numpy())
    ranks, random, drawn = (dense_ranks(a), dense_ranks(b)), np.random.default_rng(seed), []
    for _ in range(samples):
        times = np.bincount(random.choice(present, len(present)), minlength=present[-1] + 1)
        drawn.append(spearman(*ranks, (times[first] * times[second]).astype(np.float64)))
    low, high = (np.nan, np.nan) if np.isnan(drawn).all() else np.nanquantile(drawn, (0.025, 0.975))
    return Interval(spearman(*ranks, np.ones(len(a))), float(low), float(high))


def dense_ranks(values: Float64[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
    """Ranks from 0 without gaps; equal values share one."""
    return np.unique(values, return_inverse=True)[1]


def spearman(a: Int64[np.ndarray, " p"], b: Int64[np.ndarray, " p"], weights: Float64[np.ndarray, " p"]) -> float:
    """Spearman's correlation of weighted dense ranks; equal ones share the middle rank. NaN if a side is constant."""
    total = weights.sum()
    ranks = []
    for group in (a, b):
        mass = np.bincount(group, weights=weights)
        middle = (np.cumsum(mass) - mass / 2)[group]
        ranks.append(middle - (weights @ middle) / total if total else middle)
    x, y = ranks
    spread = np.sqrt((weights @ x**2) * (weights @ y**2))
    return float((weights @ (x * y)) / spread) if spread > 0 else float("nan")


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
    """Directions in use, 1 (a line) to D: (Σλ)² / Σλ² of the covariance's eigenvalues; None where nothing varies."""
    x = vectors.double()
    x = x - x.mean(dim=0)
    covariance = x.T @ x
    total, squares = covariance.trace().item(), covariance.square().sum().item()
    return total**2 / squares if squares else None


def nearest(sample: Sample, k: int) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Each sentence's k nearest by the centred cosine, without equal texts; their cosines. Fewer for fewer texts."""
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


def agreement(
    sample: Sample, public: Float[Tensor, "n E"], neighbours: Int[Tensor, "n k"], samples: int, seed: int
) -> dict[str, Any]:
    """Spearman's correlation over random pairs, and over pairs of nearest neighbours in the codec's space.

    raw:     the codec's plain cosine
    centred: the cosine seen from the mean of the sentences
    """
    kinds = {"random": random_pairs(sample)}
    if neighbours.shape[1]:
        pairs = torch.stack([torch.arange(len(sample)), neighbours[:, 0]], dim=1).sort(dim=1).values
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


@dataclass(frozen=True)
class Case:
    """A sentence, with its attributes exchanged, and with two other attributes in their places.

    bound, swapped: the (attribute, thing) pairs of the original and of the swap
    """

    original: str
    swap: str
    unrelated: str
    bound: tuple[str, str]
    swapped: tuple[str, str]


def cases() -> list[Case]:
    """The 40 cases: every pair of attributes with every pair of things, the frames in turn."""
    made = []
    for number, ((a, b), (x, y)) in enumerate(product(ATTRIBUTES, THINGS)):
        c, d = ATTRIBUTES[(number // len(THINGS) + 1) % len(ATTRIBUTES)]
        original, swap, unrelated = (
            FRAMES[number % len(FRAMES)].format(one, x, other, y) for one, other in ((a, b), (b, a), (c, d))
        )
        made.append(Case(original, swap, unrelated, (f"{a} {x}", f"{b} {y}"), (f"{b} {x}", f"{a} {y}")))
    return made


def binding_scores(coder: Coder, mean: Float[Tensor, " D"], public: Encode | None) -> dict[str, Any] | None:
    """Cosines of the original to its swap and to the unrelated change, and outcomes of decoding the swap.

    mean: of the sentences, for the centred cosines
    A bag of words maps the swap to the original's vector (cosine 1), so it cannot decode both. The cases are English:
    None for a codec without it.
    """
    if ENGLISH not in coder.codec.languages:
        return None
    made = cases()
    texts = [text for case in made for text in (case.original, case.swap, case.unrelated)]
    vectors = coder.codec.encode(texts, [ENGLISH] * len(texts))
    decoded = coder.decode(vectors[1::3], [ENGLISH] * len(made))
    outcomes = [_outcome(text, case) for text, case in zip(decoded, made, strict=True)]
    kinds = {"raw": vectors, "centred": vectors - mean} | ({"public": public(texts)} if public else {})
    return {
        "cases": len(made),
        "cosines": {name: _cosines_to_original(kind) for name, kind in kinds.items()},
        "decoded": {name: outcomes.count(name) / len(made) for name in ("right", "confused", "other")},
        "examples": [
            {"original": case.original, "swap": case.swap, "decoded": text, "outcome": outcome}
            for case, text, outcome in zip(made, decoded, outcomes, strict=True)
        ],
    }


def _cosines_to_original(vectors: Float[Tensor, "n W"]) -> dict[str, float]:
    """Means over the cases. Every three consecutive rows are the sentences of one case."""
    swap, unrelated = (cosine_similarity(vectors[0::3], vectors[start::3], dim=1) for start in (1, 2))
    return {
        "swap": swap.mean().item(),
        "unrelated": unrelated.mean().item(),
        "swap_farther": torch.mean((swap < unrelated).float()).item(),
    }


def _outcome(text: str, case: Case) -> str:
    """right: a decoded swap binds as the swap. confused: as the original. other: as neither."""
    words = " ".join(re.findall(r"\w+", text.lower()))
    for outcome, pairs in (("right", case.swapped), ("confused", case.bound)):
        if all(f" {pair} " in f" {words} " for pair in pairs):
            return outcome
    return "other"


def end_of_text(codec: Codec, sample: Sample) -> dict[str, Any]:
    """Cosines of "End of text." to all other sentences, and the stop threshold that they suggest.

    It is halfway between 1 and the highest cosine of any sentence or near miss, rounded down to two digits. Near misses
    are English; for a codec without English there are none, and the most frequent language counts.
    """
    english = ENGLISH in codec.languages
    misses = NEAR_MISSES if english else ()
    lang = ENGLISH if english else max(sorted(set(sample.langs)), key=sample.langs.count)
    directions = normalize(codec.encode([END_OF_TEXT, *misses], [lang] * (1 + len(misses))), dim=1)
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
