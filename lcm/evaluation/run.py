"""Evaluation of a model: the test set is read, its sentences are predicted, summaries written and judged."""

from dataclasses import asdict, replace
from typing import Any

from lcm.errors import UserError, in_one_line
from lcm.evaluation import summaries
from lcm.evaluation.best_of import draw
from lcm.evaluation.examples import EvaluationSet, answer_lengths
from lcm.evaluation.judging import MI, Panel, judge_summaries
from lcm.evaluation.options import EvaluateOptions
from lcm.evaluation.reading import named, read_data
from lcm.evaluation.results import Evaluation, Stages, finite
from lcm.evaluation.tasks import Task, load_task
from lcm.evaluation.teacher_forced import Forcing, teacher_forced
from lcm.evaluation.truth import judge_truth
from lcm.evaluation.truth_judge import TruthJudge
from lcm.inference import LCM, Bank, wishes_for
from lcm.scores import CONVENTIONS, asked_for

CONTINUATIONS = 4
"""Documents that are continued, to be shown on the page."""


@in_one_line()
def evaluate(lcm: LCM, options: EvaluateOptions) -> Evaluation:
    """Score a model on the sentences, summaries and continuations of a test set.

    Raises UserError for data that is missing, of another codec or without a sentence to predict, for a judge whose
    weights are not there, and for a setting of `sampling` that the model's family does not have.
    """
    asked = asked_for(options.judge)
    options = replace(options, sampling=lcm.sampling(options.sampling))  # first: it may raise, as those below
    lcm.stop_rules(options.max_sentences)
    wishes_for(options.length, lcm.record, answers=True)
    task, stages = load_task(options.task) if options.task else None, Stages()
    lcm = _speaking(lcm, task, options) if task and not task.made else lcm
    with stages.of("reading", " ".join(named(options)) or "new stories"):
        data = read_data(lcm, options, task)
    examples, train, ledger = data.examples, data.train, data.ledger
    if idle := [one.name for one in asked if one.name != MI and not examples.pairs]:
        raise UserError(f"--judge {' '.join(idle)}: judges summaries, and the data has no pairs; expected some, or mi")
    truth: dict[str, Any] = {}
    told: list[dict[str, Any]] = []
    if options.truth or (task and task.made):
        with stages.of("judging", "stories by their truth"):
            judge = TruthJudge(lcm, options.sampling, options.bootstrap, options.seed)
            truth, told = judge_truth(judge, examples.documents, examples.pairs)
    forcing = Forcing(options.sampling, options.roundtrip, options.bootstrap, options.seed)
    with stages.of("scoring", f"the sentences of {len(examples.drawn)} documents and pairs"):
        forced, rows = teacher_forced(lcm, examples.drawn, train, forcing, [one for one in asked if one.name == MI])
    with stages.of("gathering", "the sentences of the training data, to find the nearest among them"):
        bank = Bank.from_shards(sorted({str(s.place) for s in train}), codec=lcm.record.fingerprint) if train else None
    with stages.of("writing", f"{len(examples.pairs)} summaries and {CONTINUATIONS} continuations"):
        lengths = _lengths(task, summaries.Lengths.of(answer_lengths(train), lcm.config.data.slots), lcm)
        most = options.max_sentences or (lcm.config.data.slots // 2 if options.length else lengths.most)
        lengths = replace(lengths, most=most)
        writer = summaries.Writer(lcm, bank, options.sampling, options.long, options.length)
        systems, written = summaries.summarize(writer, examples.pairs, lengths)
        panel = Panel(asked, lcm.lang, options.bootstrap, options.seed, CONVENTIONS[options.convention])
        drawn: dict[str, Any] = {}
        if options.best_of > 1 and examples.pairs:
            first = [line["model"] for line in written]
            best = draw(writer, examples.pairs, lengths, first, options.best_of, panel.convention)
            systems["oracle"] = summaries.rows_of(examples.pairs, best.oracle)
            written = [{**line, "oracle": list(text)} for line, text in zip(written, best.oracle, strict=True)]
            drawn = {"best_of": best.record(options.bootstrap, options.seed)}
        found = judge_summaries(panel, systems, written, ledger)
        written += summaries.continuations(writer, examples.documents[:CONTINUATIONS])
    results = {
        **forced,
        **({"truth": truth} if truth else {}),
        **found.results,
        **drawn,
        **({"task": data.task} if data.task else {}),
        "counts": {**_counts(examples), **summaries.long_counts(written)},
        "refused": ledger.stored,
        "settings": {**asdict(options), "data": named(options), "split": examples.split, **asdict(lengths)},
        "model": {"kind": lcm.config.model.kind, "parameters": sum(p.numel() for p in lcm.model.parameters())},
        "codec": {"name": lcm.record.name, "fingerprint": lcm.record.fingerprint, "dim": lcm.record.dim},
        "training_data_not_here": lcm.missing_data,
        "bank": {"sentences": len(bank.sentences) if bank else 0},
        "seconds": stages.seconds,
    }
    return Evaluation(finite(results), [finite(row) for row in written + told + rows], ledger.entries)


def _speaking(lcm: LCM, task: Task, options: EvaluateOptions) -> LCM:
    try:
        return lcm.in_language(task.lang)
    except UserError as error:
        raise UserError(f"--task {options.task}: {error}") from error


def _lengths(task: Task | None, lengths: summaries.Lengths, lcm: LCM) -> summaries.Lengths:
    """The lengths of summaries that a task names, as far as the model has room; else those of the training pairs."""
    if task is None:
        return lengths
    most = min(task.most or lengths.most, lcm.config.data.slots // 2)
    return summaries.Lengths(lead=task.lead or lengths.lead, most=most)


def _counts(examples: EvaluationSet) -> dict[str, Any]:
    """The entry `counts` of results.json: the rows, and what became of them."""
    return {
        "scored": len(examples.drawn),
        "failed": len(examples.refused),
        "not_drawn": examples.rows - len(examples.refused) - len(examples.drawn),
        "reasons": examples.ledger.stored,
        "documents": len(examples.documents),
        "pairs": len(examples.pairs),
    }
