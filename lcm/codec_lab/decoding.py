"""Measures of what decodes: text scores, vectors under noise, midpoints of two sentences, and fragility.

Fragility (paper §2.5.2) is the loss of a sentence when noise moves its vector. Here it is −1 (no noise harms the
sentence) to 0 (lost at once); the network of lcm.models predicts 1 + fragility.

Shapes.  n sentences · k neighbours · L noise levels · D concept width · E width of the public encoder
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from lcm.codec import Codec
from lcm.codec_lab.sentences import INSTALL, Sample, noise_of
from lcm.data.manifest import location_and_scale
from lcm.errors import UserError
from lcm.models import Normalizer

BANDS = (1, 3, 6, 11, 16, 21, 26, 31, 41)
"""Lower bounds of the groups by length, in words."""
TOKENIZERS = {
    **dict.fromkeys(("zho_Hans", "zho_Hant", "yue_Hant"), "zh"),
    **dict.fromkeys(("jpn_Jpan", "tha_Thai", "lao_Laoo", "khm_Khmr", "mya_Mymr", "bod_Tibt", "dzo_Tibt"), "char"),
}
"""sacrebleu's tokenizers of languages without blanks between words; all others take "13a", its default."""
LEVELS = tuple(round(0.1 * step, 1) for step in range(1, 10))
SHOWN = 0.3
"""Noise level of fragility whose decoded texts are kept as examples."""
NO_SCORES: dict[str, float | None] = {"bleu": None, "cosine": None}

Encode = Callable[[list[str]], Float[Tensor, "n E"]]
"""Unit vectors of the public encoder."""


@dataclass(frozen=True)
class Coder:
    """A codec with its beam: hypotheses of a decoding, 1 is greedy."""

    codec: Codec
    beam: int = 1

    def decode(self, vectors: Float[Tensor, "n D"], langs: Sequence[str]) -> list[str]:
        return self.codec.decode(vectors, langs, beam=self.beam)


def scores(decoded: Sequence[str], texts: Sequence[str], langs: Sequence[str]) -> dict[str, Any]:
    """Corpus BLEU ("AutoBLEU" of texts that went through a codec, paper §2.2) and chrF, 0 to 100; matches, 0 to 1.

    BLEU is sacrebleu's default, with each sentence tokenized by the rules of its language. None without sentences.
    """
    if not texts:
        return {"sentences": 0, "bleu": None, "chrf": None, "exact": None}
    bleu, chrf = _metrics().BLEU(tokenize="none", force=True), _metrics().CHRF()
    return {
        "sentences": len(texts),
        "bleu": bleu.corpus_score(_tokens(decoded, langs), [_tokens(texts, langs)]).score,
        "chrf": chrf.corpus_score(list(decoded), [list(texts)]).score,
        "exact": sum(a == b for a, b in zip(decoded, texts, strict=True)) / len(texts),
    }


def sentence_bleu(decoded: Sequence[str], texts: Sequence[str], langs: Sequence[str]) -> Float64[np.ndarray, " n"]:
    """BLEU of each sentence, 0 to 100, with n-grams up to its length: a short sentence can reach 100, too."""
    bleu = _metrics().BLEU(tokenize="none", effective_order=True, force=True)
    pairs = zip(_tokens(decoded, langs), _tokens(texts, langs), strict=True)
    return np.array([bleu.sentence_score(ours, [theirs]).score for ours, theirs in pairs], dtype=np.float64)


def by_length(texts: Sequence[str]) -> list[tuple[int, int | None, list[int]]]:
    """Partition of the texts by words: (shortest, longest, places) of each non-empty group; the last is open."""
    groups: list[list[int]] = [[] for _ in BANDS]
    for place, text in enumerate(texts):
        groups[max(0, bisect_right(BANDS, len(text.split())) - 1)].append(place)
    ends: list[int | None] = [*(start - 1 for start in BANDS[1:]), None]
    return [(start, end, places) for start, end, places in zip(BANDS, ends, groups, strict=True) if places]


def _tokens(texts: Sequence[str], langs: Sequence[str]) -> list[str]:
    return [_tokenizer(TOKENIZERS.get(lang, "13a"))(text.rstrip()) for text, lang in zip(texts, langs, strict=True)]


