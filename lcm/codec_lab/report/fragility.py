"""Fragility (paper §2.5.2): the loss of a sentence when noise moves its vector.

Here it is −1 (no noise harms the sentence) to 0 (lost at once); the network of lcm.models predicts 1 + fragility.

Shapes.  n sentences · L noise levels · D concept width · E width of the public encoder
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from lcm.codec_lab.report.sample import Coder, Sample, noise_of
from lcm.codec_lab.report.text_scores import by_length, sentence_bleu
from lcm.data.manifest import location_and_scale
from lcm.models import Normalizer

LEVELS = tuple(round(0.1 * step, 1) for step in range(1, 10))
SHOWN = 0.3
"""Noise level whose decoded texts are kept as examples."""

Encode = Callable[[list[str]], Float[Tensor, "n E"]]
"""Unit vectors of the public encoder."""


@dataclass(frozen=True)
class NoiseScores:
    """Likeness of each sentence to what it decodes to, at each level of noise.

    bleu:   sentence BLEU, 0 to 1
    cosine: of the public encoder's vectors, if there is one
    texts:  the sentences as they decode at SHOWN
    """

    bleu: Float64[np.ndarray, "n L"]
    cosine: Float64[np.ndarray, "n L"] | None
    texts: list[str]

    @property
    def by_bleu(self) -> Float64[np.ndarray, " n"]:
        """Fragility of each sentence, −1 to 0: −E score, with BLEU as the score."""
        return -self.bleu.mean(axis=1)

    @property
    def by_cosine(self) -> Float64[np.ndarray, " n"] | None:
        return None if self.cosine is None else -self.cosine.mean(axis=1)

    def part(self, places: Sequence[int]) -> "NoiseScores":
        at = list(places)
        cosine = None if self.cosine is None else self.cosine[at]
        return NoiseScores(self.bleu[at], cosine, [self.texts[i] for i in at])

    @property
    def means(self) -> dict[str, float | None]:
        """Mean fragility, by either score."""
        cosine = None if self.by_cosine is None else float(self.by_cosine.mean())
        return {"bleu": float(self.by_bleu.mean()), "cosine": cosine}


def noise_scores(
    coder: Coder,
    sample: Sample,
    fitted_on: Float[Tensor, "N D"],
    seed: int,
    public: Encode | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> NoiseScores:
    """Scores for fragility(w) = −E_{α, ε} score(w, w_{α, ε}), with α over LEVELS and one ε ~ N(0, I) for each of them.

    w_{α, ε} = decode(denorm(√(1−α) · norm(x) + √α · ε)), with the robust normalizer fitted on `fitted_on`.
    score: sentence BLEU, and the cosine of the public encoder's vectors of w and w_{α, ε}.
    """
    normalizer = Normalizer(sample.vectors.shape[1])
    normalizer.set(*location_and_scale(fitted_on))
    z = normalizer(sample.vectors)
    own = public(sample.texts) if public else None
    bleu, cosine, shown = [], [], list(sample.texts)
    for level in LEVELS:
        tell(f"noise level {level}")
        noise = noise_of(sample.texts, z.shape[1], seed, f"fragility {level}")
        noised = normalizer.inverse((1 - level) ** 0.5 * z + level**0.5 * noise)
        texts = coder.decode(noised, sample.langs)
        bleu.append(sentence_bleu(texts, sample.texts, sample.langs) / 100)
        if public and own is not None:
            cosine.append((public(texts) * own).sum(dim=1).double().numpy())
        if level == SHOWN:
            shown = texts
    return NoiseScores(np.stack(bleu, axis=1), np.stack(cosine, axis=1) if cosine else None, shown)


def fragility_means(scores: NoiseScores, sample: Sample) -> dict[str, Any]:
    """Mean fragility of all sentences and of each group by length, and the mean scores of each level."""
    cosine = None if scores.cosine is None else scores.cosine.mean(axis=0)
    levels = [
        {"alpha": level, "bleu": 100 * float(bleu), "cosine": None if cosine is None else float(cosine[i])}
        for i, (level, bleu) in enumerate(zip(LEVELS, scores.bleu.mean(axis=0), strict=True))
    ]
    groups = [
        {"from": start, "to": end, "sentences": len(places), **scores.part(places).means}
        for start, end, places in by_length(sample.texts)
    ]
    return {"sentences": len(sample), **scores.means, "levels": levels, "by_length": groups}


def fragility_examples(scores: NoiseScores, sample: Sample, count: int) -> dict[str, list[dict[str, Any]]]:
    """The most and the least fragile sentences, and their texts at SHOWN."""
    order = np.argsort(-scores.by_bleu, kind="stable").tolist()
    rows = [{"text": sample.texts[i], "fragility": float(scores.by_bleu[i]), "decoded": scores.texts[i]} for i in order]
    return {"most": rows[:count], "least": rows[::-1][:count]}
