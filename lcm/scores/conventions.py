"""Conventions of ROUGE: by which rules the field's harnesses score a text, and by which we do.

Texts are the same; what a harness reads of them, with which tokens, is a `Convention`. Each is held to that harness's
own function by tests/scores/test_conventions.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from lcm.scores.sentences import sentences
from lcm.scores.tokens import Tokens, english, tokens_of

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
Name = Literal["lcm", "lm-eval", "lighteval", "helm"]


@dataclass(frozen=True)
class Convention:
    """Rules of one harness.

    source:     whose code they are
    rule:       the rules in words, for a reader of the scores
    scores:     the ROUGE scores that it has
    prediction: the part of a prediction that it reads, and how; lines are sentences to ROUGE-Lsum
    reference:  the part of a reference that it reads
    tokens:     tokens of a language by its FLORES code; None where none fit
    several:    the score beside several references: the best, their mean, or that of the first
    """

    name: Name
    source: str
    rule: str
    scores: tuple[str, ...]
    prediction: Callable[[str], str]
    reference: Callable[[str], str]
    tokens: Callable[[str], Tokens | None]
    several: Literal["best", "mean", "first"]


def one_sentence_a_line(text: str) -> str:
    """The sentences of each line of a text on lines of their own, whoever wrote it, as ROUGE-Lsum wants them."""
    return "\n".join(sentence for line in text.splitlines() for sentence in sentences(line))


def as_it_is(text: str) -> str:
    return text


def first_line(text: str) -> str:
    """A generation that stops before its first newline: nothing of a text that begins with one."""
    return text.split("\n", 1)[0]


CONVENTIONS: Mapping[Name, Convention] = {
    "lcm": Convention(
        name="lcm",
        source="lcm",
        rule="tokens by language, stemmed in English; Lsum over sentences, cut by nupunkt; the best reference",
        scores=ROUGE,
        prediction=one_sentence_a_line,
        reference=one_sentence_a_line,
        tokens=tokens_of,
        several="best",
    ),
    "lm-eval": Convention(
        name="lm-eval",
        source="lm-eval 0.4.13, cnn_dailymail",
        rule="stemmed; white space collapsed, so no Lsum; the first reference",
        scores=ROUGE[:3],
        prediction=as_it_is,  # collapsed there; white space is no token
        reference=as_it_is,
        tokens=lambda lang: english(stem=True),
        several="first",
    ),
    "lighteval": Convention(
        name="lighteval",
        source="lighteval 0.13.0, summarization",
        rule="not stemmed; the first line of a prediction alone, so no Lsum; the mean over references",
        scores=ROUGE[:3],
        prediction=first_line,
        reference=as_it_is,
        tokens=lambda lang: english(stem=False),
        several="mean",
    ),
    "helm": Convention(
        name="helm",
        source="crfm-helm 0.5.16, SummarizationMetric",
        rule="stemmed; newlines kept, no Lsum; the best reference",
        scores=ROUGE[:3],
        prediction=as_it_is,  # a brace around the text is left out there; it is no token
        reference=as_it_is,
        tokens=lambda lang: english(stem=True),
        several="best",
    ),
}
