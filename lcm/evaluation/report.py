"""results.json as a page to read (report.html), and its headline for a terminal."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcm.evaluation.metrics import ROUGE
from lcm.evaluation.output import Points, render

Results = Mapping[str, Any]
Row = Mapping[str, Any]
SUMMARIES, CONTINUATIONS = 5, 4
"""Examples shown on the page: the first of examples.jsonl, so that nobody has chosen them."""

METRICS = {"l2": "L2", "l2_roundtrip": "L2 round trip", "contrastive_accuracy": "Contrastive accuracy", "par": "PAR"}
NAMES = {"model": "the model", "mean": "always the mean", "previous": "the sentence before"}
"""Predictors of the next sentence: the model and its controls."""
WRITERS = {
    "model": "the model, decoded",
    "nearest": "the model, as nearest real sentences",
    "lead": "the document's beginning",
    "roundtrip": "the reference through the codec",
}
"""Writers of summaries: the model and its controls."""
GROUPS = {
    "by_position": ("sentences read before", ("l2", "contrastive_accuracy")),
    "by_length": ("words of the sentence", ("l2", "l2_roundtrip")),
}
"""Charts by group: the label of the x axis, and the metrics."""
STOPPED = {
    "end": "said that the text is over",
    "repetition": "repeated itself",
    "length": "reached the longest allowed",
}


def write_report(path: Path, results: Results, rows: Sequence[Row], model: Path) -> None:
    """Write the page for these results and the lines of examples.jsonl.

    model: folder of the run; if it holds a metrics.csv, the page shows its loss curves
    """
    values = {
        "name": model.resolve().name,
        "results": results,
        "systems": _systems(results),
        "verdict": _verdict(results),
        "metrics": METRICS,
        "names": NAMES,
        "rouge": ROUGE,
        "writers": WRITERS,
        "stopped": STOPPED,
        "shown": _shown,
        "continuations": [row for row in rows if row["kind"] == "continuation"][:CONTINUATIONS],
        "summaries": [row for row in rows if row["kind"] == "summary"][:SUMMARIES],
        "by_group": [chart for group in GROUPS for chart in _by_group(results, group)],
        "settings_shown": _settings(results),
        **_curves(model),
    }
    path.write_text(render(Path(__file__).with_name("report.html"), values), encoding="utf-8")


def headline(results: Results) -> str:
    """Format the two tables and the counts for a terminal."""
    lines = [f"{'':20}" + "".join(f"{column:>22}" for column in METRICS.values())]
    for system, scores in _systems(results).items():
        lines.append(f"{NAMES[system]:20}" + "".join(f"{_shown(m, scores[m]):>22}" for m in METRICS))
    if results["summaries"]:
        lines += ["", f"{'':40}" + "".join(f"{name:>12}" for name in ROUGE)]
        for system, scores in results["summaries"].items():
            cells = "".join(f"{_shown('rouge', scores[name]['value']):>12}" for name in ROUGE)
            lines.append(f"{WRITERS[system]:40}" + cells)
    counts = results["counts"]
    return "\n".join([*lines, "", f"scored {counts['scored']:,}, failed {counts['failed']:,}"])


def _verdict(results: Results) -> str:
    """Compare the model with the better control in one sentence."""
    systems = _systems(results)
    parts = []
    for metric, sign in (("l2", -1), ("contrastive_accuracy", 1)):
        best = max(results["controls"], key=lambda name: sign * (systems[name][metric] or 0))
        ours, theirs = systems["model"][metric], systems[best][metric]
        word = "beats" if sign * (ours or 0) > sign * (theirs or 0) else "does not beat"
        numbers = f"{_shown(metric, ours)} against {_shown(metric, theirs)}"
        parts.append(f"in {METRICS[metric]} the model {word} '{NAMES[best]}' ({numbers})")
    return f"Against the better of two controls that have learned nothing: {'; '.join(parts)}."


def _curves(model: Path) -> dict[str, dict[str, Points]]:
    """The losses and the L2 that training logged, by step; empty where it left no metrics.csv."""
    path = model / "metrics.csv"
    rows = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))

    def points(columns: Mapping[str, str]) -> dict[str, Points]:
        series = {
            name: [(float(row["step"]), float(row[column])) for row in rows if row.get(column)]
            for name, column in columns.items()
        }
        return {name: curve for name, curve in series.items() if curve}

    losses = {"training": "train/loss", "validation": "val/loss"}
    return {"loss": points(losses), "l2": points({"validation": "val/l2"})}


def _by_group(results: Results, group: str) -> list[tuple[str, str, dict[str, Points], dict[float, str]]]:
    """Charts of the scores by position or length: title, x label, series and the labels of the x axis."""
    rows = results[group]
    x_label, metrics = GROUPS[group]
    marks = {float(i): _range(row) for i, row in enumerate(rows)}
    charts = []
    for metric in metrics:
        series: dict[str, Points] = {
            label: [(float(i), row[system][metric]) for i, row in enumerate(rows) if row[system][metric] is not None]
            for system, label in NAMES.items()
        }
        charts.append((f"{METRICS[metric]}, by {x_label}", x_label, series, marks))
    return charts


def _settings(results: Results) -> dict[str, str]:
    shown = {**results["settings"], "codec": results["codec"]["fingerprint"], "mean of": results["mean_of"]}
    shown["bank"] = f"{results['bank']['sentences']:,} sentences"
    shown |= {f"{stage}, seconds": value for stage, value in results["seconds"].items()}
    return {name: ", ".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for name, v in shown.items()}


def _systems(results: Results) -> dict[str, Mapping[str, float | None]]:
    return {"model": results["teacher_forced"], **results["controls"]}


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    match metric:
        case "contrastive_accuracy":
            return f"{100 * value:.1f}%"
        case "rouge":
            return f"{100 * value:.1f}"
        case "par" | "ratio":
            return f"{value:.2f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _range(row: Row) -> str:
    return str(row["from"]) if row["from"] == row["to"] else f"{row['from']}–{row['to']}"
