"""The sentences that are judged, in an order of their own, and the ways through the codec and back.

Shapes.  n sentences · D concept width
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from lcm.codec import Codec
from lcm.codec_lab.report.reading import Sentence


@dataclass(frozen=True)
class Sample:
    """Sentences and their vectors, in the order of `drawn`."""

    sentences: Sequence[Sentence]
    vectors: Float[Tensor, "n D"]

    @cached_property
    def texts(self) -> list[str]:
        return [sentence.text for sentence in self.sentences]

    @cached_property
    def langs(self) -> list[str]:
        return [sentence.lang for sentence in self.sentences]

    def part(self, places: Sequence[int]) -> "Sample":
        return Sample([self.sentences[i] for i in places], self.vectors[list(places)])

    def __len__(self) -> int:
        return len(self.sentences)


def drawn(sentences: Sequence[Sentence], limit: int, seed: int) -> list[Sentence]:
    """At most `limit` of them, in an order that depends on the seed and on each sentence alone.

    So no result depends on the order of the input, neighbours in this order are a random pair, and its beginning is a
    random sample.
    """
    return sorted(sentences, key=lambda s: (_number(seed, "order", s.text), s.lang, s.row))[:limit]


def gaussian(texts: Sequence[str], dim: int, seed: int, purpose: str) -> Float[Tensor, "n D"]:
    """N(0, I) for each sentence, a function of seed, purpose and sentence: nothing depends on who stands beside it."""
    noise = torch.empty(len(texts), dim)
    for row, text in zip(noise, texts, strict=True):
        row.normal_(generator=torch.Generator().manual_seed(_number(seed, purpose, text)))
    return noise


def _number(seed: int, purpose: str, text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}|{purpose}|{text}".encode("utf-8", "surrogatepass")).digest()[:7])


@dataclass(frozen=True)
class Coder:
    """A codec whose sentences have a language each. beam: hypotheses of a decoding, 1 is greedy."""

    codec: Codec
    beam: int = 1

    def encode(self, texts: Sequence[str], langs: Sequence[str]) -> Float[Tensor, "n D"]:
        vectors = torch.empty(len(texts), self.codec.dim)
        for lang, places in by_language(langs).items():
            vectors[places] = self.codec.encode([texts[i] for i in places], lang=lang)
        return vectors

    def decode(self, vectors: Float[Tensor, "n D"], langs: Sequence[str]) -> list[str]:
        texts = [""] * len(vectors)
        for lang, places in by_language(langs).items():
            for place, text in zip(places, self.codec.decode(vectors[places], lang=lang, beam=self.beam), strict=True):
                texts[place] = text
        return texts


def by_language(langs: Sequence[str]) -> dict[str, list[int]]:
    """The places of each language, languages in alphabetical order."""
    places: dict[str, list[int]] = {lang: [] for lang in sorted(set(langs))}
    for place, lang in enumerate(langs):
        places[lang].append(place)
    return places
