"""Nearest real sentences: a bank of sentences that is searched by vector, so its answers are always real text.

An exact search for up to a few hundred thousand sentences on a laptop: 300,000 of 512 channels take 300 MB.

Shapes.  n queries · c sentences of the bank · k neighbours · D concept width
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from lcm.codec.text import is_length_wish
from lcm.data.shard_cache import split_shards
from lcm.data.shards import Encoded, Shard, read_shard
from lcm.errors import UserError
from lcm.options import several

LIMIT = 300_000
"""Most sentences of a bank that is read from shards."""
BLOCK = 16_384
"""Sentences compared at once, in fp32; the bank itself is fp16."""
QUERIES = 1024
"""Queries looked up at once."""


def _documents(shard: Shard) -> Iterator[Encoded]:
    """The documents of a shard that agrees with its manifest."""
    path = shard.fetch()
    shard.load()
    yield from read_shard(path)


class Bank:
    """Sentences with the directions of their vectors from the mean of all."""

    def __init__(self, sentences: Sequence[str], vectors: Float[Tensor, "c D"]) -> None:
        assert len(sentences) == len(vectors) > 0, "one sentence per vector, and at least one"
        self.sentences = list(sentences)
        blocks = torch.split(vectors, BLOCK)
        self.mean = torch.stack([block.double().sum(dim=0) for block in blocks]).sum(dim=0).float() / len(vectors)
        self.directions = torch.cat([self._direction(block).half() for block in blocks])

    @classmethod
    def from_shards(
        cls, folders: Sequence[str | Path], split: str = "train", limit: int | None = LIMIT, codec: str | None = None
    ) -> "Bank":
        """Collect the distinct sentences of prepared folders, without the prompt suffix and the end of text.

        limit: most sentences, the first of the shards; a line on stderr says that there were more
        codec: fingerprint that the folders' codec must have
        Raises UserError for a folder that is not a data set, has no such split, or was made by another codec.
        """
        found: dict[str, np.ndarray] = {}
        for folder in several(folders):
            shards = split_shards(folder, split, codec)
            for document in (document for shard in shards for document in _documents(shard)):
                marks = (document.sentences[-1], document.sentences[document.source_length - 1])
                for sentence, vector in zip(document.sentences, document.vectors, strict=True):
                    if sentence not in found and sentence not in marks and not is_length_wish(sentence):
                        found[sentence] = vector.copy()  # a view would keep the whole document in memory
                if limit is not None and len(found) > limit:
                    print(f"bank: the first {limit:,} distinct sentences; there are more", file=sys.stderr)
                    return cls(list(found)[:limit], torch.from_numpy(np.stack(list(found.values())[:limit])))
        if not found:
            raise UserError(f"bank {', '.join(map(str, several(folders)))}: no sentences in its {split} split")
        return cls(list(found), torch.from_numpy(np.stack(list(found.values()))))

    def nearest(self, vectors: Float[Tensor, "n D"], k: int = 1) -> tuple[list[list[str]], Float[Tensor, "n k"]]:
        """Find the k sentences closest to each vector, the closest first, and their cosines.

        The bank's mean is subtracted from both sides first. A prediction that hedges lies near the mean, and by the
        plain cosine its neighbour would be the sentence nearest to the mean: the same one every time.
        """
        blocks = [self._search(self._direction(block), k) for block in torch.split(vectors.cpu(), QUERIES)]
        places = [row for places, _ in blocks for row in places.tolist()]
        cosines = torch.cat([cosines for _, cosines in blocks])
        return [[self.sentences[i] for i in row] for row in places], cosines.clamp(-1, 1)

    def _search(self, queries: Float[Tensor, "n D"], k: int) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """Indices and cosines of the best k, merged block after block of the bank."""
        places, cosines = torch.zeros(len(queries), 0, dtype=torch.long), torch.zeros(len(queries), 0)
        for start in range(0, len(self.sentences), BLOCK):
            cosine = queries @ self.directions[start : start + BLOCK].float().T
            best, place = cosine.topk(min(k, cosine.shape[1]), dim=1)
            places, cosines = torch.cat([places, place + start], dim=1), torch.cat([cosines, best], dim=1)
            cosines, column = cosines.topk(min(k, cosines.shape[1]), dim=1)
            places = places.gather(1, column)
        return places, cosines

    def _direction(self, vectors: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        return normalize(vectors.float() - self.mean, dim=1)
