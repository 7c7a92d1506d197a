"""Line charts as SVG, one or several side by side, without matplotlib: for docs/pictures/."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import log2

COLORS = ("#3b6ea5", "#c8553d", "#4f8f5b", "#8a63a6", "#b98a2f", "#5b5f66")
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #57606a; text-anchor: middle }
.title { font-size: 13px; fill: #1b1f24 }
.grid { stroke: #e4e3de }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round }
.interval { stroke-width: 1; opacity: 0.6 }
"""
LEFT, TOP, RIGHT, BOTTOM = 44, 30, 12, 40


@dataclass(frozen=True)
class Line:
    """Points (x, y), with their intervals if there are any."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    intervals: Sequence[tuple[float, float]] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """A chart from 0 to `top`, with labels on its axes; by `doubling`, x grows by factors."""

    title: str
    lines: Sequence[Line]
    x: str
    y: str
    top: float
    ticks: Sequence[float]
    doubling: bool = False


def charts(panels: Sequence[Panel], columns: int, width: int = 260, height: int = 200) -> str:
    """All panels in rows of `columns`, and below them one legend of the lines of the first."""
    rows = -(-len(panels) // columns)
    parts = [
        f'<g transform="translate({(i % columns) * width} {(i // columns) * height})">{_panel(p, width, height)}</g>'
        for i, p in enumerate(panels)
    ]
    lines, each = panels[0].lines, 170
    fit = max(1, columns * width // each)
    for number, line in enumerate(lines):
        x, y = 20 + each * (number % fit), rows * height + 16 + 20 * (number // fit)
        parts.append(f'<path class="line" d="M{x} {y}h26" {_stroke(line)}/>')
        parts.append(f'<text x="{x + 32}" y="{y}" dy=".35em" style="text-anchor: start">{escape(line.name)}</text>')
    wide, high = columns * width, rows * height + 16 + 20 * -(-len(lines) // fit)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}">\n'
        f'<style>{STYLE}</style>\n<rect width="{wide}" height="{high}" fill="white"/>\n{body}\n</svg>\n'
    )


def _panel(panel: Panel, width: int, height: int) -> str:
    ticks = [log2(tick) if panel.doubling else tick for tick in panel.ticks]
    first, last = min(ticks), max(ticks)

    def across(value: float) -> float:
        place = log2(value) if panel.doubling else value
        return round(LEFT + (width - LEFT - RIGHT) * (place - first) / ((last - first) or 1), 1)

    def down(value: float) -> float:
        return round(height - BOTTOM - (height - TOP - BOTTOM) * min(value, panel.top) / panel.top, 1)

    parts = [f'<text class="title" x="{(LEFT + width - RIGHT) / 2:g}" y="18">{escape(panel.title)}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = down(share * panel.top)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{width - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y}" dy=".35em" style="text-anchor: end">{share * panel.top:g}</text>')
    parts += [f'<text x="{across(tick)}" y="{height - BOTTOM + 15}">{tick:g}</text>' for tick in panel.ticks]
    parts.append(f'<text x="{(LEFT + width - RIGHT) / 2:g}" y="{height - 8}">{escape(panel.x)}</text>')
    parts.append(
        f'<text transform="translate(11 {(TOP + height - BOTTOM) / 2:g}) rotate(-90)">{escape(panel.y)}</text>'
    )
    for line in panel.lines:
        places = [(across(x), down(y)) for x, y in line.points]
        parts.append(f'<polyline class="line" points="{" ".join(f"{x},{y}" for x, y in places)}" {_stroke(line)}/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="2.6" fill="{line.color}"/>' for x, y in places]
        for (x, _), (low, high) in zip(places, line.intervals, strict=False):
            parts.append(f'<path class="interval" d="M{x} {down(low)}V{down(high)}" stroke="{line.color}"/>')
    return "\n".join(parts)


def _stroke(line: Line) -> str:
    return f'stroke="{line.color}"' + (' stroke-dasharray="5 3"' if line.dashed else "")
