"""Scores of a model and the report of them: `lcm evaluate`.

Read command, then examples (the test set), scoring and summaries (the metrics of predicted concepts and of texts) and
report (what is written, from the templates page.html, macros.html and report.html). No model is trained here.
"""

from lcm.evaluation.report import Stages, finite, output_folder, render

__all__ = ["Stages", "command", "finite", "output_folder", "render"]
