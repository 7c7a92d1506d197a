"""Scores of texts that need no model of ours: a prediction by itself, beside its document, or beside people's texts.

Read rows (what is judged), rouge with its conventions and tokens, overlap (scores by counting) and intervals, then
judges: the scores by models of others, one file each, whose weights a name or a folder says (weights). Nothing here
knows a concept model.
"""

from lcm.scores import mauve, perplexity
from lcm.scores.conventions import CONVENTIONS, ROUGE, Convention
from lcm.scores.intervals import Interval, bootstrap, mean_of_texts, paired_bootstrap
from lcm.scores.judges import JUDGES, Asked, asked_for, judge
from lcm.scores.overlap import HUMAN_REP4, OVERLAP, overlap_scores
from lcm.scores.rouge import length_ratio, rouge_line, rouge_record, rouge_scores
from lcm.scores.rows import Measure, Row, Score
from lcm.scores.sentences import sentences
from lcm.scores.tokens import tokens_of, words_of

__all__ = [
    "CONVENTIONS",
    "HUMAN_REP4",
    "JUDGES",
    "OVERLAP",
    "ROUGE",
    "Asked",
    "Convention",
    "Interval",
    "Measure",
    "Row",
    "Score",
    "asked_for",
    "bootstrap",
    "judge",
    "length_ratio",
    "mauve",
    "mean_of_texts",
    "overlap_scores",
    "paired_bootstrap",
    "perplexity",
    "rouge_line",
    "rouge_record",
    "rouge_scores",
    "sentences",
    "tokens_of",
    "words_of",
]
