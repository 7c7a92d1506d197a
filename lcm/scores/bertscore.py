"""BERTScore (Zhang et al. 2020): the vectors of a prediction's tokens, each matched with a reference's nearest one."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lcm.ledger import Ledger
from lcm.scores.rows import Row
from lcm.scores.weights import Weights, batches, longest, padded

LAYERS = {
    ("bert", 6): 5,
    ("bert", 12): 9,
    ("bert", 24): 18,
    ("distilbert", 6): 5,
    ("roberta", 6): 5,
    ("roberta", 12): 10,
    ("roberta", 24): 17,
    ("xlm-roberta", 12): 9,
    ("xlm-roberta", 24): 17,
    ("deberta", 12): 9,
    ("deberta", 24): 18,
    ("deberta", 48): 40,
}
"""The layer whose vectors agree best with people, by model and number of layers, as in the package bert-score."""


class BertScore:
    """F of each prediction with its best reference, without idf weights and without rescaling, as bert-score's default.

    layer: the layer whose vectors are compared (default: by `LAYERS`)
    NaN without a reference.
    """

    def __init__(self, weights: Weights, layer: int | None = None) -> None:
        config = weights.config()
        known = LAYERS.get((config.model_type, config.num_hidden_layers))
        if layer is None and known is None:
            described = f"{config.model_type} of {config.num_hidden_layers} layers"
            raise weights.refused(f"no layer is known to be best for {described}; expected roberta-large, say")
        self.layer = layer or known or 0
        self.tokenizer, self.model = weights.tokenizer(), weights.load("AutoModel", ignore=("pooler.",))
        self.most = longest(self.tokenizer, self.model.config)
        # bert-score has RoBERTa's tokenizer read a text as if a blank stood before it.
        self.blank = " " if self.model.config.model_type == "roberta" else ""

    def __call__(self, rows: Sequence[Row], ledger: Ledger) -> Float64[np.ndarray, " n"]:
        pairs = [(i, row.prediction, reference) for i, row in enumerate(rows) for reference in row.references]
        for row in rows:
            if any(len(self.tokens(text)) > self.most for text in (row.prediction, *row.references)):
                ledger.add(f"longer than {self.most} tokens for BERTScore, cut", row.id)
        texts = sorted({text for _, *both in pairs for text in both})
        vectors = dict(zip(texts, self.vectors(texts), strict=True))
        found = np.full(len(rows), np.nan)
        for i, prediction, reference in pairs:
            found[i] = np.fmax(found[i], matched(vectors[prediction], vectors[reference]))
        return found

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str]) -> list[Float[Tensor, "t D"]]:
        """The unit vectors of each text's tokens; the first and the last are those of the special tokens."""
        tokens = [[*t[: self.most - 1], t[-1]] if len(t) > self.most else t for t in map(self.tokens, texts)]
        found: list[Float[Tensor, "t D"]] = [torch.empty(0, 0)] * len(texts)
        for numbers in batches([len(t) for t in tokens]):
            padding, mask = padded([tokens[i] for i in numbers], self.tokenizer.pad_token_id)
            states = self.model(input_ids=padding, attention_mask=mask, output_hidden_states=True).hidden_states
            for i, state in zip(numbers, states[self.layer].float().cpu(), strict=True):
                found[i] = torch.nn.functional.normalize(state[: len(tokens[i])], dim=-1)
        return found

    def tokens(self, text: str) -> list[int]:
        text = text.strip()
        return list(self.tokenizer(self.blank * bool(text) + text, verbose=False)["input_ids"])


def matched(prediction: Float[Tensor, "p D"], reference: Float[Tensor, "r D"]) -> float:
    """F of precision and recall: each token's best cosine on the other side, averaged over all but the special tokens.

    0 where one of them is empty.
    """
    if min(len(prediction), len(reference)) <= 2:
        return 0.0
    cosine = prediction @ reference.T
    precision, recall = (float(cosine.amax(dim=side)[1:-1].mean()) for side in (1, 0))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
