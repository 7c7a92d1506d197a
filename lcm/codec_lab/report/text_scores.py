"""How alike two lists of sentences are: BLEU, chrF and exact matches, and the groups by length.

Shapes.  n sentences
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from lcm.errors import UserError

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU, CHRF

BANDS = (1, 3, 6, 11, 16, 21, 26, 31, 41)
"""Where the groups by length begin, in words."""
TOKENIZERS = {
    **dict.fromkeys(("zho_Hans", "zho_Hant", "yue_Hant"), "zh"),
    **dict.fromkeys(("jpn_Jpan", "tha_Thai", "lao_Laoo", "khm_Khmr", "mya_Mymr", "bod_Tibt", "dzo_Tibt"), "char"),
}
"""sacrebleu's, for languages that set no blanks between words; "13a", its default, for all others."""

Scores = dict[str, Any]
"""sentences, and of them bleu and chrf (0 to 100) and exact (a share of 1); None where there are no sentences."""


def scores(decoded: Sequence[str], texts: Sequence[str], langs: Sequence[str]) -> Scores:
    """Corpus BLEU ("AutoBLEU" of texts that went through a codec, paper §2.2), chrF and the share that is identical.

    BLEU is sacrebleu's default. Sentences are cut into tokens by the rules of their language.
    """
    if not texts:
        return {"sentences": 0, "bleu": None, "chrf": None, "exact": None}
    exact = sum(a == b for a, b in zip(decoded, texts, strict=True)) / len(texts)
    bleu, chrf = _bleu(False), _chrf()
    return {
        "sentences": len(texts),
        "bleu": bleu.corpus_score(_tokens(decoded, langs), [_tokens(texts, langs)]).score,
        "chrf": chrf.corpus_score(list(decoded), [list(texts)]).score,
        "exact": exact,
    }


def sentence_bleu(decoded: Sequence[str], texts: Sequence[str], langs: Sequence[str]) -> Float64[np.ndarray, " n"]:
    """BLEU of each sentence, 0 to 100: as far as its length has n-grams, so that a short one can reach 100."""
    bleu = _bleu(True)
    pairs = zip(_tokens(decoded, langs), _tokens(texts, langs), strict=True)
    return np.array([bleu.sentence_score(ours, [theirs]).score for ours, theirs in pairs], dtype=np.float64)


def words(text: str) -> int:
    """What stands between blanks."""
    return len(text.split())


def by_length(texts: Sequence[str]) -> list[tuple[int, int | None, list[int]]]:
    """(shortest, longest, places) of the groups that have sentences; the last has no longest. They share out all."""
    groups: list[list[int]] = [[] for _ in BANDS]
    for place, text in enumerate(texts):
        groups[max(0, bisect_right(BANDS, words(text)) - 1)].append(place)
    ends: list[int | None] = [*(start - 1 for start in BANDS[1:]), None]
    return [(start, end, places) for start, end, places in zip(BANDS, ends, groups, strict=True) if places]


def _tokens(texts: Sequence[str], langs: Sequence[str]) -> list[str]:
    return [_tokenizer(TOKENIZERS.get(lang, "13a"))(text.rstrip()) for text, lang in zip(texts, langs, strict=True)]


@cache
def _tokenizer(name: str) -> Any:
    _needed()
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=name).tokenizer


@cache
def _bleu(each_sentence: bool) -> "BLEU":
    _needed()
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize="none", effective_order=each_sentence, force=True)


@cache
def _chrf() -> "CHRF":
    _needed()
    from sacrebleu.metrics import CHRF

    return CHRF()


def _needed() -> None:
    try:
        import sacrebleu  # noqa: F401
    except ImportError as error:
        raise UserError(
            "the codec report needs sacrebleu, which is not here: pip install 'lcm-train[judge]'"
        ) from error
