"""MiniCheck: Flan-T5 says token 209 where a chunk supports a sentence, and token 3 where not (Tang et al. 2024)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from lcm.ledger import Ledger
from lcm.scores.faithfulness import Judged, Pairs, by_sentence, counted, in_batches
from lcm.scores.rows import Row
from lcm.scores.sentences import sentences
from lcm.scores.weights import Weights

NO, YES = 3, 209
"""Tokens of Flan-T5's vocabulary."""
WORDS = 500
"""Words of a chunk, at most, unless one sentence is longer."""
LONGEST = 2048
"""Tokens of the model's input; its end is cut."""


class MiniCheck:
    """Mean over the prediction's sentences of the best chunk's probability of support.

    MiniCheck judges single sentences and leaves their mean to its user.
    """

    def __init__(self, weights: Weights) -> None:
        config = weights.config()
        if config.model_type != "t5":
            raise weights.refused(f"config.json is of {config.model_type}; expected t5, as MiniCheck-Flan-T5-Large is")
        self.tokenizer, self.model = weights.tokenizer(), weights.load("T5ForConditionalGeneration")

    def __call__(self, rows: Sequence[Row], ledger: Ledger) -> Float64[np.ndarray, " n"]:
        return counted(
            by_sentence(rows, chunks, self.support), ledger, f"longer than MiniCheck's {LONGEST} tokens, cut"
        )

    def support(self, pairs: Pairs) -> Judged:
        """The probability of yes against no, in the first token that is written."""

        def probability(tokens: Tensor, mask: Tensor) -> Tensor:
            first = torch.zeros((len(tokens), 1), dtype=torch.long, device=tokens.device)
            logits = self.model(input_ids=tokens, attention_mask=mask, decoder_input_ids=first).logits[:, 0]
            return logits[:, [NO, YES]].float().softmax(dim=-1)[:, 1]

        texts = [f"predict: {chunk}{self.tokenizer.eos_token}{claim}" for chunk, claim in pairs]
        whole = [self.tokenizer(text, verbose=False)["input_ids"] for text in texts]
        is_cut = np.array([len(tokens) > LONGEST for tokens in whole], dtype=bool)
        kept = [[*tokens[: LONGEST - 1], tokens[-1]] if len(tokens) > LONGEST else tokens for tokens in whole]
        return in_batches(kept, self.tokenizer.pad_token_id, probability), is_cut


def chunks(document: str) -> list[str]:
    """Whole sentences, up to 500 words in a chunk; a newline of the document stays inside a chunk."""
    found: list[list[str]] = [[]]
    words = 0
    for piece in _pieces(document):
        count = len(piece.split())
        if words + count > WORDS:
            found.append([])
            words = 0
        found[-1].append(piece)
        words += count
    texts = (" ".join(chunk).replace(" \n ", "\n").strip() for chunk in found)
    return [text for text in texts if text] or [""]


def _pieces(document: str) -> list[str]:
    """The sentences of each line, with "\\n" between the lines."""
    return [piece for line in document.split("\n") for piece in (*sentences(line), "\n")][:-1]
