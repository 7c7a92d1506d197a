"""The `lcm evaluate` command: scores beside controls, as results.json, examples.jsonl and report.html."""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path

from lcm.data.manifest import is_url
from lcm.errors import UserError
from lcm.evaluation.options import CommandOptions, EvaluateOptions, JudgingOptions, PredictionOptions
from lcm.evaluation.predictions import judge_predictions
from lcm.evaluation.predictions_report import predictions_headline, write_page
from lcm.evaluation.report import headline, write_report
from lcm.evaluation.results import Evaluation, output_folder
from lcm.evaluation.run import evaluate
from lcm.evaluation.task_rows import find_files
from lcm.evaluation.tasks import load_task
from lcm.inference import load
from lcm.ledger import described
from lcm.models import Sampling
from lcm.options import add_options, option_name, options_from, writable_folder
from lcm.sampling import SAMPLING_HELP
from lcm.scores import asked_for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, CommandOptions)
    judging = [field.name for field in fields(JudgingOptions)]
    add_options(parser, PredictionOptions, skip=judging)
    add_options(parser, EvaluateOptions, skip=["sampling"])
    sampling = parser.add_argument_group("sampling", SAMPLING_HELP)
    add_options(sampling, Sampling, skip=["seed"])


def run(args: argparse.Namespace) -> int:
    command = options_from(args, CommandOptions)
    if hasattr(args, "predictions"):
        return _judge_predictions(args, command)
    if command.model is None:
        raise UserError("--model is missing: expected a run's folder; or --predictions F.jsonl, to judge its texts")
    if hasattr(args, "lang"):
        raise UserError(f"--lang={args.lang}: goes with --predictions; a model has its own")
    options = replace(options_from(args, EvaluateOptions), sampling=options_from(args, Sampling))
    if missing := [path for path in options.data if not is_url(path) and not Path(path).exists()]:
        raise UserError(f"--data {missing[0]}: no such file or folder")
    output = writable_folder(command.output or f"report-{Path(command.model).absolute().name}")
    asked_for(options.judge)  # which may raise, before the model is loaded; so may the next lines
    if options.task and not (task := load_task(options.task)).made:
        find_files(options.task, task, *options.data)
    lcm = load(command.model, codec=command.codec)
    output_folder(output)  # only now, or a misspelt model would leave an empty one
    evaluation = evaluate(lcm, options)
    write_report(output / "report.html", evaluation.results, evaluation.rows, Path(command.model))
    return _finish(evaluation, output, evaluation.text if command.json else headline(evaluation.results))


def _judge_predictions(args: argparse.Namespace, command: CommandOptions) -> int:
    """Judge texts that were made elsewhere. Options that only a model has are refused: nothing would come of them."""
    used = {*(field.name for field in fields(PredictionOptions)), "output", "json"}
    known = {field.name for record in (CommandOptions, EvaluateOptions, Sampling) for field in fields(record)}
    if idle := sorted(name for name in vars(args) if name in known - used):
        raise UserError(f"{option_name(idle[0])}: goes with --model; all of --predictions are judged, as they are")
    options = options_from(args, PredictionOptions)
    output = writable_folder(command.output or f"report-{Path(options.predictions).stem}")
    evaluation = judge_predictions(options)
    output_folder(output)
    write_page(output / "report.html", evaluation.results, evaluation.rows)
    return _finish(evaluation, output, evaluation.text if command.json else predictions_headline(evaluation.results))


def _finish(evaluation: Evaluation, output: Path, shown: str) -> int:
    """Write the other two files, print what was asked for, and end with what was refused."""
    evaluation.write(output)
    print(shown)
    print(f"{output / 'report.html'}", file=sys.stderr)
    if line := described(evaluation.refused):
        print(f"lcm evaluate: {line}", file=sys.stderr)
    return 0
