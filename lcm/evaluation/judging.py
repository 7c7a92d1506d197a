"""Scores of texts: ROUGE, n-grams, and the judges that were asked for; each of every system and of people.

Shapes.  n rows
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float64

from lcm.ledger import Ledger
from lcm.scores import (
    CONVENTIONS,
    HUMAN_REP4,
    JUDGES,
    OVERLAP,
    ROUGE,
    Asked,
    Convention,
    Row,
    judge,
    length_ratio,
    mauve,
    mean_of_texts,
    overlap_scores,
    perplexity,
    rouge_record,
    rouge_scores,
    words_of,
)

MI = "mi"
"""The judge of next sentences, not of texts."""
PEOPLE = "people"
"""The references themselves, judged like a system: what a score is worth is seen beside theirs."""
Systems = Mapping[str, Sequence[Row]]
Values = Mapping[str, Float64[np.ndarray, " n"]]
"""The numbers of one score by system, one a row; NaN where it is not scored."""


@dataclass(frozen=True)
class Judged:
    """The scores of all systems, those of people among them.

    table:  the means by system and score, with intervals
    single: the number of each row, by system and score
    scores: a description of each score beside ROUGE
    rouge:  the convention of ROUGE, its tokens, and the rows that they cannot read
    notes:  what a reader of the scores must know
    """

    table: dict[str, dict[str, Any]] = field(default_factory=dict)
    single: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    rouge: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def results(self) -> dict[str, Any]:
        """Entries of results.json."""
        if not self.table:
            return {"summaries": {}}
        summaries = {system: found for system, found in self.table.items() if system != PEOPLE}
        about = {"scores": self.scores, "rouge": self.rouge, "notes": self.notes}
        return {"summaries": summaries, "people": self.table[PEOPLE], **about}

    def of_row(self, number: int) -> dict[str, dict[str, dict[str, float]]]:
        """The scores of one row, ROUGE and others, of every system; people's are those of its first reference."""
        single = {
            system: {name: numbers[number] for name, numbers in found.items()} for system, found in self.single.items()
        }
        return {
            "rouge": {system: {n: v for n, v in of.items() if n in ROUGE} for system, of in single.items()},
            "scores": {system: {n: v for n, v in of.items() if n not in ROUGE} for system, of in single.items()},
        }


@dataclass(frozen=True)
class Panel:
    """The judges of an evaluation.

    asked:      those by models of others, loaded one after the other
    lang:       language of the texts, which says what a word is
    convention: rules of ROUGE
    """

    asked: Sequence[Asked]
    lang: str
    samples: int
    seed: int
    convention: Convention = CONVENTIONS["lcm"]

    def judge(self, systems: Systems, ledger: Ledger) -> Judged:
        """Score the texts of all systems, and of people: the first reference of each row, beside the others if any.

        The ledger counts what the judges cannot judge, or read in part.
        """
        rows = next(iter(systems.values()))
        of_people = [replace(row, prediction=row.references[0], references=row.references[1:]) for row in rows]
        everyone: Systems = {**systems, PEOPLE: of_people}
        found = Judged(notes=notes(self.asked, len(rows)))
        self._add_rouge(found, everyone if any(row.references for row in of_people) else systems, ledger)
        systems, everyone = _plain(systems), _plain(everyone)
        counted = {system: overlaps(rows, self.lang) for system, rows in everyone.items()}
        for name, measure in OVERLAP.items():
            found.scores[name] = asdict(measure)
            self._enter(found, name, {system: scores[name] for system, scores in counted.items()})
        found.scores["rep4"]["human_bar"] = HUMAN_REP4
        for one in (one for one in self.asked if one.name != MI):
            print(f"judging texts by {one.name}: {one.given}", file=sys.stderr)
            found.scores[one.name] = one.record()
            if one.name == "mauve":
                self._add_mauve(found, one, systems, ledger)
            else:
                alone = JUDGES[one.name].reads == "references" and not any(row.references for row in of_people)
                self._enter(found, one.name, judge(one, systems if alone else everyone, ledger))
        return found

    def _enter(self, found: Judged, name: str, values: Values) -> None:
        """Enter a score of single rows. A row that is not scored is in no mean of its system."""
        for system, numbers in values.items():
            found.table.setdefault(system, {})[name] = asdict(mean_of_texts(numbers, self.samples, self.seed))
            found.single.setdefault(system, {})[name] = numbers.tolist()

    def _add_rouge(self, found: Judged, systems: Systems, ledger: Ledger) -> None:
        """ROUGE of every system, with the ratio of lengths; what it cannot read is counted once, not by system."""
        scores = {system: rouge_scores(rows, self.lang, self.convention) for system, rows in systems.items()}
        first = next(iter(systems))
        found.rouge.update(record := rouge_record(systems[first], scores[first], self.lang, self.convention))
        if record["not_scored"]:
            ledger.add("reference without words for ROUGE", record["first_not_scored"], record["not_scored"])
        for name in self.convention.scores:
            self._enter(found, name, {system: of[name] for system, of in scores.items()})
        for system, rows in systems.items():
            found.table[system]["length_ratio"] = length_ratio(rows, self.lang)

    def _add_mauve(self, found: Judged, asked: Asked, systems: Systems, ledger: Ledger) -> None:
        features = mauve.Features(asked.weights)
        for system, rows in systems.items():
            result = mauve.compare(features, [row.references[0] for row in rows], [row.prediction for row in rows])
            if result is None:
                ledger.add("fewer than two texts for MAUVE", system)
            else:
                found.table[system]["mauve"] = result.stored


def _plain(systems: Systems) -> Systems:
    """Texts with a single blank between words: only ROUGE tells lines apart, as its convention says."""

    def plain(text: str) -> str:
        return " ".join(text.split())

    return {
        name: [
            Row(row.id, plain(row.document), tuple(map(plain, row.references)), plain(row.prediction)) for row in rows
        ]
        for name, rows in systems.items()
    }


def judge_summaries(panel: Panel, systems: Systems, written: Sequence[dict[str, Any]], ledger: Ledger) -> Judged:
    """Judge the summaries of all systems, and enter the numbers of each in its line of examples.jsonl."""
    if not systems:
        return Judged()
    found = panel.judge(systems, ledger)
    for number, line in enumerate(written):
        line |= found.of_row(number)
    return found


def overlaps(rows: Sequence[Row], lang: str) -> Values:
    """Every score of `OVERLAP` for each row. Words are those of the language; without any, only characters count."""
    cut = words_of(lang)
    every = [overlap_scores(r.document, r.prediction, cut(r.prediction), cut(r.document)) for r in rows]
    return {name: np.array([scores[name] for scores in every]) for name in OVERLAP}


def notes(asked: Sequence[Asked], rows: int) -> list[str]:
    """Lines that a reader of the scores must see: that perplexity can be cheated, that MAUVE wants more texts."""
    names = {one.name for one in asked}
    lines = [perplexity.WARNING] if "perplexity" in names else []
    if "mauve" in names and rows < mauve.MEANT:
        lines.append(f"MAUVE of {rows:,} texts: meant for {mauve.MEANT:,}; compare only at the same k, n and lengths")
    return lines
