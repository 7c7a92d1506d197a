"""Pages of scores: report.html of a model and its headline for a terminal; the templates of every evaluation.

page.html is the frame with the style sheet, macros.html has tables, cards, facts, charts. A chart is laid out by `plot`
and drawn as SVG by a macro: no script, and its colors follow the page.
"""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lcm.evaluation.judging_report import information_line
from lcm.evaluation.summaries_report import summary_lines, summary_values
from lcm.evaluation.truth_report import truth_lines, truth_values
from lcm.files import write_result

HERE = Path(__file__).parent
Results = Mapping[str, Any]
Row = Mapping[str, Any]
Points = Sequence[tuple[float, float]]
Marks = list[tuple[float, str]]
"""Positions and labels along an axis."""
CONTINUATIONS = 4
"""Examples shown on the page: the first of examples.jsonl, so that nobody has chosen them."""
METRICS = {
    "l2": "L2",
    "l2_roundtrip": "L2 round trip",
    "l2_gap": "gap",
    "contrastive_accuracy": "Contrastive accuracy",
    "par": "PAR",
}
NAMES = {"model": "the model", "mean": "always the mean", "previous": "the sentence before"}
"""Predictors of the next sentence: the model and its controls."""
GROUPS = {
    "by_position": ("sentences read before", ("l2", "contrastive_accuracy")),
    "by_length": ("words of the sentence", ("l2", "l2_roundtrip")),
}
"""Charts by group: the label of the x axis, and the metrics."""
CURVES = (
    ("loss", "training", "train/loss"),
    ("loss", "validation", "val/loss"),
    ("l2", "validation", "val/l2"),
    ("written", "ROUGE-L of summaries", "val/summaries.rougeL"),
    ("written", "consistent sentences of stories", "val/truth.consistent"),
    ("written", "gists word for word", "val/truth.gist"),
)
"""Chart, series and column of metrics.csv."""


def render(template: Path, values: Mapping[str, object]) -> str:
    """Fill a template, which may extend page.html and import macros.html; every value is escaped.

    Raises jinja2.UndefinedError for a name that is not among `values`.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["plot"] = plot
    environment.filters["thousands"] = "{:,}".format
    return environment.get_template(template.name).render(values)


@dataclass(frozen=True)
class Plot:
    """A line chart in the units of its figure: x to the right, y down.

    lines:   the points of each series by its name; a series without a finite point is left out
    x_marks: labels of the x axis
    y_marks: labels of the y axis, each with a line across
    """

    lines: dict[str, list[tuple[float, float]]]
    x_marks: Marks
    y_marks: Marks
    width: int = 460
    height: int = 240
    left: int = 46
    right: int = 436
    top: int = 12
    bottom: int = 196


def plot(series: Mapping[str, Points], marks: Mapping[float, str] | None = None) -> Plot | None:
    """Lay out one line a series; None where no series has a finite point.

    marks: labels of the x axis by their x; by default round numbers
    """
    lines = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    xs, ys = zip(*(point for points in lines.values() for point in points), strict=True)
    x_labels = marks or _labelled(round_steps(min(xs), max(xs), 6))
    y_labels = _labelled(round_steps(min(ys), max(ys), 5))
    x_of, y_of = _axis([*x_labels, *xs], Plot.left, Plot.right), _axis([*y_labels], Plot.bottom, Plot.top)
    return Plot(
        lines={name: [(x_of(x), y_of(y)) for x, y in points] for name, points in lines.items()},
        x_marks=[(x_of(x), label) for x, label in x_labels.items()],
        y_marks=[(y_of(y), label) for y, label in y_labels.items()],
    )


def _axis(values: Sequence[float], start: int, end: int) -> Callable[[float], float]:
    """The place of a value along an axis on which the smallest of `values` lies at `start`, the largest at `end`."""
    low, high = min(values), max(values)
    return lambda value: round(start + (value - low) / ((high - low) or 1) * (end - start), 1)


def round_steps(low: float, high: float, about: int) -> list[float]:
    """Evenly spaced round numbers, `about` of them, from at most `low` to at least `high`."""
    span = (high - low) or abs(high) or 1.0
    rough = span / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def _labelled(values: Sequence[float]) -> dict[float, str]:
    """Each value with its label, all with as many decimals as the value that needs most."""
    decimals = max(len(f"{value:.10f}".rstrip("0").split(".")[1]) for value in values)
    return {value: f"{value:,.{decimals}f}" for value in values}


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
        "shown": _shown,
        "continuations": [row for row in rows if row["kind"] == "continuation"][:CONTINUATIONS],
        "by_group": [chart for group in GROUPS for chart in _by_group(results, group)],
        "settings_shown": _settings(results),
        **truth_values(results, rows),
        **summary_values(results, rows),
        **_curves(model),
    }
    write_result(path, render(HERE / "report.html", values))


def headline(results: Results) -> str:
    """Format the two tables and the counts for a terminal."""
    lines = [f"{'':20}" + "".join(f"{column:>22}" for column in METRICS.values())]
    for system, scores in _systems(results).items():
        lines.append(f"{NAMES[system]:20}" + "".join(f"{_shown(m, scores[m]):>22}" for m in METRICS))
    if line := information_line(results):
        lines += ["", line]
    lines += summary_lines(results)
    lines += truth_lines(results)
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
    """The losses, the L2 and the scores of texts that training logged, by step; empty where it left no metrics.csv."""
    curves: dict[str, dict[str, Points]] = {chart: {} for chart, _, _ in CURVES}
    path = model / "metrics.csv"
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for chart, name, column in CURVES:
            if curve := [(float(row["step"]), float(row[column])) for row in rows if row.get(column)]:
                curves[chart][name] = curve
    return curves


def _by_group(results: Results, group: str) -> list[tuple[str, str, dict[str, Points], dict[float, str]]]:
    """Charts of the scores by position or length: title, x label, series and the labels of the x axis."""
    rows, (x_label, metrics) = results[group], GROUPS[group]
    spans = [str(row["from"]) if row["from"] == row["to"] else f"{row['from']}–{row['to']}" for row in rows]
    marks = {float(i): span for i, span in enumerate(spans)}
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
        case "par":
            return f"{value:.2f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"
