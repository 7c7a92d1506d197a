"""Scores by counting n-grams, of a prediction alone or beside its document; no model.

REP-4 and OVL-3 are the LCM paper's (§3.1.1), each in two readings: that of its text, in words, and that of its code,
in characters, whose values its tables have.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from math import isnan

from lcm.scores.rows import Measure

HUMAN_REP4 = 0.0192
"""REP-4 that 95% of XSum's own summaries stay below (arXiv 2607.00588)."""
OVERLAP: Mapping[str, Measure] = {
    "rep4": Measure("LCM paper §3.1.1; Welleck et al. 2019", "share of word 4-grams that occurred before", "lower"),
    "rep4_over_human": Measure(
        "arXiv 2607.00588", f"share of texts with rep4 over {HUMAN_REP4:.2%}: of people's, one in twenty", "lower"
    ),
    "rep4_characters": Measure(
        "code of the LCM paper", "all / distinct - 1 of the 1- to 4-grams of characters", "lower", "0 and over"
    ),
    "ovl3": Measure("LCM paper §3.1.1", "share of the document's word 3-grams that the text has", "neither"),
    "ovl3_characters": Measure(
        "code of the LCM paper", "share of the document's 1- to 4-grams of characters that the text has", "neither"
    ),
    "novelty": Measure("See et al. 2017", "share of the text's word 2-grams that the document lacks", "neither"),
    "compression": Measure("Grusky et al. 2018", "words of the document for one of the text", "neither", "0 and over"),
    "word_ratio": Measure("LCM paper, WR", "words of the text for one of the document", "neither", "0 and over"),
}
"""The scores by counting. Words are in lower case and not stemmed."""
NAN = float("nan")


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every run of n tokens, in order; none where the text is shorter."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def rep4(words: Sequence[str]) -> float:
    """Share of the 4-grams that occurred before: 1 − distinct / all (Welleck et al. 2019); `HUMAN_REP4` is people's.

    NaN for fewer than four words.
    """
    found = ngrams(words, 4)
    return 1 - len(set(found)) / len(found) if found else NAN


def ovl3(document: Sequence[str], words: Sequence[str]) -> float:
    """Share of the document's distinct word 3-grams that the prediction has. NaN for a document without one."""
    source = set(ngrams(document, 3))
    return len(source & set(ngrams(words, 3))) / len(source) if source else NAN


def novelty(document: Sequence[str], words: Sequence[str]) -> float:
    """Share of the prediction's distinct 2-grams that the document does not have (See et al. 2017). NaN without one."""
    written = set(ngrams(words, 2))
    return len(written - set(ngrams(document, 2))) / len(written) if written else NAN


def _characters(text: str) -> list[tuple[str, ...]]:
    return list(chain.from_iterable(ngrams(text, n) for n in range(1, 5)))


def rep4_characters(text: str) -> float:
    """All / distinct − 1 of the 1- to 4-grams of characters: `repetition_4` in the code of the LCM paper."""
    found = _characters(text)
    return len(found) / len(set(found)) - 1 if found else NAN


def ovl3_characters(document: str, text: str) -> float:
    """Share of the document's distinct 1- to 4-grams of characters that the prediction has: the code's overlap."""
    source = set(_characters(document))
    return len(source & set(_characters(text))) / len(source) if source else NAN


def overlap_scores(document: str, text: str, words: Sequence[str], source: Sequence[str]) -> Mapping[str, float]:
    """Every score of `OVERLAP` for one prediction, given as text and as words, beside its document.

    compression: words of the document for one of the prediction (Grusky et al. 2018); word_ratio: its inverse, WR of
    the LCM paper. Each is NaN where it would divide by zero.
    """
    repeated = rep4(words)
    return {
        "rep4": repeated,
        "rep4_over_human": NAN if isnan(repeated) else float(repeated > HUMAN_REP4),
        "rep4_characters": rep4_characters(text),
        "ovl3": ovl3(source, words),
        "ovl3_characters": ovl3_characters(document, text),
        "novelty": novelty(source, words) if source else NAN,
        "compression": len(source) / len(words) if source and words else NAN,
        "word_ratio": len(words) / len(source) if source else NAN,
    }
