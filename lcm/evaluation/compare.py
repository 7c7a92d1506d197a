"""Two evaluations of the same test set, example by example: `lcm compare RUN_A RUN_B`.

Differences are B less A, with 95% intervals of a paired bootstrap: examples are resampled, and both runs' numbers of an
example stay together, so that what makes an example hard for both does not widen the interval.

Shapes.  n examples that both have
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from lcm.errors import UserError, in_one_line
from lcm.scores import ROUGE, paired_bootstrap

FORCED = {"l2": "lower", "l2_roundtrip": "lower", "contrastive_accuracy": "higher", "par": "neither"}
"""Scores of predicted sentences, weighted by the sentences of each document, and which direction is good."""
TRUTH = ("grammatical", "consistent")
"""Scores of continued stories, weighted by their sentences."""
Rows = dict[str, dict[str, Any]]
"""Lines of examples.jsonl by id."""
Values = Mapping[str, tuple[float, float]]
"""One score of a run: value and weight, by example."""


@dataclass(frozen=True)
class Run:
    """An evaluation, read from its folder. kinds: the lines of examples.jsonl of each kind, by id"""

    name: str
    results: dict[str, Any]
    kinds: dict[str, Rows]

    @staticmethod
    def read(folder: str) -> "Run":
        """Raises UserError where the folder does not hold an evaluation of this version."""
        place = Path(folder)
        for name in ("results.json", "examples.jsonl"):
            if not (place / name).is_file():
                raise UserError(f"{folder}: no {name} there; expected a folder that lcm evaluate --output wrote")
        results, lines = ((place / name).read_text(encoding="utf-8") for name in ("results.json", "examples.jsonl"))
        try:
            rows = [json.loads(line) for line in lines.splitlines()]
            kinds: dict[str, Rows] = {}
            for row in rows:
                kinds.setdefault("forced" if "l2" in row else row["kind"], {})[row["id"]] = row
            return Run(place.resolve().name, json.loads(results), kinds)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder}: results.json or examples.jsonl is damaged ({error}); evaluate again") from error

    def values(self) -> dict[str, tuple[str, Values]]:
        """Every score of single examples: the direction that is good, and its numbers."""
        found: dict[str, dict[str, tuple[float, float]]] = {}
        directions: dict[str, str] = {}

        def enter(name: str, better: str, key: str, value: float | None, weight: int) -> None:
            directions[name] = better
            if value is not None and weight:
                found.setdefault(name, {})[key] = float(value), float(weight)

        about = self.results.get("scores", {})
        for key, row in self.kinds.get("summary", {}).items():
            for name, value in {**row["rouge"]["model"], **row["scores"]["model"]}.items():
                enter(name, "higher" if name in ROUGE else about[name]["better"], key, value, 1)
        for key, row in self.kinds.get("tale", {}).items():
            for name in TRUTH:
                enter(f"truth.{name}", "higher", key, row["scores"][name], row["scores"]["sentences"])
        for key, row in self.kinds.get("forced", {}).items():
            for name, better in FORCED.items():
                enter(name, better, key, row.get(name), row["sentences"])
        return {name: (directions[name], numbers) for name, numbers in found.items()}


@dataclass(frozen=True)
class Difference:
    """One score of both runs, over the examples that both have.

    a, b:       means
    difference: b − a, with the 95% interval low to high
    p:          how likely so large a difference is where there is none: twice the smaller share of resampled
                differences on one side of 0
    wins:       examples of which B is better; losses, of which A is. None where no direction is good
    """

    better: str
    examples: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    wins: int | None
    losses: int | None
    ties: int | None


@dataclass(frozen=True)
class Comparison:
    """scores: of examples that both have. only_a, only_b: examples of one run alone. left_out: scores, and why"""

    a: Run
    b: Run
    scores: dict[str, Difference]
    only_a: int
    only_b: int
    left_out: dict[str, str]

    @property
    def stored(self) -> dict[str, Any]:
        """The content of compare.json."""
        names = {"a": self.a.name, "b": self.b.name, "only_a": self.only_a, "only_b": self.only_b}
        return {**names, "scores": {n: vars(s) for n, s in self.scores.items()}, "left_out": self.left_out}


@in_one_line()
def compare(folder_a: str, folder_b: str, samples: int = 10_000, seed: int = 0) -> Comparison:
    """Compare two evaluations by every score. Raises UserError where they have another test set or convention."""
    a, b = Run.read(folder_a), Run.read(folder_b)
    _check_same_test(a, b)
    ours, theirs = a.values(), b.values()
    left_out = dict(_not_comparable(a, b, sorted(ours.keys() | theirs.keys())))
    scores = {}
    for name, (better, values) in ours.items():
        if name not in left_out and (common := [key for key in values if key in theirs[name][1]]):
            pairs = np.array([(*values[key], *theirs[name][1][key]) for key in common])
            scores[name] = difference(better, pairs, samples, seed)
    keys_a, keys_b = ({(kind, key) for kind, rows in run.kinds.items() for key in rows} for run in (a, b))
    if not scores:
        raise UserError(f"{folder_a} and {folder_b}: have no scored example in common; evaluate both on the same data")
    return Comparison(a, b, scores, len(keys_a - keys_b), len(keys_b - keys_a), left_out)


def difference(better: str, pairs: Float64[np.ndarray, "n 4"], samples: int, seed: int) -> Difference:
    """pairs: value and weight of A, then of B, for each example."""
    a, weight_a, b, weight_b = pairs.T
    found = paired_bootstrap(a * weight_a, weight_a, b * weight_b, weight_b, samples, seed)
    sign = {"higher": 1, "lower": -1}.get(better)
    gains = None if sign is None else np.sign(sign * (b - a))
    wins, losses, ties = (None if gains is None else int((gains == value).sum()) for value in (1, -1, 0))
    return Difference(
        better, len(pairs), found.a, found.b, found.b - found.a, found.low, found.high, found.p, wins, losses, ties
    )


def _check_same_test(a: Run, b: Run) -> None:
    """Raises UserError for another convention of ROUGE, and for an example of one id and two references."""
    conventions = [run.results.get("rouge", {}).get("convention") for run in (a, b)]
    if None not in conventions and conventions[0] != conventions[1]:
        raise UserError(
            f"{a.name} was scored by --convention {conventions[0]}, {b.name} by {conventions[1]}, and their scores are "
            "not comparable; evaluate one of them again"
        )
    for kind, rows in a.kinds.items():
        others = b.kinds.get(kind, {})
        for key in rows.keys() & others.keys():
            if any(rows[key].get(part) != others[key].get(part) for part in ("reference", "others")):
                raise UserError(f"{key}: has one reference in {a.name} and another in {b.name}; expected one test set")


def _not_comparable(a: Run, b: Run, names: Sequence[str]) -> Sequence[tuple[str, str]]:
    """Scores that only one run has, distances in the spaces of two codecs, judges with other weights."""
    found = []
    mine, theirs = a.values(), b.values()
    codecs = [run.results.get("codec", {}).get("fingerprint") for run in (a, b)]
    for name in names:
        if name not in mine or name not in theirs:
            found.append((name, f"only {(b if name not in mine else a).name} has it"))
        elif name in FORCED and codecs[0] != codecs[1]:
            found.append((name, "their codecs differ, and so do their spaces"))
        elif a.results.get("scores", {}).get(name) != b.results.get("scores", {}).get(name):
            found.append((name, "it was measured with other weights or settings"))
    return found