@cache
def _tokenizer(name: str) -> Any:
    return _metrics().BLEU(tokenize=name).tokenizer


def _metrics() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise UserError(f"the codec report needs sacrebleu, which is not here: {INSTALL}") from error
    return metrics


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
    round_trip: distance of the text's own vector from the midpoint, over that of the two; below 1, the text stands for
                the midpoint better than either of them
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
    first, second = (sample.part(side) for side in zip(*pairs, strict=True))
    middle = torch.stack([first.vectors, second.vectors]).mean(dim=0)
    texts = coder.decode(middle, first.langs)
    back = (coder.codec.encode(texts, first.langs) - middle).norm(dim=1)
    round_trips = back / (first.vectors - middle).norm(dim=1).clamp(min=1e-12)
    bleu = np.maximum(*(sentence_bleu(texts, side.texts, first.langs) for side in (first, second)))
    return [
        Midpoint(
            places=pair,
            text=text,
            is_end=text in {source[i] for source in (sample.texts, decoded) for i in pair},
            bleu=float(bleu[number]),
            invented=_invented(text, [sample.texts[i] for i in pair]),
            round_trip=float(round_trips[number]),
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


@dataclass(frozen=True)
class NoiseScores:
    """Likeness of each sentence to what it decodes to, at each level of noise.

    scores: bleu: sentence BLEU, 0 to 1. cosine: of the public encoder's vectors, if there is one
    texts:  the sentences as they decode at SHOWN
    """

    scores: dict[str, Float64[np.ndarray, "n L"]]
    texts: list[str]

    def fragility(self, score: str) -> Float64[np.ndarray, " n"]:
        """−E score of each sentence, −1 to 0."""
        return -self.scores[score].mean(axis=1)

    def part(self, at: list[int]) -> "NoiseScores":
        return NoiseScores({name: score[at] for name, score in self.scores.items()}, [self.texts[i] for i in at])

    @property
    def means(self) -> dict[str, float | None]:
        """Mean fragility, by either score."""
        return NO_SCORES | {name: float(self.fragility(name).mean()) for name in self.scores}


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
    scores: dict[str, list[Float64[np.ndarray, " n"]]] = defaultdict(list)
    shown = sample.texts
    for level in LEVELS:
        tell(f"noise level {level}")
        noise = noise_of(sample.texts, z.shape[1], seed, f"fragility {level}")
        texts = coder.decode(normalizer.inverse((1 - level) ** 0.5 * z + level**0.5 * noise), sample.langs)
        scores["bleu"].append(sentence_bleu(texts, sample.texts, sample.langs) / 100)
        if public and own is not None:
            scores["cosine"].append((public(texts) * own).sum(dim=1).double().numpy())
        if level == SHOWN:
            shown = texts
    return NoiseScores({name: np.stack(columns, axis=1) for name, columns in scores.items()}, shown)


def fragility_means(scores: NoiseScores, sample: Sample) -> dict[str, Any]:
    """Mean fragility of all sentences and of each group by length, and the mean scores of each level."""
    means = {name: (100 if name == "bleu" else 1) * score.mean(axis=0) for name, score in scores.scores.items()}
    levels = [
        {"alpha": alpha} | NO_SCORES | {name: float(mean[i]) for name, mean in means.items()}
        for i, alpha in enumerate(LEVELS)
    ]
    groups = [
        {"from": start, "to": end, "sentences": len(places), **scores.part(places).means}
        for start, end, places in by_length(sample.texts)
    ]
    return {"sentences": len(sample), **scores.means, "levels": levels, "by_length": groups}


def fragility_examples(scores: NoiseScores, sample: Sample, count: int) -> dict[str, list[dict[str, Any]]]:
    """The most and the least fragile sentences, and their texts at SHOWN."""
    fragility = scores.fragility("bleu")
    order = np.argsort(-fragility, kind="stable").tolist()
    rows = [{"text": sample.texts[i], "fragility": float(fragility[i]), "decoded": scores.texts[i]} for i in order]
    return {"most": rows[:count], "least": rows[::-1][:count]}
