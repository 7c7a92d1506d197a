"""Coherence: XLNet trained to tell news from news with shuffled sentences (Jwalapuram et al. 2022).

The LCM paper (§2.4.1) takes a sigmoid at temperature 3, of the mean over windows of long texts.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from lcm.ledger import Ledger
from lcm.scores.rows import Row
from lcm.scores.sentences import sentences
from lcm.scores.weights import BATCH, Weights, device, transformers

TEMPERATURE = 3.0
WHOLE, WINDOW, STEP = 15, 10, 5
"""Sentences of the longest text that is read whole; of a window of a longer one; and from window to window."""
LONGEST = 600
"""Tokens of each window: cut and padded to this, as sgnlp's preprocessor does."""


class Coherence:
    """The probability-like score of each prediction; higher is more coherent, comparable only between like texts.

    Reads sgnlp's tensors: `main_encoder.*` of an XLNet and `conlinear.*`; config.json and tokenizer are XLNet's.
    """

    def __init__(self, weights: Weights) -> None:
        self.tokenizer, config = weights.tokenizer(), weights.config()
        if config.model_type != "xlnet":
            raise weights.refused(f"config.json is of {config.model_type}; expected xlnet, as of xlnet-base-cased")
        encoder = transformers(weights.setting).XLNetModel(config)
        parts = nn.ModuleDict({"main_encoder": encoder, "conlinear": nn.Linear(config.d_model, 1)})
        weights.check(parts.load_state_dict(weights.tensors(), strict=False).missing_keys)
        self.parts = parts.eval().to(device())

    def __call__(self, rows: Sequence[Row], ledger: Ledger) -> Float64[np.ndarray, " n"]:
        texts = [windows(sentences(row.prediction)) for row in rows]
        tokens = [[self.tokens(window) for window in text] for text in texts]
        for row, found in zip(rows, tokens, strict=True):
            if any(len(window) > LONGEST for window in found):
                ledger.add(f"longer than {LONGEST} tokens for coherence, cut", row.id)
        raw = torch.split(self.raw([window for text in tokens for window in text]), [len(text) for text in texts])
        means = torch.stack([scores.mean() for scores in raw])  # NaN for a text without a sentence
        return (means / TEMPERATURE).sigmoid().nan_to_num(0.0).numpy()

    @torch.inference_mode()
    def raw(self, texts: Sequence[list[int]]) -> Float64[Tensor, " n"]:
        """The classifier's own number for each text. Padding stands behind it and is read like text, as in training."""
        found: list[Float[Tensor, " b"]] = [torch.zeros(0, device=device())]
        for start in range(0, len(texts), BATCH):
            tokens = torch.tensor([self.filled(text) for text in texts[start : start + BATCH]], device=device())
            last = self.parts["main_encoder"](input_ids=tokens).last_hidden_state[:, -1]
            found.append(self.parts["conlinear"](last).squeeze(-1))
        return torch.cat(found).double().cpu()

    def tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def filled(self, tokens: list[int]) -> list[int]:
        """`LONGEST` tokens of the text and its padding, then XLNet's two special ones."""
        padding = [self.tokenizer.pad_token_id] * (LONGEST - len(tokens))
        return [*tokens[:LONGEST], *padding, self.tokenizer.sep_token_id, self.tokenizer.cls_token_id]


def windows(found: Sequence[str]) -> list[str]:
    """A text of up to 15 sentences whole, a longer one in windows of 10 that overlap by 5."""
    starts = range(0, len(found) - STEP, STEP) if len(found) > WHOLE else range(bool(found))
    size = WINDOW if len(found) > WHOLE else WHOLE
    return [" ".join(found[start : start + size]) for start in starts]
