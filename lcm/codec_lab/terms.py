"""The terms of a codec's loss: damage to repair, distances, and what a term needs beside the model.

Pure functions are random by torch's generator. Rounding and Teacher belong to one term each.

Shapes.  B rows · P pieces of the source · Q pieces of the target · D concept width · E width of the public encoder
         V vocabulary · n vectors or sentences
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int, Int64
from torch import Tensor, nn

from lcm.codec_lab.sentences import load_public_encoder
from lcm.codec_lab.settings import CodecTraining
from lcm.codec_lab.space import similarities
from lcm.codec_lab.start import Start
from lcm.errors import UserError
from lcm.files import atomic
from lcm.models import Normalizer
from lcm.models.quantizer import QuantizerRecord, ResidualQuantizer, load_quantizer
from lcm.models.quantizer_fitting import fit_quantizer, variance
from lcm.training.loggers import say

CHUNK = 2048
"""Sentences that the public encoder encodes between two lines of progress."""
PARTIAL = 0.3
"""Chance that a training vector is rounded by some of the codebooks only, 2/3 of them at least."""
IGNORED = -100
"""Target of a position that does not count."""


def damaged(row: Sequence[int], starts_word: Bool[Tensor, " V"], drop: float, swap: float) -> list[int]:
    """Drop words of `row` and swap neighbours; at least one word stays (paper §2.1: denoising)."""
    words: list[list[int]] = []
    for piece in row:
        if not words or bool(starts_word[piece]):
            words.append([])
        words[-1].append(piece)
    chances = torch.rand(2, len(words)).tolist()
    kept = [word for word, chance in zip(words, chances[0], strict=True) if chance >= drop] or words[:1]
    place = 0
    while place + 1 < len(kept):
        if chances[1][place] < swap:
            kept[place : place + 2] = kept[place + 1], kept[place]
            place += 1
        place += 1
    return [piece for word in kept for piece in word]


def with_unknowns(pieces: Int[Tensor, "B Q"], mean_share: float, unknown: int) -> Int[Tensor, "B Q"]:
    """Replace a share of each row's pieces by `unknown`. The share is uniform from 0 to twice the mean."""
    share = 2 * mean_share * torch.rand(len(pieces), 1, device=pieces.device)
    return pieces.masked_fill(torch.rand(pieces.shape, device=pieces.device) < share, unknown)


def with_noise(vectors: Float[Tensor, "B D"], size: float) -> Float[Tensor, "B D"]:
    """Add Gaussian noise of up to `size` standard deviations of each channel over the batch, uniform for each row."""
    if len(vectors) < 2:
        return vectors
    sigma = size * torch.rand(len(vectors), 1, device=vectors.device)
    return vectors + sigma * vectors.detach().std(0) * torch.randn_like(vectors)


def robust(vectors: Float[Tensor, "B D"], normalizer: Normalizer, most: float) -> Float[Tensor, "B D"]:
    """x(a, e) = denorm(sqrt(1 - a) norm(x) + sqrt(a) e), e Gaussian, a uniform from 0 to `most` (paper §2.5.2)."""
    a = most * torch.rand(len(vectors), 1, device=vectors.device)
    noise = torch.randn_like(vectors)
    return normalizer.inverse((1 - a).sqrt() * normalizer(vectors) + a.sqrt() * noise)


def targets(pieces: Int[Tensor, "B Q"], lengths: Int[Tensor, " B"], end: int) -> Int[Tensor, "B Q+1"]:
    """The pieces and their end; positions beyond are IGNORED."""
    place = torch.arange(pieces.shape[1] + 1, device=pieces.device)
    longer = F.pad(pieces, (0, 1)).masked_fill(place == lengths[:, None], end)
    return longer.masked_fill(place > lengths[:, None], IGNORED)


def cross_entropy(logits: Float[Tensor, "B Q V"], wanted: Int[Tensor, "B Q"]) -> Float[Tensor, ""]:
    """Mean over the pieces that count."""
    return F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=IGNORED)


def similarity_loss(
    vectors: Float[Tensor, "B D"], teacher: Float[Tensor, "B E"], kind: str, temperature: float
) -> Float[Tensor, ""]:
    """Distance between the batch's similarities and the public encoder's, self-similarities excluded.

    mse: squared difference of the cosines. kl: Kullback-Leibler divergence of their softmax over each row. 0 for fewer
    than three rows: after centring, two always point away from each other.
    """
    if len(vectors) < 3:
        return vectors.sum() * 0
    others = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    ours, theirs = (similarities(x)[others].view(len(vectors), -1) for x in (vectors, teacher))
    if kind == "mse":
        return (ours - theirs).square().mean()
    ours, theirs = ((x / temperature).log_softmax(1) for x in (ours, theirs))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class Rounding(nn.Module):
    """Vectors of a frozen encoder, rounded for a decoder to read (paper §2.3.5): raw → rounded raw, in fp32."""

    def __init__(self, quantizer: ResidualQuantizer, record: QuantizerRecord) -> None:
        super().__init__()
        self.quantizer, self.record, self.normalizer = quantizer, record, record.normalizer

    def forward(self, vectors: Float[Tensor, "n D"], k: Int64[Tensor, " n"] | None = None) -> Float32[Tensor, "n D"]:
        """Round by the first k codebooks; without k, by all."""
        codes = self.quantizer.encode(self.normalizer(vectors))
        return self.normalizer.inverse(self.quantizer.dequantize(codes, k))

    def in_training(self, vectors: Float[Tensor, "n D"]) -> Float32[Tensor, "n D"]:
        """Round by all codebooks or, with probability PARTIAL, by a random number of them."""
        most = len(self.quantizer.codebooks)
        some = torch.randint(-(-2 * most // 3), most + 1, (len(vectors),), device=vectors.device)
        drawn = torch.rand(len(vectors), device=vectors.device) < PARTIAL
        return self(vectors, torch.where(drawn, some, most))


def load_rounding(path: str, start: Start) -> Rounding:
    """Rounding by existing codebooks. Raises UserError where they were fitted to another codec."""
    quantizer, record = load_quantizer(path)
    if record.fingerprint != start.fingerprint:
        raise UserError(
            f"terms.quantizer={path}: fitted to vectors of codec '{record.codec}' (fingerprint {record.fingerprint}), "
            f"but start has {start.fingerprint}; start from that codec, or fit it again: "
            "python data_prep/fit_quantizer.py"
        )
    return Rounding(quantizer, record)


def fit_rounding(
    vectors: Float[Tensor, "n D"], normalizer: Normalizer, settings: CodecTraining, start: Start
) -> Rounding:
    """Rounding by codebooks that are fitted to these vectors of the start, behind their normalizer."""
    chosen = settings.terms
    if len(vectors) < chosen.units:
        raise UserError(f"terms.units={chosen.units}, but there are only {len(vectors)} sentences to fit them to")
    quantizer = fit_quantizer(normalizer(vectors), chosen.codebooks, chosen.units, settings.run.seed)
    rounding = Rounding(quantizer, QuantizerRecord(settings.start, start.fingerprint, "normalised", normalizer))
    left = float((vectors - rounding(vectors)).square().sum()) / variance(vectors)
    say(f"{chosen.codebooks} codebooks of {chosen.units} units leave {left:.1%} of the variance")
    return rounding


@dataclass(frozen=True)
class Teacher:
    """The public encoder's vectors, in float16. row_of: the row of each training sentence, or -1 where it has none."""

    vectors: Float[Tensor, "n E"]
    row_of: Int[Tensor, " sentences"]


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
