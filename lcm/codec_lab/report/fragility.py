"""Fragility (paper §2.5.2): how much of a sentence is lost when noise moves its vector.

Shapes.  n sentences · L noise levels · D concept width · E width of the public encoder
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from lcm.codec_lab.report.sample import Coder, Sample, gaussian
from lcm.codec_lab.report.text_scores import by_length, sentence_bleu
from lcm.data import fit
from lcm.models import Normalizer

LEVELS = tuple(round(0.1 * step, 1) for step in range(1, 10))
SHOWN = 0.3
"""The level whose decoded texts are kept as examples."""

Encode = Callable[[list[str]], Float[Tensor, "n E"]]
"""Directions of unit length by the public encoder."""


@dataclass(frozen=True)
class Fragility:
    """bleu: of each sentence at each level, 0 to 1. cosine: of the public encoder, where there is one.

    texts: what the sentences decode to at SHOWN
    """

    bleu: Float64[np.ndarray, "n L"]
    cosine: Float64[np.ndarray, "n L"] | None
    texts: list[str]

    @property
    def by_bleu(self) -> Float64[np.ndarray, " n"]:
        """−E score: −1 for a sentence that no noise harms, 0 for one that is lost at once."""
        return -self.bleu.mean(axis=1)

    @property
    def by_cosine(self) -> Float64[np.ndarray, " n"] | None:
        return None if self.cosine is None else -self.cosine.mean(axis=1)


def fragility(
    coder: Coder,
    sample: Sample,
    fitted_on: Float[Tensor, "N D"],
    seed: int,
    public: Encode | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Fragility:
    """fragility(w) = −E_{α, ε} score(w, w_{α, ε}), with α over LEVELS and one ε ~ N(0, I) for each of them.

    w_{α, ε} = decode(denorm(√(1−α) · norm(x) + √α · ε)), with the robust normalizer fitted on `fitted_on`.
    score: sentence BLEU, and the cosine of the public encoder's vectors of w and w_{α, ε}.
    """
    normalizer = Normalizer(sample.vectors.shape[1])
    normalizer.set(*fit(fitted_on))
    z = normalizer(sample.vectors)
    own = public(sample.texts) if public else None
    bleu, cosine, shown = [], [], list(sample.texts)
    for level in LEVELS:
        tell(f"noise level {level}")
        noise = gaussian(sample.texts, z.shape[1], seed, f"fragility {level}")
        noised = normalizer.inverse((1 - level) ** 0.5 * z + level**0.5 * noise)
        texts = coder.decode(noised, sample.langs)
        bleu.append(sentence_bleu(texts, sample.texts, sample.langs) / 100)
        if public and own is not None:
            cosine.append((public(texts) * own).sum(dim=1).double().numpy())
        if level == SHOWN:
            shown = texts
    return Fragility(np.stack(bleu, axis=1), np.stack(cosine, axis=1) if cosine else None, shown)


def summary(found: Fragility, sample: Sample) -> dict[str, Any]:
    """The means over all sentences, by level and by length."""
    return {
        "sentences": len(sample),
        **_means(found, range(len(sample))),
        "levels": [
            {
                "alpha": level,
                "bleu": 100 * float(found.bleu[:, i].mean()),
                "cosine": None if found.cosine is None else float(found.cosine[:, i].mean()),
            }
            for i, level in enumerate(LEVELS)
        ],
        "by_length": [
            {"from": start, "to": end, "sentences": len(places), **_means(found, places)}
            for start, end, places in by_length(sample.texts)
        ],
    }


def examples(found: Fragility, sample: Sample, count: int) -> dict[str, list[dict[str, Any]]]:
    """The most and the least fragile, with what they decode to at SHOWN."""
    order = np.argsort(-found.by_bleu, kind="stable").tolist()
    chosen = {"most": order[:count], "least": order[::-1][:count]}
    return {
        name: [
            {"text": sample.texts[i], "fragility": float(found.by_bleu[i]), "decoded": found.texts[i]} for i in places
        ]
        for name, places in chosen.items()
    }


def _means(found: Fragility, places: Sequence[int]) -> dict[str, float | None]:
    at = list(places)
    return {
        "bleu": float(found.by_bleu[at].mean()),
        "cosine": None if found.by_cosine is None else float(found.by_cosine[at].mean()),
    }
