"""The part of the report on scores beside ROUGE: values of judged.html, and lines for a terminal."""

from collections.abc import Mapping
from typing import Any

ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
"""The good direction of a score."""
IN_TERMINAL = ("rep4", "ovl3", "novelty", "compression")
"""Scores by counting in a terminal; the page has all."""


def judged_values(results: Mapping[str, Any]) -> dict[str, Any]:
    """The names that judged.html reads; `judged` is empty where no text was scored."""
    scores = results.get("scores", {})
    return {
        "judged": rows_of(results),
        "scores": scores,
        "judged_heads": {name: head(name, about) for name, about in scores.items()},
        "judged_notes": results.get("notes", []),
        "judged_shown": shown,
        "information_line": information_line(results),
    }


def judged_lines(results: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """A table, one row a system and one column a score, and the notes below; nothing without texts.

    names: what the terminal calls each system
    """
    table, scores = rows_of(results), results.get("scores", {})
    columns = [name for name, about in scores.items() if name in IN_TERMINAL or "weights" in about]
    if not table:
        return []
    lines = ["", f"{'':40}" + "".join(f"{head(name, scores[name]):>14}" for name in columns)]
    for system, found in table.items():
        cells = "".join(f"{shown(found.get(name, {}).get('value')):>14}" for name in columns)
        lines.append(f"{names.get(system, system):40}{cells}")
    return [*lines, *results.get("notes", [])]


def information_line(results: Mapping[str, Any]) -> str | None:
    """The mutual information of the model's sentences beside that of the true ones; None where it was not asked for."""
    found = results.get("mutual_information")
    if not found:
        return None
    model, truth = (shown(found[writer]["value"]) for writer in ("model", "truth"))
    count = f"{found['sentences']:,} sentences by {found['weights']}"
    return (
        f"mutual information with the ten sentences before: {model} nats a token, of true sentences {truth} ({count})"
    )


def rows_of(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The scored systems, and the people whose texts are the references."""
    return {**results["summaries"], "people": results["people"]} if results.get("scores") else {}


def head(name: str, about: Mapping[str, str]) -> str:
    """A score's name with an arrow in its good direction."""
    return f"{name} {ARROWS[about['better']]}".strip()


def shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3f}"
