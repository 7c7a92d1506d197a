"""Probabilities by any causal language model, such as GPT-2: perplexity, and mutual information (LCM paper §2.4.1).

Perplexity can be cheated: dull and repeated text gets a good one (arXiv 2606.08417); never report it alone.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64

from lcm.ledger import Ledger
from lcm.scores.rows import Row
from lcm.scores.weights import Weights, batches, longest, padded

WARNING = (
    "perplexity can be cheated: dull and repeated text gets a low one; read it beside rep4, and beside the "
    "perplexity of the references"
)


class LanguageModel:
    """A causal language model. begin: token that stands before a text"""

    def __init__(self, weights: Weights) -> None:
        self.tokenizer, self.model = weights.tokenizer(), weights.load("AutoModelForCausalLM")
        self.most = longest(self.tokenizer, self.model.config)
        begin = self.tokenizer.bos_token_id
        self.begin = self.tokenizer.eos_token_id if begin is None else begin
        if self.begin is None:
            raise weights.refused("its tokenizer has no token for the beginning or the end of a text")

    def tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @torch.inference_mode()
    def surprise(
        self, contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> Float64[np.ndarray, " n"]:
        """−log p(target | context) in nats, summed over the target's tokens. A context has at least one token.

        A context that is too long loses its beginning; targets must leave room for one token before them.
        """
        lines = [[*c, *t][-self.most :] for c, t in zip(contexts, targets, strict=True)]
        total = np.zeros(len(lines))
        for numbers in batches([len(line) for line in lines]):
            tokens, mask = padded([lines[i] for i in numbers], 0)
            logits = self.model(input_ids=tokens, attention_mask=mask).logits[:, :-1].float()
            loss = logits.logsumexp(dim=-1) - logits.gather(2, tokens[:, 1:, None]).squeeze(2)
            for k, i in enumerate(numbers):
                end = len(lines[i]) - 1
                total[i] = float(loss[k, end - len(targets[i]) : end].double().sum())
        return total


class Perplexity:
    """exp of the mean −log p of a prediction's tokens, after one for the beginning, as in Hugging Face's `evaluate`.

    Tokens beyond what the model reads at once are not scored, and counted; NaN for an empty prediction.
    """

    def __init__(self, weights: Weights) -> None:
        self.lm = LanguageModel(weights)

    def __call__(self, rows: Sequence[Row], ledger: Ledger) -> Float64[np.ndarray, " n"]:
        texts = [self.lm.tokens(row.prediction) for row in rows]
        for row, text in zip(rows, texts, strict=True):
            if len(text) > self.lm.most - 1:
                ledger.add(f"longer than {self.lm.most} tokens of perplexity's model, cut", row.id)
        texts = [text[: self.lm.most - 1] for text in texts]
        nats = self.lm.surprise([[self.lm.begin]] * len(texts), texts)
        lengths = np.array([float(len(text)) or np.nan for text in texts])
        return np.exp(nats / lengths)


def mutual_information(
    lm: LanguageModel, sentences: Sequence[str], before: Sequence[Sequence[str]]
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """log p(s | the sentences before it) − log p(s) in nats, and the tokens of s: sum both over a corpus, and divide.

    Positive: the sentence is easier to predict where its context is known (paper §2.4.1, whose formula has the
    opposite sign of its definition). A newline stands before s in both, so that its first token has a probability.
    sentences: decoded predictions ŝ_n; before: the true sentences before each, ten of them in the paper
    """
    newline = lm.tokens("\n")
    room = lm.most - len(newline) - 1
    targets = [lm.tokens(sentence)[:room] for sentence in sentences]
    contexts = [[*lm.tokens(" ".join(past)), *newline] for past in before]
    alone, informed = lm.surprise([newline] * len(targets), targets), lm.surprise(contexts, targets)
    return alone - informed, np.array([float(len(target)) for target in targets])
