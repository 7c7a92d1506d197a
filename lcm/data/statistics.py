"""The normalizer of a data set, fitted to an even sample of the vectors in its finished shards.

The shards are read again, rather than sampled while they are written: the sample is then a function of the data set,
and does not depend on the number of workers that wrote it.

Shapes.  n sampled vectors · D concept width
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32
from torch import Tensor

from lcm.data.manifest import SPLITS, NormalizerInfo, ShardRecord
from lcm.data.shards import load_index, read_vectors

QUARTILES = (0.25, 0.75)
"""Quantiles as fractions. The reference passes them to an API that takes percentages, and so fits the extreme tail."""

SAMPLE = 200_000
"""Vectors that the normalizer is fitted to: the quartiles are then off by half a percent of a standard deviation."""


def sample_vectors(
    folder: Path, shards: Sequence[ShardRecord], dim: int, limit: int = SAMPLE
) -> Float16[np.ndarray, "n D"]:
    """The vector of every k-th sentence, with the smallest k that gives at most `limit` vectors.

    Excludes the constants that `lcm prepare` appends ("[MODEL]:", "End of text."): they are not sentences of the text.
    """
    total = sum(shard.concepts - shard.documents - shard.pairs for shard in shards)
    stride = max(1, -(-total // limit))
    sample = np.empty((-(-total // stride), dim), np.float16)
    seen = taken = 0
    for shard in shards:
        for offset, n, source_length in load_index(folder / shard.name).tolist():
            sentences = [i for i in range(n - 1) if i != source_length - 1]
            chosen = sentences[-seen % stride :: stride]
            if chosen:
                sample[taken : taken + len(chosen)] = read_vectors(folder / shard.name, offset, n, dim)[chosen]
            seen += len(sentences)
            taken += len(chosen)
    assert taken == len(sample), "shards hold what their records say"
    return sample


def fit_normalizer(
    folder: Path, splits: dict[str, tuple[ShardRecord, ...]], dim: int, limit: int = SAMPLE
) -> NormalizerInfo:
    """Fit to the train split; to validation or test if there is no other."""
    shards = next(splits[name] for name in SPLITS if splits.get(name))
    location, scale = fit(torch.from_numpy(sample_vectors(folder, shards, dim, limit)))
    return NormalizerInfo(location=_shortest(location.numpy()), scale=_shortest(scale.numpy()))


def _shortest(values: Float32[np.ndarray, " D"]) -> tuple[float, ...]:
    """The fewest digits that give the same float32 back."""
    return tuple(float(str(value)) for value in values)


def fit(vectors: Float[Tensor, "n D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """(location, scale): the median, and the interquartile range over that of N(0, 1), which is σ for a Gaussian.

    A channel that never varies gets scale 1 instead of 0.
    """
    # In blocks of channels, because each is copied as float64.
    blocks = (vectors[:, start : start + 64].double().cpu().numpy() for start in range(0, vectors.shape[1], 64))
    quantiles = [np.quantile(block, (QUARTILES[0], 0.5, QUARTILES[1]), axis=0) for block in blocks]
    low, middle, high = torch.from_numpy(np.concatenate(quantiles, axis=1)).to(vectors.device)
    unit = NormalDist().inv_cdf(QUARTILES[1]) - NormalDist().inv_cdf(QUARTILES[0])
    scale = (high - low) / unit
    return middle.float(), torch.where(scale > 0, scale, torch.ones_like(scale)).float()
