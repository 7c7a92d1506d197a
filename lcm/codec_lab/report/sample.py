"""The sentences that are judged, in an order of their own, with their vectors; and the codec that judges them.

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
class Coder:
    """A codec with its beam: hypotheses of a decoding, 1 is greedy."""

    codec: Codec
    beam: int = 1

    def encode(self, texts: Sequence[str], langs: Sequence[str]) -> Float[Tensor, "n D"]:
        return self.codec.encode(texts, langs)

    def decode(self, vectors: Float[Tensor, "n D"], langs: Sequence[str]) -> list[str]:
        return self.codec.decode(vectors, langs, beam=self.beam)


@dataclass(frozen=True)
class Sample:
    """Sentences and their vectors, in the order of `drawn`."""

    sentences: Sequence[Sentence]
    vectors: Float[Tensor, "n D"]

    @classmethod
    def encoded(cls, coder: Coder, sentences: Sequence[Sentence]) -> "Sample":
        return cls(sentences, coder.encode([s.text for s in sentences], [s.lang for s in sentences]))

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
    """At most `limit` sentences, in an order that depends on the seed and on each sentence alone.

    So no result depends on the order of the input, neighbours in this order are a random pair, and its beginning is a
    random sample.
    """
    return sorted(sentences, key=lambda s: (_text_seed(seed, "order", s.text), s.lang, s.row))[:limit]


def noise_of(texts: Sequence[str], dim: int, seed: int, purpose: str) -> Float[Tensor, "n D"]:
    """N(0, I) for each sentence: a function of seed, purpose and sentence, whatever the other sentences are."""
    noise = torch.empty(len(texts), dim)
    for row, text in zip(noise, texts, strict=True):
        row.normal_(generator=torch.Generator().manual_seed(_text_seed(seed, purpose, text)))
    return noise


def _text_seed(seed: int, purpose: str, text: str) -> int:
    """The 56-bit seed of everything drawn for `purpose` about a text: the same beside any other texts."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{purpose}|{text}".encode("utf-8", "surrogatepass")).digest()[:7])
