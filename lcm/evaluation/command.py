"""The `lcm evaluate` command: a model's scores beside controls, as results.json, examples.jsonl and report.html."""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from lcm.data.manifest import is_url
from lcm.data.remote import Unreachable
from lcm.data.shards import Shard
from lcm.errors import UserError, in_one_line, without_secrets
from lcm.evaluation import summaries
from lcm.evaluation.examples import (
    EvaluationSet,
    answer_lengths,
    from_file,
    from_folders,
    from_tales,
    shards_of,
)
from lcm.evaluation.judging import MI, Panel, judge_summaries
from lcm.evaluation.report import Stages, finite, headline, output_folder, write_report
from lcm.evaluation.teacher_forced import Forcing, teacher_forced
from lcm.evaluation.truth import PROMPTS, judge_truth
from lcm.evaluation.truth_judge import TruthJudge, has_story
from lcm.files import write_result
from lcm.inference import LCM, Bank, load
from lcm.ledger import Entries, Ledger, described
from lcm.models import Sampling
from lcm.options import Option, add_options, check_fields, options_from, writable_folder
from lcm.sampling import SAMPLING_HELP
from lcm.scores import CONVENTIONS, asked_for
from lcm.tales import LEVELS

CONTINUATIONS = 4
"""Documents that are continued, to be shown on the page."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Settings of an evaluation. Raises UserError for a number out of range."""

    data: Annotated[tuple[str, ...], Option("DIR|F", place=True)] = ()
    """Prepared folders or their URLs, or a file of {document, summary} or {text}. Without it --truth judges new
    stories, of every level that fits the model's data.slots."""
    split: Literal["test", "validation", "train"] | None = None
    """Split of the folders (default: test; validation where there is no test)."""
    limit: Annotated[int, Option(least=1)] = 500
    """Documents and pairs to score, drawn at random."""
    roundtrip: Annotated[int, Option(least=0)] = 1000
    """Sentences to send through the codec and back, drawn at random: the slow part."""
    seed: Annotated[int, Option(least=0)] = 0
    """Seed of everything that is drawn."""
    truth: bool = False
    """Judge continuations, next sentences and gists of stories whose truth is known (data_prep/make_tales.py)."""
    judge: Annotated[tuple[str, ...], Option("NAME[=FOLDER]")] = ()
    """Scores by models of others: cola, seahorse-q4, seahorse-q5, bertscore, coherence, perplexity, alignscore,
    minicheck, mauve; of next sentences: mi. After = another folder or hub name for the weights."""
    convention: Literal["lcm", "lm-eval", "lighteval", "helm"] = "lcm"
    """Rules of ROUGE: ours, or those of a harness."""
    bootstrap: Annotated[int, Option(least=1)] = 1000
    """Bootstrap samples of each interval."""
    sampling: Sampling = field(default_factory=Sampling)
    """Settings for drawing concepts, with a seed of their own."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.data and not self.truth:
            raise UserError("--data is missing: expected prepared folders, or a file; or --truth, to judge stories")
        if not self.data and self.split:
            raise UserError(f"--split={self.split}: goes with --data; new stories are those of the test split")


@dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """The options of `lcm evaluate` besides `EvaluateOptions` and `Sampling`."""

    model: Annotated[str, Option("DIR", place=True, read=True)]
    """A run's folder, one written by lcm export, or the name of a packaged model: tales."""
    output: Annotated[str | None, Option("DIR", place=True)] = None
    """Folder for results.json, examples.jsonl and report.html (default: report-MODEL, such as report-tales)."""
    codec: Annotated[str | None, Option("NAME", place=True, read=True)] = None
    """Another codec with the same encoder, such as sonar-finetuned."""
    json: bool = False
    """Print results.json instead of a table."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Evaluation:
    """results: the content of results.json. rows: the lines of examples.jsonl. refused: the ledger, as in results"""

    results: dict[str, Any]
    rows: list[dict[str, Any]]
    refused: Entries = field(default_factory=dict)


@in_one_line()
def evaluate(lcm: LCM, options: EvaluateOptions) -> Evaluation:
    """Score a model on the sentences, summaries and continuations of a test set.

    Raises UserError for data that is missing, of another codec or without a sentence to predict, for a judge whose
    weights are not there, and for a setting of `sampling` that the model's family does not have.
    """
    asked = asked_for(options.judge)
    options = replace(options, sampling=lcm.sampling(options.sampling))  # first: it may raise
    stages = Stages()
    names = [without_secrets(name) for name in options.data]
    with stages.of("reading", " ".join(names) or "new stories"):
        examples, train, ledger = _read(lcm, options)
    if idle := [one.name for one in asked if one.name != MI and not examples.pairs]:
        raise UserError(f"--judge {' '.join(idle)}: judges summaries, and the data has no pairs; expected some, or mi")
    truth: dict[str, Any] = {}
    told: list[dict[str, Any]] = []
    if options.truth:
        with stages.of("judging", "stories by their truth"):
            judge = TruthJudge(lcm, options.sampling, options.bootstrap, options.seed)
            truth, told = judge_truth(judge, examples.documents, examples.pairs)
    forcing = Forcing(options.sampling, options.roundtrip, options.bootstrap, options.seed)
    with stages.of("scoring", f"the sentences of {len(examples.drawn)} documents and pairs"):
        forced, rows = teacher_forced(lcm, examples.drawn, train, forcing, [one for one in asked if one.name == MI])
    with stages.of("gathering", "the sentences of the training data, to find the nearest among them"):
        bank = Bank.from_shards(sorted({str(s.place) for s in train}), codec=lcm.record.fingerprint) if train else None
    with stages.of("writing", f"{len(examples.pairs)} summaries and {CONTINUATIONS} continuations"):
        lengths = summaries.Lengths.of(answer_lengths(train), lcm.config.data.slots)
        writer = summaries.Writer(lcm, bank, options.sampling)
        systems, written = summaries.summarize(writer, examples.pairs, lengths)
        panel = Panel(asked, lcm.record.lang, options.bootstrap, options.seed, CONVENTIONS[options.convention])
        found = judge_summaries(panel, systems, written, ledger)
        written += summaries.continuations(writer, examples.documents[:CONTINUATIONS])
    results = {
        **forced,
        **({"truth": truth} if truth else {}),
        **found.results,
        "counts": {
            "scored": len(examples.drawn),
            "failed": len(examples.refused),
            "not_drawn": examples.rows - len(examples.refused) - len(examples.drawn),
            "reasons": examples.ledger.stored,
            "documents": len(examples.documents),
            "pairs": len(examples.pairs),
        },
        "refused": ledger.stored,
        "settings": {**asdict(options), "data": names, "split": examples.split, **asdict(lengths)},
        "model": {"kind": lcm.config.model.kind, "parameters": sum(p.numel() for p in lcm.model.parameters())},
        "codec": {"name": lcm.record.name, "fingerprint": lcm.record.fingerprint, "dim": lcm.record.dim},
        "training_data_not_here": lcm.missing_data,
        "bank": {"sentences": len(bank.sentences) if bank else 0},
        "seconds": stages.seconds,
    }
    return Evaluation(finite(results), [finite(row) for row in written + told + rows], ledger.entries)


def _read(lcm: LCM, options: EvaluateOptions) -> tuple[EvaluationSet, list[Shard], Ledger]:
    """Read the test set, and find training shards: in the same folders, else those that the model was trained on.

    The ledger counts what is passed over: rows, training data that is gone, stories too long for --truth.
    """
    ledger = Ledger()
    if not options.data:
        fit = [level for level in LEVELS if level.longest + 3 <= lcm.config.data.slots]
        if not fit:
            raise UserError(f"--truth: no story fits data.slots={lcm.config.data.slots} of the model; name --data")
        return from_tales(fit, lcm, min(PROMPTS, options.limit), options.seed), _training_shards(lcm, ledger), ledger
    given = dict.fromkeys(path if is_url(path) else str(Path(path).resolve()) for path in options.data)
    folders = [path for path in given if is_url(path) or Path(path).is_dir()]
    if folders and len(folders) == len(given):
        examples = from_folders(folders, lcm, options.split, options.limit, options.seed)
    elif len(given) == 1:
        if options.split:
            raise UserError(f"--split={options.split}: goes with prepared folders; a file has no splits")
        examples = from_file(options.data[0], lcm, options.limit, options.seed)
    else:
        raise UserError(f"--data {' '.join(options.data)}: expected one file, or folders written by lcm prepare")
    ledger.extend(examples.ledger.entries)
    for example in examples.drawn if options.truth else ():
        if len(example.vectors) >= lcm.config.data.slots:
            ledger.add("too long for --truth", example.id)
        elif not has_story(example):
            ledger.add("no story for --truth", example.id)
    train = shards_of(folders, lcm, "train")
    return examples, train or _training_shards(lcm, ledger), ledger


def _training_shards(lcm: LCM, ledger: Ledger) -> list[Shard]:
    """The shards that the model was trained on, but for data sets that are not on this machine, which a line names.

    Those that cannot be reached are counted, too.
    """
    found: list[Shard] = []
    missing = lcm.missing_data
    for path in lcm.config.data.path:
        try:
            found += [] if path in missing else shards_of([path], lcm, "train")
        except Unreachable as error:
            ledger.add("training data not reached", str(error))
            print(f"{error}; scored without it", file=sys.stderr)
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        what = "'nearest' and 'always the mean' are of the others" if found else "'nearest' is left out"
        print(f"the model's training data ({missing[0]}{others}) is not on this machine: {what}", file=sys.stderr)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, CommandOptions)
    add_options(parser, EvaluateOptions, skip=["sampling"])
    sampling = parser.add_argument_group("sampling", SAMPLING_HELP)
    add_options(sampling, Sampling, skip=["seed"])


def run(args: argparse.Namespace) -> int:
    command = options_from(args, CommandOptions)
    options = replace(options_from(args, EvaluateOptions), sampling=options_from(args, Sampling))
    if missing := [path for path in options.data if not is_url(path) and not Path(path).exists()]:
        raise UserError(f"--data {missing[0]}: no such file or folder")
    output = writable_folder(command.output or f"report-{Path(command.model).absolute().name}")
    asked_for(options.judge)  # which may raise, before the model is loaded
    lcm = load(command.model, codec=command.codec)
    output_folder(output)  # only now, or a misspelt model would leave an empty one
    evaluation = evaluate(lcm, options)
    text = json.dumps(evaluation.results, indent=2, ensure_ascii=False, allow_nan=False)
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in evaluation.rows]
    write_result(output / "results.json", text + "\n")
    write_result(output / "examples.jsonl", "".join(lines))
    write_report(output / "report.html", evaluation.results, evaluation.rows, Path(command.model))
    print(text if command.json else headline(evaluation.results))
    print(f"{output / 'report.html'}", file=sys.stderr)
    if line := described(evaluation.refused):
        print(f"lcm evaluate: {line}", file=sys.stderr)
    return 0
