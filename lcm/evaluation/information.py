"""Mutual information of predicted sentences and the ten before them, by a language model (LCM paper §2.4.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from jaxtyping import Int
from torch import Tensor

from lcm.config import CodecRecord
from lcm.evaluation.scoring import Piece
from lcm.scores import Asked, bootstrap, perplexity

CONTEXT = 10
"""True sentences that are read before the predicted one."""


def information(
    asked: Asked,
    texts: Mapping[str, Sequence[str]],
    before: Sequence[Sequence[str]],
    example: Int[Tensor, " n"],
    samples: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Nats a token, weighted by tokens, for each writer of n sentences; with 95% intervals over documents.

    before: the true sentences before each; example: the document that each is of
    """
    lm = perplexity.LanguageModel(asked.weights)
    found = {}
    for writer, sentences in texts.items():
        gained, tokens = perplexity.mutual_information(lm, sentences, before)
        totals, counts = (np.bincount(example.numpy(), weights=values) for values in (gained, tokens))
        found[writer] = asdict(bootstrap(totals, counts, samples, seed))
    return found


def contexts(pieces: Sequence[Piece], record: CodecRecord) -> tuple[list[str], list[list[str]]]:
    """(the sentences of all pieces, up to ten before each in its piece); markers are not among them.

    In the order of `Predictions.candidates`.
    """
    marks = (record.end_of_text, record.prompt_suffix)
    sentences: list[str] = []
    before: list[list[str]] = []
    for piece in pieces:
        real = [sentence for sentence in piece.sentences if sentence not in marks]
        sentences += real
        before += [real[max(0, i - CONTEXT) : i] for i in range(len(real))]
    return sentences, before
