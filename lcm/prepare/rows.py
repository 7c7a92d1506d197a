"""Row → document: the meaning of columns, and the reasons for which a row is refused."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from lcm.codec.text import length_wish
from lcm.data.manifest import SPLITS
from lcm.errors import UserError
from lcm.ledger import printable

AUDIO_BYTES = 2_000
"""Bytes of a 16 kHz file that count as one character of work: a sentence of 88 characters is about six seconds."""


_LABELS = (str, int, float, Decimal, date, time, timedelta, UUID)
"""Types that are an id, title or source as text."""


@dataclass(frozen=True)
class Document:
    """A text, with its summary where documents come in pairs.

    split:        None where the row names none
    summary_lang: None where it is the language of the text
    audio:        recordings to read in this order, instead of a text
    """

    id: str
    text: str
    title: str
    source: str
    lang: str
    split: str | None
    summary: str | None = None
    summary_lang: str | None = None
    audio: tuple[str, ...] = ()

    @property
    def characters(self) -> int:
        audio = sum(path.stat().st_size for path in map(Path, self.audio) if path.is_file())
        return len(self.text) + len(self.summary or "") + audio // AUDIO_BYTES


@dataclass(frozen=True)
class Refused:
    """A row or file that cannot be used. reason: one of a few, to be counted; example: its place, and what is wrong."""

    reason: str
    example: str


@dataclass(frozen=True)
class Bound:
    """Refuses rows whose number in `column` is above, or below, `value`."""

    column: str
    side: Literal["above", "below"]
    value: float

    def refuses(self, row: dict[str, Any], place: str) -> Refused | None:
        """The reason, where the row is beyond the bound or has no number in the column."""
        number = row.get(self.column)
        if isinstance(number, bool) or not isinstance(number, int | float | Decimal) or number != number:
            return Refused(f"no number in '{self.column}'", f"{place}: {shortened(number)}")
        if number > self.value if self.side == "above" else number < self.value:
            return Refused(f"{self.column} {self.side} {self.value:g}", f"{place}: {_short(number)}")
        return None


def _short(number: int | float | Decimal) -> str:
    return f"{number:g}" if -1e300 < number < 1e300 else str(number)[:40]  # no float holds every int


def bound(given: str, side: Literal["above", "below"]) -> Bound:
    """Parse `COLUMN=NUMBER`. Raises UserError for anything else."""
    column, _, value = given.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not column or math.isnan(number):
        raise UserError(f"--drop-{side}={given}: expected COLUMN=NUMBER, for example fragility=0.3")
    return Bound(column, side, number)


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read. summary: None where there are no pairs.

    lang, summary_lang: columns with a FLORES code; None where all rows are in one language
    audio:              column with one path or several, instead of a text; None where rows are text
    drop:               bounds on numbers in a row
    """

    text: str = "text"
    id: str = "id"
    title: str = "title"
    split: str = "split"
    summary: str | None = None
    lang: str | None = None
    summary_lang: str | None = None
    audio: str | None = None
    drop: tuple[Bound, ...] = ()

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns without which a row is refused."""
        names = (None if self.audio else self.text, self.summary, self.lang, self.summary_lang, self.audio)
        return tuple(column for column in names if column is not None)

    @property
    def wanted(self) -> set[str]:
        return {*self.needed, self.id, self.title, self.split, "source", *(bound.column for bound in self.drop)}

    def document(self, row: dict[str, Any], name: str, place: str, lang: str, folder: Path) -> Document | Refused:
        """Make a document of a row, or give the first reason to refuse it.

        name, place: the source and the id of a row that has none: name of the file or data set, place in it
        lang:        language of rows where no column names one
        folder:      folder that the paths of audio files are relative to
        """
        audio: tuple[str, ...] = ()
        for column in self.needed:
            if column not in row:
                return Refused(f"no column '{column}'", place)
            if column == self.audio:
                if isinstance(paths := _paths(row[column], folder, f"{place}: {column}"), Refused):
                    return paths
                audio = paths
            elif refused := _not_text(row[column], f"{place}: {column}"):
                return refused
        split = row.get(self.split)
        split = None if split == "" or split != split else split  # NaN is how some writers say that there is none
        if split is not None and split not in SPLITS:
            return Refused("unknown split", f"{place}: {shortened(split)}, expected one of {', '.join(SPLITS)}")
        for bound in self.drop:
            if refused := bound.refuses(row, place):
                return refused
        return Document(
            id=_label(row.get(self.id), place),
            text="" if self.audio else row[self.text],
            title=_label(row.get(self.title), ""),
            source=_label(row.get("source"), name),
            lang=lang if self.lang is None else row[self.lang].strip(),
            split=split,
            summary=None if self.summary is None else row[self.summary],
            summary_lang=None if self.summary_lang is None else row[self.summary_lang].strip(),
            audio=audio,
        )


def split_of(id: str) -> str:
    """The split of a document that names none, by a hash of its id: a sixteenth each for validation and test."""
    sixteenth = hashlib.sha1(id.encode("utf-8")).hexdigest()[-1]
    return {"0": "validation", "1": "test"}.get(sixteenth, "train")


def wish_for(document: Document, sentences: int, answered: int) -> list[str]:
    """The sentence that asks for an answer as long as the pair's is, for half of the pairs, chosen by their ids."""
    chosen = hashlib.sha1(document.id.encode("utf-8")).digest()[0] % 2  # the last digit decides the split
    return [length_wish(answered / sentences)] if chosen and sentences and answered else []


def add_names(columns_seen: dict[str, None], columns: Iterable[str]) -> None:
    """Add names of columns to those seen. Stops at about a hundred, enough for an error message."""
    if len(columns_seen) < 100:
        columns_seen |= dict.fromkeys(columns)


def repeated(names: Iterable[str]) -> list[str]:
    """Names that stand there more than once: a row would have the last value of each, and nobody would know."""
    return [name for name, count in Counter(names).items() if count > 1]


def _not_text(value: Any, place: str) -> Refused | None:
    if not isinstance(value, str) or "\0" in value:
        return Refused("not text", f"{place} is {shortened(value)}")
    if not value.strip():
        return Refused("empty", place)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates, which JSON escapes can smuggle in
        return Refused("not UTF-8", f"{place} is {shortened(value)}")
    return None


def _paths(value: Any, folder: Path, place: str) -> tuple[str, ...] | Refused:
    """The audio files of a row. A missing file is refused here, not by a worker much later."""
    values = value if isinstance(value, list) else [value]
    if refused := next((r for v in values if (r := _not_text(v, place))), None):
        return refused
    paths = [folder / v for v in values]
    if not paths:
        return Refused("empty", place)
    if missing := next((path for path in paths if not path.is_file()), None):
        return Refused("no such audio file", f"{place}: {missing}")
    return tuple(map(str, paths))


def _label(value: Any, default: str) -> str:
    """An id, title or source as text; `default` where the row has none."""
    usable = isinstance(value, _LABELS) and not isinstance(value, bool) and value == value
    if not usable or value == "":
        return default
    return printable(str(value))


def shortened(value: Any) -> str:
    """A value as it may stand in an error message: in quotes, at most 100 characters, valid UTF-8."""
    shown = repr(value if not isinstance(value, str | bytes) else value[:80])
    return printable(shown if len(shown) <= 100 else shown[:100] + "…")
