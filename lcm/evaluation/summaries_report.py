"""The part of a report on summaries: values of summaries.html, and lines for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from lcm.evaluation.judging_report import judged_lines, judged_values
from lcm.scores import ROUGE, rouge_line

Results = Mapping[str, Any]
EXAMPLES = 5
"""Examples shown on the page: the first of examples.jsonl, so that nobody has chosen them."""
WRITERS = {
    "model": "the model, decoded",
    "oracle": "the best of the draws (oracle)",
    "nearest": "the model, by training sentences",
    "source": "the model, by the document's sentences",
    "lead": "the document's beginning",
    "roundtrip": "the reference through the codec",
    "people": "people: the references",
}
"""Writers of summaries: the model and its controls."""


def summary_values(results: Results, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The names that summaries.html and judged.html read."""
    return {
        "rouge": rouge_of(results),
        "rouge_line": rouge_line(results.get("rouge", {})),
        "best_of_line": best_of_line(results),
        "percent": percent,
        "writers": writers(results),
        "summaries": [row for row in rows if row["kind"] == "summary"][:EXAMPLES],
        **judged_values(results),
    }


def summary_lines(results: Results) -> list[str]:
    """A table of ROUGE under the name of its convention, and one of the other scores; nothing without summaries."""
    lines = []
    if results["summaries"]:
        names = rouge_of(results)
        title = f"ROUGE by the convention {results['rouge']['convention']}"
        lines += ["", f"{title:40}" + "".join(f"{name:>12}" for name in names)]
        for system, scores in results["summaries"].items():
            cells = "".join(f"{percent(scores[name]['value']):>12}" for name in names)
            lines.append(f"{writers(results)[system]:40}" + cells)
    notes = [rouge_line(results.get("rouge", {})), best_of_line(results)]
    lines += [part for note in notes if note for part in ("", note)]
    return lines + judged_lines(results, writers(results))


def best_of_line(results: Results) -> str | None:
    """Say what a perfect choice among several draws would gain; None where there was one."""
    if not (found := results.get("best_of")):
        return None
    first, mean, oracle = (f"{percent(found[name]['value'])}" for name in ("first", "mean", "oracle"))
    low, high = percent(found["oracle"]["low"]), percent(found["oracle"]["high"])
    return (
        f"Best of {found['draws']}: ROUGE-L of the first draw {first}, of all on average {mean}, of the best, chosen "
        f"by the reference, {oracle} ({low} to {high})"
    )


def writers(results: Results) -> dict[str, str]:
    """The names of writers; of predictions that were made elsewhere there is no model that we decoded."""
    return {**WRITERS, "model": "the predictions"} if "predictions" in results else WRITERS


def rouge_of(results: Results) -> dict[str, str]:
    """The ROUGE scores that the convention has, with their names on the page."""
    known: Results = next(iter(results["summaries"].values()), {})
    return {name: name.replace("rouge", "ROUGE-") for name in ROUGE if name in known}


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
