"""The part of the report on stories whose truth is known: values of truth.html, and lines for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = {"grammatical": "grammatical", "consistent": "consistent", "recall": "recall", "ends": "ends well"}
TALES = 10
"""Continuations on the page."""


def truth_values(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The names that truth.html reads; `truth` is empty where no story was judged."""
    truth = results.get("truth", {})
    values: dict[str, Any] = {"truth": truth, "tales": [row for row in rows if row["kind"] == "tale"][:TALES]}
    if "truth" in truth:
        levels = list(truth["truth"]["by_level"])
        values["recall"] = {
            name: [(float(d), 100 * share["value"]) for d, share in truth[system]["by_distance"].items()]
            for system, name in (("model", "the model"), ("truth", "the truth"))
        }
        values["by_level"] = {
            name: [(float(i), 100 * truth[system]["by_level"][level]["value"]) for i, level in enumerate(levels)]
            for system, name in (("model", "the model"), ("random", "a random sentence"))
            if len(levels) > 1
        }
        values["level_marks"] = {float(i): level for i, level in enumerate(levels)}
    return values


def truth_lines(results: Mapping[str, Any]) -> list[str]:
    """A table of percentages, one row a system, and a line for gists and expansions; nothing without stories."""
    truth = results.get("truth", {})
    lines = []
    if "truth" in truth:
        lines = ["", f"{'':20}" + "".join(f"{name:>14}" for name in (*COLUMNS.values(), "distance", "coverage"))]
        for system, scores in truth.items():
            shares = "".join(f"{_percent(scores[name]['value']):>14}" for name in COLUMNS)
            rest = f"{scores['calibration']['value']:>14.3f}{_percent(scores['coverage']['value']):>14}"
            lines.append(f"{system:20}{shares}{rest}")
    for kind, score in (("gist", "word_for_word"), ("expansion", "gist")):
        if kind in truth.get("model", {}):
            found = truth["model"][kind]
            lines.append(f"{found['count']:,} {kind}s: {_percent(found[score]['value'])} right")
    return lines


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"
