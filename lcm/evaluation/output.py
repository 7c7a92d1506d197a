"""Output of every evaluation: its folder, the seconds of its stages, numbers for JSON, and pages from templates.

page.html is the frame with the style sheet, macros.html has tables, cards, facts, charts. A chart is laid out by `plot`
and drawn as SVG by a macro: no script, and its colors follow the page.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lcm.errors import UserError


@dataclass
class Stages:
    """A stopwatch that announces each stage on stderr and keeps how long it took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, name: str, what: str) -> Iterator[None]:
        """Announce and time the body of a `with` statement."""
        print(f"{name} {what}", file=sys.stderr)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def finite(value: Any) -> Any:
    """Replace every number that is not finite by None, inside dicts and lists too: JSON knows no NaN."""
    match value:
        case dict():
            return {key: finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [finite(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
    return value


def output_folder(path: str | Path) -> Path:
    """Make the folder of --output. Raises UserError where that is impossible."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={folder}: cannot be a folder ({error.strerror})") from error
    return folder


HERE = Path(__file__).parent
Points = Sequence[tuple[float, float]]
Marks = list[tuple[float, str]]
"""Positions and labels along an axis."""


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
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return None
    xs, ys = zip(*(point for points in finite.values() for point in points), strict=True)
    x_labels = marks or _labelled(round_steps(min(xs), max(xs), 6))
    y_labels = _labelled(round_steps(min(ys), max(ys), 5))

    def x_of(x: float) -> float:
        low, high = min(*x_labels, *xs), max(*x_labels, *xs)
        return round(Plot.left + (x - low) / ((high - low) or 1) * (Plot.right - Plot.left), 1)

    def y_of(y: float) -> float:
        low, high = min(y_labels), max(y_labels)
        return round(Plot.bottom - (y - low) / ((high - low) or 1) * (Plot.bottom - Plot.top), 1)

    return Plot(
        lines={name: [(x_of(x), y_of(y)) for x, y in points] for name, points in finite.items()},
        x_marks=[(x_of(x), label) for x, label in x_labels.items()],
        y_marks=[(y_of(y), label) for y, label in y_labels.items()],
    )


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
