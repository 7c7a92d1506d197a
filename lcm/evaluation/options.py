"""Options of `lcm evaluate`: what is judged, how, and where the results go."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from lcm.errors import UserError
from lcm.inference import Long
from lcm.models import Sampling
from lcm.options import Option, check_fields


@dataclass(frozen=True, kw_only=True)
class JudgingOptions:
    """Settings by which texts are judged, whoever wrote them."""

    judge: Annotated[tuple[str, ...], Option("NAME[=FOLDER]")] = ()
    """Scores by models of others: cola, seahorse-q4, seahorse-q5, bertscore, coherence, perplexity, alignscore,
    minicheck, mauve; of next sentences: mi. After = another folder or hub name for the weights."""
    convention: Literal["lcm", "lm-eval", "lighteval", "helm"] = "lcm"
    """Rules of ROUGE: ours, or those of a harness."""
    bootstrap: Annotated[int, Option(least=1)] = 1000
    """Bootstrap samples of each interval."""
    seed: Annotated[int, Option(least=0)] = 0
    """Seed of everything that is drawn."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(JudgingOptions):
    """Settings of a model's evaluation. Raises UserError for a number out of range."""

    data: Annotated[tuple[str, ...], Option("DIR|F", place=True)] = ()
    """Prepared folders or their URLs, or a file of {document, summary} or {text}. Without it --truth judges new
    stories, of every level that fits the model's data.slots."""
    task: str | None = None
    """A data set of the field, fetched from its hub: cnn_dailymail, xsum, xlsum/english, c4, … (docs/evaluation.md has
    all). With --data, its rows are read from that file, in the set's own columns."""
    split: Literal["test", "validation", "train"] | None = None
    """Split of the folders (default: test; validation where there is no test)."""
    limit: Annotated[int, Option(least=1)] = 500
    """Documents and pairs to score, drawn at random."""
    roundtrip: Annotated[int, Option(least=0)] = 1000
    """Sentences to send through the codec and back, drawn at random: the slow part."""
    truth: bool = False
    """Judge continuations, next sentences and gists of stories whose truth is known (data_prep/make_tales.py)."""
    max_sentences: Annotated[int | None, Option(least=1)] = None
    """Sentences of a summary at most (default: as many as the longest of the training pairs has, up to 16)."""
    length: Annotated[float | None, Option("R", least=0.01, most=10)] = None
    """Length of summaries to ask for, as a share of the document's sentences; as in lcm generate."""
    long: Long | None = None
    """Part of a document longer than the model's slots that is read to be summarized: head (default), tail, head+tail
    or chunks, as in lcm generate."""
    best_of: Annotated[int, Option("N", least=1)] = 1
    """Summaries to draw of each document: with several, the table also has what a perfect choice among them scores."""
    sampling: Sampling = field(default_factory=Sampling)
    """Settings for drawing concepts, with a seed of their own."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.data and not self.truth and not self.task:
            raise UserError(
                "--data is missing: expected prepared folders, or a file; or --task, a data set by its name; or "
                "--truth, to judge stories"
            )
        if self.task and len(self.data) > 1:
            raise UserError(f"--data {' '.join(self.data)}: with --task, expected one file with rows of its set")
        if self.task and (self.split or self.truth):
            name = "--truth" if self.truth else f"--split={self.split}"
            raise UserError(f"{name}: a --task says by itself what is read and judged; leave it out")
        if not self.data and self.split:
            raise UserError(f"--split={self.split}: goes with --data; new stories are those of the test split")


@dataclass(frozen=True, kw_only=True)
class PredictionOptions(JudgingOptions):
    """Settings by which texts are judged that were written elsewhere. Raises UserError for a value out of range."""

    predictions: Annotated[str, Option("F", place=True, read=True)] = ""
    """Instead of --model: a file of {id, document, summary, prediction} to judge. summary: one reference, or a list."""
    lang: Annotated[str, Option("CODE")] = "eng_Latn"
    """Language of the predictions, as a FLORES code; a model has its own."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not re.fullmatch(r"[a-z]{3}_[A-Z][a-z]{3}", self.lang):
            raise UserError(f"--lang={self.lang}: expected a FLORES code, such as eng_Latn or zho_Hans")
        if "mi" in (name.partition("=")[0] for name in self.judge):
            raise UserError("--judge mi: judges next sentences, which only a --model predicts; leave it out")


@dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """The options of `lcm evaluate` besides those of what is judged."""

    model: Annotated[str | None, Option("DIR", place=True, read=True)] = None
    """A run's folder, one written by lcm export, or the name of a packaged model: tales."""
    output: Annotated[str | None, Option("DIR", place=True)] = None
    """Folder for results.json, examples.jsonl and report.html (default: report-MODEL, such as report-tales)."""
    codec: Annotated[str | None, Option("NAME", place=True, read=True)] = None
    """Another codec with the same encoder, such as sonar-finetuned."""
    json: bool = False
    """Print results.json instead of a table."""

    def __post_init__(self) -> None:
        check_fields(self)
