"""Scores of texts that need no model of ours: a prediction by itself, beside its document, or beside people's texts.

Read rows (what is judged) and overlap (scores by counting), then judges: the scores by models of others, one file each,
whose weights a name or a folder says (weights). Nothing here knows a concept model.
"""

from lcm.scores import mauve, perplexity
from lcm.scores.judges import JUDGES, Asked, asked_for, judge
from lcm.scores.overlap import HUMAN_REP4, OVERLAP, overlap_scores
from lcm.scores.rows import Measure, Row, Score

__all__ = [
    "HUMAN_REP4",
    "JUDGES",
    "OVERLAP",
    "Asked",
    "Measure",
    "Row",
    "Score",
    "asked_for",
    "judge",
    "mauve",
    "overlap_scores",
    "perplexity",
]
