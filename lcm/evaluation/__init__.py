"""Scores of a model and the report of them: `lcm evaluate`.

Read command, then run (a model's evaluation): examples (the test set), teacher_forced and scoring (the metrics of
predicted concepts), summaries and judging (texts that are written, and judged), report (what is shown, from the
templates page.html, macros.html and report.html). predictions judges texts from elsewhere; watching scores what a model
writes while it is trained. compare sets two evaluations side by side.
"""

from lcm.evaluation.report import render
from lcm.evaluation.results import Stages, finite, output_folder
from lcm.evaluation.watching import HeldOut

__all__ = ["HeldOut", "Stages", "command", "compare_report", "finite", "output_folder", "render"]
