"""ROUGE of predictions beside their references, by one of the `CONVENTIONS`; what cannot be read is not scored.

Shapes.  n rows
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from lcm.scores.conventions import CONVENTIONS, ROUGE, Convention
from lcm.scores.rows import Row
from lcm.scores.tokens import Tokens, tokens_of

LCM = CONVENTIONS["lcm"]


def rouge_scores(
    rows: Sequence[Row], lang: str = "eng_Latn", convention: Convention = LCM
) -> dict[str, Float64[np.ndarray, " n"]]:
    """The F measure of each row in [0, 1], by the convention's names of scores.

    NaN, never 0, for a row without a reference that the convention's tokens can read.
    """
    from rouge_score.rouge_scorer import RougeScorer

    found = {name: np.full(len(rows), np.nan) for name in convention.scores}
    if (tokens := convention.tokens(lang)) is None:
        return found
    scorer = RougeScorer(list(convention.scores), tokenizer=tokens)
    for i, row in enumerate(rows):
        prediction = convention.prediction(row.prediction)
        every = [scorer.score(target=reference, prediction=prediction) for reference in _read(row, tokens, convention)]
        for name in convention.scores if every else ():
            values = [scores[name].fmeasure for scores in every]
            found[name][i] = np.mean(values) if convention.several == "mean" else max(values)
    return found


def _read(row: Row, tokens: Tokens, convention: Convention) -> list[str]:
    """The references of a row that the convention compares with, and its tokens can read."""
    references = row.references[:1] if convention.several == "first" else row.references
    return [text for text in map(convention.reference, references) if tokens.read(text)]


def rouge_record(
    rows: Sequence[Row],
    scores: Mapping[str, Float64[np.ndarray, " n"]],
    lang: str = "eng_Latn",
    convention: Convention = LCM,
) -> dict[str, Any]:
    """The entry `rouge` of results.json: convention and tokens, and the rows without a reference that they can read.

    scores: what `rouge_scores` found for these rows
    """
    tokens = convention.tokens(lang)
    unread = [row.id for row, value in zip(rows, scores[ROUGE[0]], strict=True) if np.isnan(value)]
    return {
        "convention": convention.name,
        "source": convention.source,
        "rule": convention.rule,
        "tokens": tokens.name if tokens else None,
        "lang": lang,
        "scored": len(rows) - len(unread),
        "not_scored": len(unread),
        "first_not_scored": unread[0] if unread else None,
    }


def rouge_line(record: Mapping[str, Any]) -> str | None:
    """Say what a person must know of ROUGE: that some summaries, or all, are not scored; None where all are."""
    if not record.get("not_scored"):
        return None
    total = record["scored"] + record["not_scored"]
    if record["tokens"] is None:
        return f"ROUGE: no summary of {total:,} is scored: {record['lang']} has no blanks between words to cut at"
    why = f"their references have no words that the tokens '{record['tokens']}' of {record['lang']} read"
    return f"ROUGE: {record['not_scored']:,} of {total:,} summaries not scored, {why} ({record['first_not_scored']}, …)"


def length_ratio(rows: Sequence[Row], lang: str = "eng_Latn") -> float:
    """Words of all predictions divided by words of all references; in Chinese and Japanese, characters.

    Several references of a row count by their mean length.
    """
    if (tokens := tokens_of(lang)) is None:
        return float("nan")
    written = sum(tokens.count(row.prediction) for row in rows)
    wanted = sum(float(np.mean([tokens.count(text) for text in row.references])) for row in rows if row.references)
    return written / wanted if wanted else float("nan")
