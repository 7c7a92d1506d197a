"""The rows of a task: its files, from the hub at a commit or brought, and what they say, as documents and pairs."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lcm.errors import UserError, optional_import
from lcm.evaluation.examples import Pair, Pairs
from lcm.evaluation.tasks import Task
from lcm.files import sha256
from lcm.options import existing_file
from lcm.prepare import Columns, Document, Refused, read_rows, split_of


@dataclass(frozen=True)
class TaskFiles:
    """The files of a task on this machine. commit: of the hub; empty for a file that was brought"""

    paths: list[Path]
    commit: str = ""

    def record(self, name: str, task: Task) -> dict[str, Any]:
        """The entry `task` of results.json."""
        about = {"name": name, "dataset": task.dataset, "config": task.config, "split": task.split}
        sums = {path.name: sha256(path) for path in self.paths}
        return {**about, "commit": self.commit, "files": sums, "lang": task.lang, "protocol": task.protocol}


def find_files(name: str, task: Task, brought: str | None = None) -> TaskFiles:
    """The file of --data where there is one; else those of the hub. Raises UserError that says what to bring."""
    if brought:
        return TaskFiles([existing_file(brought, "--data")])
    columns = ", ".join(dict.fromkeys([task.columns.id, *task.columns_of_set]))
    bring = f"bring {task.to_bring}, and name it: --task {name} --data FILE (.parquet, .jsonl or .csv with {columns})"
    if not task.files:
        raise UserError(f"--task {name}: no hub has it; {bring}")
    hub = optional_import("huggingface_hub", f"--task {name}: pip install 'lcm-train[data]' fetches it; or {bring}")
    try:
        return _fetched(hub, task)
    except Exception as error:  # the library and the network raise dozens of types
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        no_network = re.search(r"resolve|connect|offline|timed? ?out|not known", why, re.IGNORECASE)
        cause = "no network" if no_network else why[:200]
        raise UserError(f"--task {name}: the hub does not give it ({cause}); {bring}") from error


def _fetched(hub: Any, task: Task) -> TaskFiles:
    """Fetch the files that are not in the hub's cache. Without a commit, its branch is resolved to one first."""
    commit, files = task.commit, list(task.files)
    if not commit or any("*" in file for file in files):
        info = hub.HfApi().dataset_info(task.dataset, revision=commit or task.revision)
        commit = info.sha
        there = sorted(sibling.rfilename for sibling in info.siblings)
        files = [file for file in there if any(fnmatch(file, wanted) for wanted in task.files)]
    if not files:
        raise FileNotFoundError(f"no {', '.join(task.files)} at {commit}")
    fetched = [hub.hf_hub_download(task.dataset, file, repo_type="dataset", revision=commit) for file in files]
    return TaskFiles([Path(path) for path in fetched], commit)


def read_task(name: str, task: Task, files: TaskFiles) -> tuple[list[Document], list[Refused], int]:
    """The documents and pairs of a task, the rows that cannot be used, and the number of all that were read.

    Ids are those that `lcm prepare --dataset` gives, NAME:NUMBER where a row has none, so that `held_out` means the
    same rows.
    """
    found: list[Document] = []
    refused: list[Refused] = []
    number = 0
    for path in files.paths:
        for row in _rows(path):
            number += 1
            place = f"{Path(task.dataset or name).name}:{number}"
            one = row if isinstance(row, Refused) else document_of(task, row, place)
            if isinstance(one, Refused):
                refused.append(one)
            elif not task.held_out or split_of(one.id) == "test":
                found.append(one)
            if len(found) == task.documents:
                return found, refused, number
    return found, refused, number


def _rows(path: Path) -> Iterator[dict[str, Any] | Refused]:
    if path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)
    else:
        yield from (row for _, row in read_rows(path))


def document_of(task: Task, row: dict[str, Any], place: str) -> Document | Refused:
    """Make a document or a pair of a row in the set's own schema, cleaned up; or give the reason to refuse it."""
    columns, row = task.columns, dict(row)
    for made, choice in task.choose.items():
        if (chosen := choice.among.get(str(row.get(choice.by)))) is None:
            return Refused("no such choice", f"{place}: {choice.by} is {row.get(choice.by)!r}"[:200])
        row[made] = row.get(chosen)
    read = Columns(id=columns.id, text=columns.document, summary=columns.summary, split="")
    read = Pairs(**vars(read)) if columns.summary else replace(read, summary=None, text=_text_column(columns.text))
    if not isinstance(columns.text, str):
        parts = [replace(read, text=part).document(row, "", place, task.lang, Path()) for part in columns.text]
        if bad := next((part for part in parts if isinstance(part, Refused)), None):
            return bad
        row[_text_column(columns.text)] = " ".join(part.text.strip() for part in parts if isinstance(part, Document))
    one = read.document(row, "", place, task.lang, Path())
    return one if isinstance(one, Refused) else _cleaned(task, one, place)


def _text_column(text: str | tuple[str, ...]) -> str:
    return text if isinstance(text, str) else "+".join(text)


def _cleaned(task: Task, one: Document, place: str) -> Document | Refused:
    """The document with its clean-up. Raises nothing: a text of which nothing is left is refused."""

    def clean(text: str) -> str:
        for replacement in task.clean:
            text = replacement.clean(text)
        return text.strip()

    one = replace(one, text=clean(one.text), summary=None if one.summary is None else clean(one.summary))
    if isinstance(one, Pair):
        one = replace(one, others=tuple(map(clean, one.others)))
    return one if one.text and one.summary != "" else Refused("empty", f"{place}: nothing is left after the clean-up")
