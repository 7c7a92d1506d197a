"""Scores of a model and the report of them: `lcm evaluate`.

Read command, then examples (what is scored), scoring and summaries (how), metrics (the formulas), report and html (the
page).
"""

from lcm.evaluation.charts import line_chart
from lcm.evaluation.command import Stages
from lcm.evaluation.html import Html, card, facts, heading, page, paragraph, side_by_side, table, text
from lcm.evaluation.metrics import Interval

__all__ = [
    "Html",
    "Interval",
    "Stages",
    "card",
    "command",
    "facts",
    "heading",
    "line_chart",
    "page",
    "paragraph",
    "side_by_side",
    "table",
    "text",
]
