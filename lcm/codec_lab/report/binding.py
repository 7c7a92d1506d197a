"""Attribute binding: does a codec tell "the black cat and the white dog" from "the white cat and the black dog"?

Shapes.  n sentences · W width of the vectors · D concept width · E width of the public encoder
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lcm.codec_lab.report.sample import Coder

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
LANG = "eng_Latn"


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
        frame = FRAMES[number % len(FRAMES)]
        made.append(
            Case(
                original=frame.format(a, x, b, y),
                swap=frame.format(b, x, a, y),
                unrelated=frame.format(c, x, d, y),
                bound=(f"{a} {x}", f"{b} {y}"),
                swapped=(f"{b} {x}", f"{a} {y}"),
            )
        )
    return made


def binding_scores(
    coder: Coder, mean: Float[Tensor, " D"], public: Callable[[list[str]], Float[Tensor, "n E"]] | None
) -> dict[str, Any]:
    """Cosines of the original to its swap and to the unrelated change, and outcomes of decoding the swap.

    mean:   of the sentences, for the centred cosines
    public: encodes with the public encoder, for comparison

    A bag of words maps the swap to the original's vector (cosine 1), so it cannot decode both.
    """
    made = cases()
    texts = [text for case in made for text in (case.original, case.swap, case.unrelated)]
    vectors = coder.encode(texts, [LANG] * len(texts))
    decoded = coder.decode(vectors[1::3], [LANG] * len(made))
    outcomes = [_outcome(text, case) for text, case in zip(decoded, made, strict=True)]
    kinds = {"raw": vectors, "centred": vectors - mean} | ({"public": public(texts)} if public else {})
    return {
        "cases": len(made),
        "cosines": {name: _cosines(kind) for name, kind in kinds.items()},
        "decoded": {name: outcomes.count(name) / len(made) for name in ("right", "confused", "other")},
        "examples": [
            {"original": case.original, "swap": case.swap, "decoded": text, "outcome": outcome}
            for case, text, outcome in zip(made, decoded, outcomes, strict=True)
        ],
    }


def _cosines(vectors: Float[Tensor, "n W"]) -> dict[str, float]:
    """Means over the cases. Every three consecutive rows are the sentences of one case."""
    original = vectors[0::3]
    swap, unrelated = (cosine_similarity(original, vectors[start::3], dim=1) for start in (1, 2))
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
