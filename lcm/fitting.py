"""Statistics of a data set's vectors, from an even sample of its finished shards.

Shapes.  n sampled vectors · D concept width
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16, Float32

from lcm import normalizer
from lcm.manifest import NormalizerInfo, ShardRecord
from lcm.shards import load_index, read_document
from lcm.sources import SPLITS

SAMPLE = 200_000
"""Vectors that the normaliser is fitted on: enough for quartiles of half a percent of a standard deviation."""


def sample_vectors(
    folder: Path, shards: Sequence[ShardRecord], dim: int, limit: int = SAMPLE
) -> Float16[np.ndarray, "n D"]:
    """Every k-th sentence's vector, k the least that gives at most `limit` of them.

    The constants that `prepare` appends ("[MODEL]:", "End of text.") are no sentences of the text and left out.
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
                sample[taken : taken + len(chosen)] = read_document(folder, shard.name, offset, n, dim)[chosen]
            seen += len(sentences)
            taken += len(chosen)
    assert taken == len(sample), "shards hold what their records say"
    return sample


def fit_normalizer(
    folder: Path, splits: dict[str, tuple[ShardRecord, ...]], dim: int, limit: int = SAMPLE
) -> NormalizerInfo:
    """The normaliser of the train split; of validation or test where that is all there is."""
    shards = next(splits[name] for name in SPLITS if splits.get(name))
    location, scale = normalizer.fit(torch.from_numpy(sample_vectors(folder, shards, dim, limit)))
    return NormalizerInfo(location=_shortest(location.numpy()), scale=_shortest(scale.numpy()))


def _shortest(values: Float32[np.ndarray, " D"]) -> tuple[float, ...]:
    """The fewest digits that give the same float32 again."""
    return tuple(float(str(value)) for value in values)
