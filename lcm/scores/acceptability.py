"""CoLA: the probability that a text is grammatical, by a classifier (Krishna et al. 2020; LCM paper §3.1.1)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64

from lcm.ledger import Ledger
from lcm.scores.rows import Row
from lcm.scores.weights import Weights, batches, longest, padded

ACCEPTABLE = 0
"""Class of acceptable texts."""
STRIDE = 8
"""Tokens that two windows of a long text share."""


class Cola:
    """The probability of class 0, of each prediction as one text; of a long one, the mean over windows."""

    def __init__(self, weights: Weights) -> None:
        self.tokenizer, self.model = weights.tokenizer(), weights.load("AutoModelForSequenceClassification")
        self.most = longest(self.tokenizer, self.model.config)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Row], ledger: Ledger) -> Float64[np.ndarray, " n"]:
        windows = [(i, window) for i, row in enumerate(rows) for window in self.windows(row.prediction)]
        probability = np.zeros(len(windows))
        for numbers in batches([len(window) for _, window in windows]):
            tokens, mask = padded([windows[k][1] for k in numbers], self.tokenizer.pad_token_id)
            logits = self.model(input_ids=tokens, attention_mask=mask).logits
            probability[numbers] = logits.float().softmax(dim=-1)[:, ACCEPTABLE].cpu().numpy()
        row = np.array([i for i, _ in windows])
        totals, counts = np.bincount(row, probability, len(rows)), np.bincount(row, minlength=len(rows))
        return np.where([bool(r.prediction.strip()) for r in rows], totals / counts, 0.0)

    def windows(self, text: str) -> list[list[int]]:
        """Tokens of a text with the special ones, in windows that the model can read."""
        found = self.tokenizer(
            text, max_length=self.most, truncation=True, stride=STRIDE, return_overflowing_tokens=True
        )["input_ids"]
        return [list(window) for window in found]
