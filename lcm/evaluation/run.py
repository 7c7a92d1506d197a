"""Evaluation of a model: the test set is read, its sentences are predicted, summaries written and judged."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

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
from lcm.evaluation.options import EvaluateOptions
from lcm.evaluation.results import Evaluation, Stages, finite
from lcm.evaluation.teacher_forced import Forcing, teacher_forced
from lcm.evaluation.truth import PROMPTS, judge_truth
from lcm.evaluation.truth_judge import TruthJudge, has_story
from lcm.inference import LCM, Bank
from lcm.ledger import Ledger
from lcm.scores import CONVENTIONS, asked_for
from lcm.tales import LEVELS

CONTINUATIONS = 4
"""Documents that are continued, to be shown on the page."""


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
    for path in lcm.config.data.folders:
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
