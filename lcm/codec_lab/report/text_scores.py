"""Text scores: BLEU, chrF and exact matches of decoded sentences; and groups of sentences by length.

Shapes.  n sentences
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float64

from lcm.errors import UserError

BANDS = (1, 3, 6, 11, 16, 21, 26, 31, 41)
"""Lower bounds of the groups by length, in words."""
TOKENIZERS = {
    **dict.fromkeys(("zho_Hans", "zho_Hant", "yue_Hant"), "zh"),
    **dict.fromkeys(("jpn_Jpan", "tha_Thai", "lao_Laoo", "khm_Khmr", "mya_Mymr", "bod_Tibt", "dzo_Tibt"), "char"),
}
"""sacrebleu's tokenizers of languages without blanks between words; all others take "13a", its default."""

Scores = dict[str, Any]
"""sentences: their number. bleu, chrf: 0 to 100. exact: 0 to 1. None where there are no sentences."""


def scores(decoded: Sequence[str], texts: Sequence[str], langs: Sequence[str]) -> Scores:
    """Corpus BLEU ("AutoBLEU" of texts that went through a codec, paper §2.2), chrF and the share that is identical.

    BLEU is sacrebleu's default. Each sentence is tokenized by the rules of its language.
    """
    if not texts:
        return {"sentences": 0, "bleu": None, "chrf": None, "exact": None}
    bleu, chrf = _metrics().BLEU(tokenize="none", force=True), _metrics().CHRF()
    return {
        "sentences": len(texts),
        "bleu": bleu.corpus_score(_tokens(decoded, langs), [_tokens(texts, langs)]).score,
        "chrf": chrf.corpus_score(list(decoded), [list(texts)]).score,
        "exact": sum(a == b for a, b in zip(decoded, texts, strict=True)) / len(texts),
    }


def sentence_bleu(decoded: Sequence[str], texts: Sequence[str], langs: Sequence[str]) -> Float64[np.ndarray, " n"]:
    """BLEU of each sentence, 0 to 100, with n-grams up to its length: a short sentence can reach 100, too."""
    bleu = _metrics().BLEU(tokenize="none", effective_order=True, force=True)
    pairs = zip(_tokens(decoded, langs), _tokens(texts, langs), strict=True)
    return np.array([bleu.sentence_score(ours, [theirs]).score for ours, theirs in pairs], dtype=np.float64)


def words(text: str) -> int:
    """Number of words: the parts between blanks."""
    return len(text.split())


def by_length(texts: Sequence[str]) -> list[tuple[int, int | None, list[int]]]:
    """Partition of the texts by words: (shortest, longest, places) of each non-empty group; the last is open."""
    groups: list[list[int]] = [[] for _ in BANDS]
    for place, text in enumerate(texts):
        groups[max(0, bisect_right(BANDS, words(text)) - 1)].append(place)
    ends: list[int | None] = [*(start - 1 for start in BANDS[1:]), None]
    return [(start, end, places) for start, end, places in zip(BANDS, ends, groups, strict=True) if places]


def _tokens(texts: Sequence[str], langs: Sequence[str]) -> list[str]:
    return [_tokenizer(TOKENIZERS.get(lang, "13a"))(text.rstrip()) for text, lang in zip(texts, langs, strict=True)]


@cache
def _tokenizer(name: str) -> Any:
    return _metrics().BLEU(tokenize=name).tokenizer


def _metrics() -> Any:
    """The module sacrebleu.metrics."""
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise UserError(
            "the codec report needs sacrebleu, which is not here: pip install 'lcm-train[judge]'"
        ) from error
    return metrics
