"""Scores of a model and the report of them: `lcm evaluate`.

Read command, then examples (the test set), scoring and summaries (how it is scored), metrics (the formulas), results,
report and html (what is written, from the templates page.html, macros.html and report.html). No model is trained here.
"""

from lcm.evaluation.html import (
    Html,
    card,
    facts,
    heading,
    line_chart,
    page,
    paragraph,
    render,
    side_by_side,
    table,
    text,
)
from lcm.evaluation.metrics import Interval
from lcm.evaluation.results import Stages, finite, output_folder

__all__ = [
    "Html",
    "Interval",
    "Stages",
    "card",
    "command",
    "facts",
    "finite",
    "heading",
    "line_chart",
    "output_folder",
    "page",
    "paragraph",
    "render",
    "side_by_side",
    "table",
    "text",
]
