"""The report of predictions that were made elsewhere: its page, and lines for a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcm.evaluation.report import HERE, render
from lcm.evaluation.summaries_report import summary_lines, summary_values
from lcm.files import write_result


def write_page(path: Path, results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the page for these results and the lines of examples.jsonl."""
    shown = {**results["settings"], **{f"{stage}, seconds": value for stage, value in results["seconds"].items()}}
    values = {
        "name": results["predictions"]["file"],
        "results": results,
        "settings_shown": {name: " ".join(v) if isinstance(v, list) else str(v) for name, v in shown.items()},
        **summary_values(results, rows),
    }
    write_result(path, render(HERE / "predictions.html", values))


def predictions_headline(results: Mapping[str, Any]) -> str:
    """Format the tables and the counts for a terminal."""
    counts = results["counts"]
    return "\n".join([*summary_lines(results)[1:], "", f"scored {counts['scored']:,}, failed {counts['failed']:,}"])
