"""Decoding of vectors that no sentence has: with noise, and halfway between two sentences.

Shapes.  n sentences · k neighbours · D concept width
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lcm.codec_lab.report.sample import Coder, Sample, noise_of
from lcm.codec_lab.report.text_scores import sentence_bleu


def under_noise(coder: Coder, sample: Sample, multiple: float, seed: int) -> list[str]:
    """Decode x + multiple · σ ⊙ ε, with σ each channel's standard deviation and ε ~ N(0, I).

    ε does not depend on the multiple, so levels of noise differ in their size alone.
    """
    spread = sample.vectors.std(dim=0, correction=1 if len(sample) > 1 else 0)
    noise = noise_of(sample.texts, sample.vectors.shape[1], seed, "noise")
    return coder.decode(sample.vectors + multiple * spread * noise, sample.langs)


@dataclass(frozen=True)
class Midpoint:
    """The vector halfway between a sentence and its nearest neighbour.

    places:     of the two in the sample
    text:       the decoded midpoint
    is_end:     the text is one of the two, as it was or as it is decoded
    bleu:       sentence BLEU against the nearer of the two, 0 to 100
    invented:   share of the text's words that neither of the two has
    round_trip: distance of the text's own vector from the midpoint, over the distance of the two from it; below 1, the
                text stands for the midpoint better than either of the two does
    """

    places: tuple[int, int]
    text: str
    is_end: bool
    bleu: float
    invented: float
    round_trip: float


def halfway(coder: Coder, sample: Sample, decoded: Sequence[str], neighbours: Int[Tensor, "n k"]) -> list[Midpoint]:
    """A midpoint for each sentence and its nearest neighbour, mutual pairs once; in the first one's language.

    decoded: the sentences, decoded from their own vectors
    """
    if not neighbours.shape[1]:
        return []
    pairs = list(dict.fromkeys((min(i, j), max(i, j)) for i, j in enumerate(neighbours[:, 0].tolist())))
    langs = [sample.langs[i] for i, _ in pairs]
    ends = torch.stack([sample.vectors[[pair[side] for pair in pairs]] for side in (0, 1)])
    middle = ends.mean(dim=0)
    texts = coder.decode(middle, langs)
    back = (coder.encode(texts, langs) - middle).norm(dim=1) / (ends[0] - middle).norm(dim=1).clamp(min=1e-12)
    bleu = [sentence_bleu(texts, [sample.texts[pair[side]] for pair in pairs], langs) for side in (0, 1)]
    return [
        Midpoint(
            places=pair,
            text=text,
            is_end=text in {source[i] for source in (sample.texts, decoded) for i in pair},
            bleu=max(float(bleu[0][number]), float(bleu[1][number])),
            invented=_invented(text, [sample.texts[i] for i in pair]),
            round_trip=float(back[number]),
        )
        for number, (pair, text) in enumerate(zip(pairs, texts, strict=True))
    ]


def _invented(text: str, ends: Sequence[str]) -> float:
    known = {word.casefold() for end in ends for word in end.split()}
    said = text.split()
    return sum(word.casefold() not in known for word in said) / len(said) if said else 0.0


def midpoint_means(points: Sequence[Midpoint]) -> dict[str, Any]:
    """Means over the midpoints; None where there are none. closer_than_ends: the share of round trips below 1."""
    n = len(points)
    columns = {name: [getattr(p, name) for p in points] for name in ("is_end", "bleu", "invented", "round_trip")}
    columns["closer_than_ends"] = [p.round_trip < 1 for p in points]
    return {"midpoints": n} | {name: sum(column) / n if n else None for name, column in columns.items()}


def midpoint_examples(points: Sequence[Midpoint], texts: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "ends": [texts[i] for i in point.places],
            "midpoint": point.text,
            "is_end": point.is_end,
            "round_trip": point.round_trip,
        }
        for point in points
    ]
