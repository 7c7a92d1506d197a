"""Codecs whose scores are known beforehand, and sentences for them."""

import zlib

import torch
from fakes import FakeCodec
from torch import Tensor

from lcm.codec_lab.sentences import PublicEncoder, Sample, Sentence

TALE = "the old sea was calm and we went home before night came over quiet hills with all our sheep"
WORDS = TALE.split()


def sentences(count: int, lang: str = "eng_Latn") -> list[Sentence]:
    """Distinct, of 3 to 47 words."""
    texts = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(3 + i % 45)) + f" {i}." for i in range(count)]
    return [Sentence(text, lang, row) for row, text in enumerate(texts)]


class Perfect(FakeCodec):
    """Vectors so far from each other that no noise takes one for another."""

    def __init__(self, dim: int = 1024) -> None:
        super().__init__(dim)
        self.languages = ("eng_Latn", "fra_Latn", "zho_Hans")
        self.max_pieces = 20
        self.decoded: list[Tensor] = []
        """Vectors that it decoded, call after call."""

    def pieces(self, sentence):
        return len(sentence.split())

    def fits(self, sentence, lang="eng_Latn"):
        return self.pieces(sentence) <= self.max_pieces

    def decode(self, vectors, lang="eng_Latn", *, beam=1, progress=None):
        self.decoded.append(vectors.clone())
        return super().decode(vectors, lang)


class Constant(Perfect):
    """Says the same whatever it is given."""

    def decode(self, vectors, lang="eng_Latn", *, beam=1, progress=None):
        return ["the old sea was calm"] * len(vectors)


class BagOfWords(Perfect):
    """The sum of a random vector for each word, wherever it stands."""

    def encode(self, sentences, lang="eng_Latn", *, progress=None):
        for sentence in sentences:
            vector = torch.zeros(self.dim, dtype=torch.float64)
            for word in sentence.lower().strip(".").split():
                generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
                vector += torch.randn(self.dim, generator=generator, dtype=torch.float64)
            # Rounded, so that the order of the additions leaves no trace.
            self.known[sentence] = vector.round(decimals=3).float()
        return torch.stack([self.known[sentence] for sentence in sentences])


class Translator(Perfect):
    """Vectors that know their language, and texts in no other."""

    def encode(self, sentences, lang="eng_Latn", *, progress=None):
        return super().encode([f"{own}|{sentence}" for own, sentence in zip(lang, sentences, strict=True)])

    def decode(self, vectors, lang="eng_Latn", *, beam=1, progress=None):
        found = [text.partition("|") for text in super().decode(vectors)]
        return [text if own == wanted else "wrong language" for (own, _, text), wanted in zip(found, lang, strict=True)]


class FakePublic(PublicEncoder):
    """Directions from a codec's vectors: it agrees with that codec wholly."""

    def __init__(self, codec: FakeCodec) -> None:
        self.codec, self.dim = codec, codec.dim

    def encode(self, sentences):
        return torch.nn.functional.normalize(self.codec.encode(sentences, ["eng_Latn"] * len(sentences)), dim=1)


def sample_of(codec: FakeCodec, found: list[Sentence]) -> Sample:
    return Sample(found, codec.encode([s.text for s in found]))


def at(vectors: list[list[float]], texts: list[str] | None = None) -> Sample:
    """A sample whose vectors are given."""
    texts = texts or [f"sentence {i}" for i in range(len(vectors))]
    return Sample([Sentence(text, "eng_Latn", i) for i, text in enumerate(texts)], torch.tensor(vectors))
