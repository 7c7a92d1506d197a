"""The public encoder's vectors of the training sentences: computed once, kept in the run's folder as float16.

Shapes.  n sentences · E width of the public encoder
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcm.codec_lab.similarity import load_public_encoder
from lcm.codec_lab.training.settings import CodecTraining
from lcm.files import atomic
from lcm.training.loggers import say

CHUNK = 2048
"""Sentences between two lines of progress."""


@dataclass(frozen=True)
class Teacher:
    """Vectors of some training sentences. row_of: for each training sentence its row, or -1."""

    vectors: Float[Tensor, "n E"]
    row_of: Int[Tensor, " sentences"]

    def rows(self, sentences: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        return self.row_of[sentences.cpu()]


def make_teacher(texts: Sequence[str], settings: CodecTraining, folder: Path | None) -> Teacher:
    """A teacher of `terms.similarity_sentences` of the texts, drawn at random (0: of all).

    folder: keeps the vectors for the next run with the same sentences; None keeps nothing.
    """
    most, name = settings.terms.similarity_sentences, settings.terms.similarity_folder
    chosen = list(range(len(texts)))
    if 0 < most < len(texts):
        chosen = sorted(random.Random(settings.run.seed).sample(chosen, most))
    row_of = torch.full((len(texts),), -1)
    row_of[chosen] = torch.arange(len(chosen))
    sentences = [texts[i] for i in chosen]
    digest = hashlib.sha256(json.dumps([name, sentences]).encode()).hexdigest()[:16]
    path = folder / f"teacher-{digest}.npy" if folder else None
    if path and path.is_file():
        return Teacher(torch.from_numpy(np.load(path)), row_of)
    encoder, parts = load_public_encoder(name), []
    for start in range(0, len(sentences), CHUNK):
        parts.append(encoder.encode(sentences[start : start + CHUNK]).half())
        say(f"public encoder: {min(start + CHUNK, len(sentences)):,} of {len(sentences):,} sentences")
    vectors = torch.cat(parts)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            np.save(file, vectors.numpy())
    return Teacher(vectors, row_of)
