"""Scores of texts beside ROUGE: n-grams of all, and the judges that were asked for; each of every system and of people.

Shapes.  n rows
"""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float64

from lcm.evaluation.examples import Example
from lcm.evaluation.scoring import bootstrap
from lcm.evaluation.tokens import CHARACTERS, UNREADABLE, characters, words
from lcm.ledger import Ledger
from lcm.scores import HUMAN_REP4, JUDGES, OVERLAP, Asked, Row, judge, mauve, overlap_scores, perplexity

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
    scores: a description of each score
    notes:  what a reader of the scores must know
    """

    table: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    single: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def results(self, table: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Entries of results.json. table: the scores that the systems have already, such as ROUGE"""
        summaries = {system: {**found, **self.table.get(system, {})} for system, found in table.items()}
        about = {"people": self.table.get(PEOPLE, {}), "scores": self.scores, "notes": self.notes} if table else {}
        return {"summaries": summaries, **about}

    def of_row(self, number: int) -> dict[str, dict[str, float]]:
        """The scores of one row of every system, for examples.jsonl; people's are those of its first reference."""
        return {
            system: {name: numbers[number] for name, numbers in found.items()} for system, found in self.single.items()
        }


@dataclass(frozen=True)
class Panel:
    """The judges of an evaluation.

    asked: those by models of others, loaded one after the other
    lang:  language of the texts, which says what a word is
    """

    asked: Sequence[Asked]
    lang: str
    samples: int
    seed: int

    def judge(self, systems: Systems, ledger: Ledger) -> Judged:
        """Score the texts of all systems, and of people: the first reference of each row, beside the others if any.

        The ledger counts what the judges cannot judge, or read in part.
        """
        rows = next(iter(systems.values()))
        of_people = [replace(row, prediction=row.references[0], references=row.references[1:]) for row in rows]
        everyone = {**systems, PEOPLE: of_people}
        found = Judged(notes=notes(self.asked, len(rows)))
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
            is_scored = (~np.isnan(numbers)).astype(np.float64)
            interval = bootstrap(np.nan_to_num(numbers), is_scored, self.samples, self.seed)
            found.table.setdefault(system, {})[name] = asdict(interval)
            found.single.setdefault(system, {})[name] = numbers.tolist()

    def _add_mauve(self, found: Judged, asked: Asked, systems: Systems, ledger: Ledger) -> None:
        features = mauve.Features(asked.weights)
        for system, rows in systems.items():
            result = mauve.compare(features, [row.references[0] for row in rows], [row.prediction for row in rows])
            if result is None:
                ledger.add("fewer than two texts for MAUVE", system)
            else:
                found.table[system]["mauve"] = result.stored


def judge_summaries(
    panel: Panel,
    pairs: Sequence[Example],
    systems: Collection[str],
    written: Sequence[dict[str, Any]],
    ledger: Ledger,
) -> Judged:
    """Judge the summaries of all systems, and enter the numbers of each in its row of examples.jsonl."""
    if not pairs:
        return Judged()
    texts = [(pair.id, " ".join(pair.document), (" ".join(pair.answer),)) for pair in pairs]
    rows = {
        system: [Row(*text, " ".join(row[system])) for text, row in zip(texts, written, strict=True)]
        for system in systems
    }
    found = panel.judge(rows, ledger)
    for number, row in enumerate(written):
        row["scores"] = found.of_row(number)
    return found


def overlaps(rows: Sequence[Row], lang: str) -> Values:
    """Every score of `OVERLAP` for each row. Words are those of the language; without any, only characters count."""
    cut = words_of(lang)
    every = [overlap_scores(r.document, r.prediction, cut(r.prediction), cut(r.document)) for r in rows]
    return {name: np.array([scores[name] for scores in every]) for name in OVERLAP}


def words_of(lang: str) -> Callable[[str], list[str]]:
    """The words of a language by its FLORES code: runs of letters, or characters; none where no blanks part them."""
    script = lang.rpartition("_")[2]
    if script in UNREADABLE:
        return lambda text: []
    return characters if script in CHARACTERS else words


def notes(asked: Sequence[Asked], rows: int) -> list[str]:
    """Lines that a reader of the scores must see: that perplexity can be cheated, that MAUVE wants more texts."""
    names = {one.name for one in asked}
    lines = [perplexity.WARNING] if "perplexity" in names else []
    if "mauve" in names and rows < mauve.MEANT:
        lines.append(f"MAUVE of {rows:,} texts: meant for {mauve.MEANT:,}; compare only at the same k, n and lengths")
    return lines
