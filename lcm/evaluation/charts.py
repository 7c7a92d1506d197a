"""Line charts as inline SVG: nothing is loaded from elsewhere, and the colours follow the page, dark or light."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 24, 12, 44

Points = Sequence[tuple[float, float]]


def line_chart(name: str, series: Mapping[str, Points], x_label: str, marks: Mapping[float, str] | None = None) -> str:
    """A figure with a legend, one line a series. Points that are not finite are left out.

    marks: labels of the x axis by place; without it round numbers
    Empty where no series has a point.
    """
    lines = {key: [(x, y) for x, y in points if math.isfinite(y)] for key, points in series.items()}
    lines = {key: points for key, points in lines.items() if points}
    if not lines:
        return ""
    xs, ys = ([point[i] for points in lines.values() for point in points] for i in (0, 1))
    x_steps = round_steps(min(xs), max(xs), 6)
    x_marks = marks or dict(zip(x_steps, _numbers(x_steps), strict=True))
    y_marks = round_steps(min(ys), max(ys), 5)
    x_low, x_high = min(*x_marks, *xs), max(*x_marks, *xs)
    y_low, y_high = y_marks[0], y_marks[-1]

    def across(x: float) -> float:
        return LEFT + (x - x_low) / ((x_high - x_low) or 1) * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / ((y_high - y_low) or 1) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{up(y) + 4:.1f}" text-anchor="end">{label}</text>'
        for y, label in zip(y_marks, _numbers(y_marks), strict=True)
    ]
    parts += [
        f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{escape(label)}</text>'
        for x, label in x_marks.items()
    ]
    parts.append(f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(x_label)}</text>')
    for number, points in enumerate(lines.values(), start=1):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="s{number}" points="{path}"/>')
        if len(points) <= 20:
            parts += [f'<circle class="s{number}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3"/>' for x, y in points]
    legend = "".join(f'<span class="s{i}">{escape(key)}</span>' for i, key in enumerate(lines, start=1))
    return (
        f'<figure><figcaption>{escape(name)} <span class="legend">{legend}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">{"".join(parts)}</svg></figure>'
    )


def round_steps(low: float, high: float, about: int) -> list[float]:
    """About so many round numbers, evenly spaced, from at most `low` to at least `high`."""
    span = (high - low) or abs(high) or 1.0
    rough = span / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def _numbers(values: Sequence[float]) -> list[str]:
    """All with as many decimals as the one that needs most."""
    decimals = max(len(f"{value:.10f}".rstrip("0").split(".")[1]) for value in values)
    return [f"{value:,.{decimals}f}" for value in values]
