"""What the public encoder says of the training sentences: asked once, kept in the run's folder as float16.

Shapes.  n sentences · E width of the public encoder
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcm.files import atomic

CHUNK = 2048
"""Sentences between two lines of progress."""


@runtime_checkable
class SentenceEncoder(Protocol):
    """What is used of `lcm.codec_lab.similarity.PublicEncoder`."""

    def encode(self, sentences: list[str]) -> Float[Tensor, "n E"]: ...


LoadTeacher = Callable[[str | None], SentenceEncoder]


def load_teacher(folder: str | None) -> SentenceEncoder:
    from lcm.codec_lab.similarity import load_public_encoder

    return load_public_encoder(folder)


class Teacher:
    """The vectors of some training sentences, by number."""

    def __init__(self, vectors: Float[Tensor, "n E"], row_of: Int[Tensor, " sentences"]) -> None:
        self.vectors = vectors
        self.row_of = row_of
        """For each training sentence its row, or -1."""

    def rows(self, sentences: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        return self.row_of[sentences.cpu()]


def ask_teacher(
    texts: Sequence[str],
    most: int,
    seed: int,
    folder: Path | None,
    load: LoadTeacher,
    name: str | None,
    say: Callable[[str], None],
) -> Teacher:
    """The teacher of `most` sentences drawn at random (0: of all), from `folder` where it was asked the same before."""
    chosen = list(range(len(texts)))
    if most and most < len(texts):
        chosen = sorted(random.Random(seed).sample(chosen, most))
    row_of = torch.full((len(texts),), -1)
    row_of[chosen] = torch.arange(len(chosen))
    asked = [texts[i] for i in chosen]
    digest = hashlib.sha256(json.dumps([name, asked]).encode()).hexdigest()[:16]
    path = folder / f"teacher-{digest}.npy" if folder else None
    if path and path.is_file():
        return Teacher(torch.from_numpy(np.load(path)), row_of)
    encoder, parts = load(name), []
    for start in range(0, len(asked), CHUNK):
        parts.append(encoder.encode(asked[start : start + CHUNK]).half())
        say(f"public encoder: {min(start + CHUNK, len(asked)):,} of {len(asked):,} sentences")
    vectors = torch.cat(parts)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            np.save(file, vectors.numpy())
    return Teacher(vectors, row_of)
