"""SEAHORSE: mT5 as a judge of summaries (Clark et al. 2023): Q4 is attribution, Q5 main ideas (LCM paper §3.1.1)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64

from lcm.ledger import Ledger
from lcm.scores.rows import Row
from lcm.scores.weights import Weights, batches, padded

YES = "▁1"
"""Piece by which the model says yes: token 333 of mT5."""


class Seahorse:
    """The probability, among all tokens, that the first one written is "1"; NaN without a document."""

    def __init__(self, weights: Weights) -> None:
        self.tokenizer, self.model = weights.tokenizer(), weights.load("AutoModelForSeq2SeqLM")
        self.yes = self.tokenizer.convert_tokens_to_ids(YES)
        if self.yes in (None, self.tokenizer.unk_token_id):
            raise weights.refused(f"its tokenizer has no piece '{YES}', by which SEAHORSE says yes")

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Row], ledger: Ledger) -> Float64[np.ndarray, " n"]:
        prompts = [self.tokenizer(prompt(row))["input_ids"] for row in rows]
        found = np.zeros(len(rows))
        for numbers in batches([len(p) for p in prompts]):
            tokens, mask = padded([prompts[i] for i in numbers], self.tokenizer.pad_token_id)
            first = torch.full((len(numbers), 1), self.tokenizer.pad_token_id, device=tokens.device)
            logits = self.model(input_ids=tokens, attention_mask=mask, decoder_input_ids=first).logits[:, 0]
            found[numbers] = logits.float().softmax(dim=-1)[:, self.yes].cpu().numpy()
        return np.where([bool(row.prediction.strip()) for row in rows], found, 0.0)


def prompt(row: Row) -> str:
    """The text that SEAHORSE's models were trained on."""
    return f"premise: {row.document} hypothesis: {row.prediction}"
