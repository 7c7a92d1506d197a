"""The data of an evaluation: a test set from prepared folders, a file, a task or the tales; and the training shards."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcm.data.manifest import is_url
from lcm.data.remote import Unreachable
from lcm.data.shards import Shard
from lcm.errors import UserError, without_secrets
from lcm.evaluation.examples import EvaluationSet, drawn_from, from_file, from_folders, from_tales, shards_of
from lcm.evaluation.options import EvaluateOptions
from lcm.evaluation.task_rows import find_files, read_task
from lcm.evaluation.tasks import Task
from lcm.evaluation.truth import PROMPTS
from lcm.evaluation.truth_judge import has_story
from lcm.inference import LCM
from lcm.ledger import Ledger
from lcm.tales import LEVELS


@dataclass(frozen=True)
class EvaluationData:
    """A test set, and the shards that statistics and nearest sentences are from.

    ledger: what was passed over: rows, training data that is gone, stories too long for --truth
    task:   the entry `task` of results.json, where a task was read
    """

    examples: EvaluationSet
    train: list[Shard]
    ledger: Ledger
    task: dict[str, Any] | None = None


def named(options: EvaluateOptions) -> list[str]:
    """The names of the data, for people; none for new stories."""
    task = [f"task {options.task}"] if options.task else []
    return [*task, *(without_secrets(name) for name in options.data)]


def read_data(lcm: LCM, options: EvaluateOptions, task: Task | None) -> EvaluationData:
    """Read the test set, and find training shards: in the same folders, else those that the model was trained on.

    Raises UserError for data that is missing, of another codec or another form than the options say.
    """
    ledger = Ledger()
    record = None
    folders: list[str] = []
    if task and not task.made:
        examples, record = _from_task(lcm, options, task)
    elif not options.data:
        examples = _stories(lcm, options)
        record = {"name": options.task, "protocol": task.protocol} if task else None
    else:
        examples, folders = _from_data(lcm, options)
    ledger.extend(examples.ledger.entries)
    for example in examples.drawn if options.truth and options.data else ():
        if len(example.vectors) >= lcm.config.data.slots:
            ledger.add("too long for --truth", example.id)
        elif not has_story(example):
            ledger.add("no story for --truth", example.id)
    train = shards_of(folders, lcm, "train")
    return EvaluationData(examples, train or _training_shards(lcm, ledger), ledger, record)


def _from_task(lcm: LCM, options: EvaluateOptions, task: Task) -> tuple[EvaluationSet, dict[str, Any]]:
    name = options.task or ""
    files = find_files(name, task, *options.data)
    texts, refused, rows = read_task(name, task, files)
    empty = EvaluationSet([], rows, task.split, refused)
    setting = f"--task {name} {' '.join(f'--data {path}' for path in options.data)}".rstrip()
    return drawn_from(texts, empty, setting, lcm, options.limit, options.seed), files.record(name, task)


def _stories(lcm: LCM, options: EvaluateOptions) -> EvaluationSet:
    fit = [level for level in LEVELS if level.longest + 3 <= lcm.config.data.slots]
    if not fit:
        raise UserError(f"--truth: no story fits data.slots={lcm.config.data.slots} of the model; name --data")
    return from_tales(fit, lcm, min(PROMPTS, options.limit), options.seed)


def _from_data(lcm: LCM, options: EvaluateOptions) -> tuple[EvaluationSet, list[str]]:
    """The test set of --data, and its folders where it is not a file."""
    given = dict.fromkeys(path if is_url(path) else str(Path(path).resolve()) for path in options.data)
    folders = [path for path in given if is_url(path) or Path(path).is_dir()]
    if folders and len(folders) == len(given):
        return from_folders(folders, lcm, options.split, options.limit, options.seed), folders
    if len(given) > 1:
        raise UserError(f"--data {' '.join(options.data)}: expected one file, or folders written by lcm prepare")
    if options.split:
        raise UserError(f"--split={options.split}: goes with prepared folders; a file has no splits")
    return from_file(options.data[0], lcm, options.limit, options.seed), []


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
