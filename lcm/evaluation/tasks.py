"""Tasks: the data sets of the field as plain data, one YAML file each in tasks/; `lcm evaluate --task NAME`.

Read `Task`, which says what a file may hold, then `load_task`. lcm/evaluation/task_rows.py reads the rows.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field

from lcm.errors import UserError
from lcm.options import did_you_mean

HERE = Path(__file__).parent / "tasks"
TASKS = sorted(path.stem for path in HERE.glob("*.yaml"))
HUB = "huggingface.co/datasets"


class Columns(BaseModel, extra="forbid", frozen=True):
    """Names of the columns of a set. text: that of a document, or several to be joined; or document and summary"""

    id: str = "id"
    text: str | tuple[str, ...] = ""
    document: str = ""
    summary: str = ""


class Choice(BaseModel, extra="forbid", frozen=True):
    """A column made of others: the value of column `by`, as text, names the one of `among` that is taken."""

    by: str
    among: dict[str, str]


class Replacement(BaseModel, extra="forbid", frozen=True):
    """Text clean-up: what matches the regular expression `pattern` is replaced by `by`."""

    pattern: str
    by: str

    def clean(self, text: str) -> str:
        return re.sub(self.pattern, self.by, text)


class Task(BaseModel, extra="forbid", frozen=True):
    """A task as its YAML file has it. Of a name such as xlsum/english, the entry english of `variants` counts, too.

    dataset, config: name on the hub, and configuration; empty where the set is not there
    commit:    exact version on the hub; empty where none is known
    revision:  branch that is read where there is no commit; results.json says which commit it was
    split:     split of the set that the rows are of
    files:     files of the set on the hub, * for any letters
    bring:     the file to bring where there is no network; by default, the files above
    columns, choose, clean: from a row of the set to text
    held_out:  the set has no split to test on: only rows that `lcm prepare` keeps for its own test split
    documents: rows to take, the first ones; None: all
    lead, most: sentences of the lead control, and of the longest text that is written; None: as the training data says
    lang:      language of the text, as a FLORES code
    made:      stories of lcm.tales, made here
    protocol:  how the paper evaluates on it, and what it does not say
    """

    about: str
    dataset: str = ""
    config: str = ""
    commit: str = Field("", pattern=r"^([0-9a-f]{40})?$")
    revision: str = ""
    split: str
    files: tuple[str, ...] = ()
    bring: str = ""
    columns: Columns
    choose: dict[str, Choice] = {}
    clean: tuple[Replacement, ...] = ()
    held_out: bool = False
    documents: int | None = Field(None, ge=1)
    lead: int | None = Field(None, ge=1)
    most: int | None = Field(None, ge=1)
    lang: str = "eng_Latn"
    made: bool = False
    protocol: str

    @property
    def columns_of_set(self) -> list[str]:
        """The names of the columns that a row must have."""
        text = (self.columns.text,) if isinstance(self.columns.text, str) else self.columns.text
        made = [name for choice in self.choose.values() for name in (choice.by, *choice.among.values())]
        names = [*text, self.columns.document, self.columns.summary, *made]
        return [name for name in names if name and name not in self.choose]

    @property
    def to_bring(self) -> str:
        """The file that stands for the set where there is no network, in words."""
        if self.bring:
            return self.bring
        at = f"at commit {self.commit}" if self.commit else f"from its branch {self.revision}"
        return f"{', '.join(self.files)} of {HUB}/{self.dataset} {at}"


def load_task(name: str) -> Task:
    """Read a task by its name, "xsum" or "xlsum/english". Raises UserError for a name that is none."""
    stem, _, variant = name.partition("/")
    if stem not in TASKS:
        raise UserError(f"--task {name}: no such task{did_you_mean(stem, TASKS)}; expected one of {', '.join(TASKS)}")
    sections = _sections(stem, variant)
    variants = sections.pop("variants", {})
    if not variants and variant:
        raise UserError(f"--task {name}: {stem} has no variants; expected --task {stem}")
    if variants and variant not in variants:
        which = did_you_mean(variant, list(variants))
        every = ", ".join(f"{stem}/{known}" for known in variants)
        raise UserError(f"--task {name}: expected one of its variants{which}; {every}")
    return Task(**{**sections, **variants.get(variant, {})})


def _sections(stem: str, variant: str = "") -> dict[str, Any]:
    """The content of a task's file, with the name of the variant where it stands for it."""
    text = (HERE / f"{stem}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text.replace("{variant}", variant)))


def task_names() -> list[str]:
    """Every name that --task takes."""
    variants = {stem: list(_sections(stem).get("variants", {})) for stem in TASKS}
    return [name for stem in TASKS for name in ([f"{stem}/{variant}" for variant in variants[stem]] or [stem])]
