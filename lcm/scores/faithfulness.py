"""Faithfulness to the document, by judges of a chunk and a sentence: AlignScore and MiniCheck.

The package of the first needs an old transformers, and the second's name is another package on PyPI; `alignscore` and
`minicheck` read the weights that they published.
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from lcm.ledger import Ledger
from lcm.scores.rows import Row
from lcm.scores.sentences import sentences
from lcm.scores.weights import batches, padded

Pairs = Sequence[tuple[str, str]]
"""A chunk of a document, and a sentence of a prediction."""
Judged = tuple[Float64[Tensor, " n"], Bool[np.ndarray, " n"]]
"""The probability, for each pair, that the chunk says so; and True where the model read less than the pair."""


def by_sentence(
    rows: Sequence[Row], chunks: Callable[[str], list[str]], judge: Callable[[Pairs], Judged]
) -> tuple[Float64[np.ndarray, " n"], list[str]]:
    """(mean over a prediction's sentences of the best chunk's probability, the ids of rows that were cut).

    0 for an empty prediction.
    """
    sizes, pairs = [], []
    for row in rows:
        parts, claims = chunks(row.document), sentences(row.prediction)
        sizes.append((len(parts), len(claims)))
        pairs += list(product(parts, claims))
    probability, is_cut = judge(pairs)
    found, cut, start = np.zeros(len(rows)), [], 0
    for i, (parts_of, claims_of) in enumerate(sizes):
        here = slice(start, start := start + parts_of * claims_of)
        if claims_of:
            found[i] = float(probability[here].view(parts_of, claims_of).amax(dim=0).mean())
        cut += [rows[i].id] if is_cut[here].any() else []
    return found, cut


@torch.inference_mode()
def in_batches(
    tokens: Sequence[list[int]], pad: int, probability: Callable[[Tensor, Tensor], Tensor]
) -> Float64[Tensor, " n"]:
    """probability(tokens, mask) of each pair, in batches of pairs of like length."""
    found = torch.zeros(len(tokens), dtype=torch.float64)
    for numbers in batches([len(t) for t in tokens]):
        found[numbers] = probability(*padded([tokens[i] for i in numbers], pad)).double().cpu()
    return found


def counted(found: tuple[Float64[np.ndarray, " n"], list[str]], ledger: Ledger, what: str) -> Float64[np.ndarray, " n"]:
    """The scores of `by_sentence`; the ledger counts the rows that were cut."""
    scores, cut = found
    for row in cut:
        ledger.add(what, row)
    return scores
