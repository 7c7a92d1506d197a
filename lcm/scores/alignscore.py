"""AlignScore: RoBERTa with three heads, of which the third says aligned, neutral or contradicted (Zha et al. 2023)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from torch import Tensor, nn

from lcm.ledger import Ledger
from lcm.scores.faithfulness import Judged, Pairs, by_sentence, counted, in_batches
from lcm.scores.rows import Row
from lcm.scores.sentences import sentences
from lcm.scores.weights import Weights, device, longest, transformers

ALIGNED = 0
"""Class of the third head."""
WORDS = 350
"""Words of a document in about one chunk."""


class AlignScore:
    """Mean over the prediction's sentences of the best chunk's probability that it says so: `nli_sp` of the package.

    Reads `base_model.*` and `tri_layer.*` of the published checkpoint; its other heads are not used. config.json and
    tokenizer are RoBERTa's.
    """

    def __init__(self, weights: Weights) -> None:
        self.tokenizer, config = weights.tokenizer(), weights.config()
        if config.model_type != "roberta":
            raise weights.refused(f"config.json is of {config.model_type}; expected roberta, as of roberta-base")
        encoder = transformers(weights.setting).RobertaModel(config)
        parts = nn.ModuleDict({"base_model": encoder, "tri_layer": nn.Linear(config.hidden_size, 3)})
        weights.check(parts.load_state_dict(weights.tensors(), strict=False).missing_keys)
        self.parts, self.most = parts.eval().to(device()), longest(self.tokenizer, config)

    def __call__(self, rows: Sequence[Row], ledger: Ledger) -> Float64[np.ndarray, " n"]:
        return counted(by_sentence(rows, chunks, self.aligned), ledger, "longer than AlignScore reads, cut")

    def aligned(self, pairs: Pairs) -> Judged:
        """The probability that a chunk says what a sentence says."""

        def probability(tokens: Tensor, mask: Tensor) -> Tensor:
            pooled = self.parts["base_model"](input_ids=tokens, attention_mask=mask).pooler_output
            return self.parts["tri_layer"](pooled).softmax(dim=-1)[:, ALIGNED]

        found = [self.tokens(chunk, sentence) for chunk, sentence in pairs]
        is_cut = np.array([whole > self.most for _, whole in found], dtype=bool)
        return in_batches([tokens for tokens, _ in found], self.tokenizer.pad_token_id, probability), is_cut

    def tokens(self, chunk: str, sentence: str) -> tuple[list[int], int]:
        """(tokens of a pair, their number before the cut). A chunk loses its end; a long sentence is cut as well."""
        count = [
            len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            for text in (chunk, sentence)
        ]
        free = self.most - self.tokenizer.num_special_tokens_to_add(pair=True)
        how = "only_first" if free > count[1] else "longest_first"
        tokens = self.tokenizer(chunk, sentence, truncation=how, max_length=self.most)["input_ids"]
        return list(tokens), sum(count) + self.most - free


def chunks(document: str) -> list[str]:
    """The document's sentences, evenly many in each chunk, so that a chunk has about 350 words.

    As in the package: the number of sentences in a chunk is rounded down, and an empty document is one empty chunk.
    """
    found = sentences(document) or [""]
    size = max(len(found) // (len(document.split()) // WORDS + 1), 1)
    return [" ".join(found[start : start + size]) for start in range(0, len(found), size)]
