"""Rows → documents: which columns mean what, and what is wrong with a row that cannot become a document."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from lcm.data import SPLITS
from lcm.errors import UserError

AUDIO_BYTES = 2_000
"""Bytes of a 16 kHz file that count as much work as a character: 88 characters are some six seconds."""


@dataclass(frozen=True)
class Document:
    """One text, and with it its summary where documents come in pairs.

    split:        None where the row does not say
    summary_lang: None where it is the language of the text
    audio:        files that are spoken one after the other, instead of a text
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
        return len(self.text) + len(self.summary or "") + sum(_size(path) for path in self.audio) // AUDIO_BYTES


@dataclass(frozen=True)
class Refused:
    """Something that cannot become a document. reason: one of a few; example: where it was, and what."""

    reason: str
    example: str


@dataclass(frozen=True)
class Bound:
    """Rows whose number in `column` is above, or below, `value` are refused."""

    column: str
    side: Literal["above", "below"]
    value: float

    def __str__(self) -> str:
        return f"{self.column} {self.side} {self.value:g}"

    def refuses(self, row: dict[str, Any], place: str) -> Refused | None:
        """Why, if it does: the row is beyond, or has no number there."""
        found = row.get(self.column)
        if isinstance(found, bool) or not isinstance(found, int | float) or math.isnan(found):
            return Refused(f"no number in '{self.column}'", f"{place}: {shortened(found)}")
        beyond = found > self.value if self.side == "above" else found < self.value
        return Refused(str(self), f"{place}: {found:g}") if beyond else None


def bound(given: str, side: Literal["above", "below"]) -> Bound:
    """`COLUMN=NUMBER` as a Bound. Raises UserError for anything else."""
    column, _, value = given.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not column or math.isnan(number):
        raise UserError(f"--drop-{side}={given}: expected COLUMN=NUMBER, such as fragility=0.3")
    return Bound(column, side, number)


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read from rows. summary: None where there are no pairs.

    lang, summary_lang: a FLORES code in every row; None where all are in one language
    audio:              a path or several, instead of a text; None where rows are text
    drop:               rows that are refused for a number in them
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
        found = (None if self.audio else self.text, self.summary, self.lang, self.summary_lang, self.audio)
        return tuple(column for column in found if column is not None)

    @property
    def wanted(self) -> set[str]:
        """All that `document` looks at."""
        return {*self.needed, self.id, self.title, self.split, "source", *(bound.column for bound in self.drop)}

    def document(
        self, row: dict[str, Any], name: str, place: str, lang: str, folder: Path = Path()
    ) -> Document | Refused:
        """A row as a document, or the first thing that is wrong with it.

        name, place: of the file or data set, and of the row: what a row without a source or an id gets
        lang:        of rows where no column says it
        folder:      where the paths of audio files start
        """
        audio: tuple[str, ...] = ()
        for column in self.needed:
            if column not in row:
                return Refused(f"no column '{column}'", place)
            if column == self.audio:
                if isinstance(found := _paths(row[column], folder, f"{place}: {column}"), Refused):
                    return found
                audio = found
            elif refused := _not_text(row[column], f"{place}: {column}"):
                return refused
        split = row.get(self.split) or None
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


@runtime_checkable
class Rows(Protocol):
    """Documents in a fixed order, from wherever they come."""

    columns: Columns
    columns_seen: dict[str, None]
    """Names of the columns that rows had, in the order met."""

    @property
    def bytes_read(self) -> int: ...
    def __iter__(self) -> Iterator[Document | Refused]: ...


def remember(columns_seen: dict[str, None], columns: Iterable[str]) -> None:
    """Add names of columns; about a hundred are enough to tell a person."""
    if len(columns_seen) < 100:
        columns_seen |= dict.fromkeys(columns)


def _not_text(value: Any, place: str) -> Refused | None:
    if not isinstance(value, str) or "\0" in value:
        return Refused("not text", f"{place} is {shortened(value)}")
    if not value.strip():
        return Refused("empty", place)
    return None if _is_utf8(value) else Refused("not UTF-8", f"{place} is {shortened(value)}")


def _paths(value: Any, folder: Path, place: str) -> tuple[str, ...] | Refused:
    """The audio files of a row; one that is not there is refused now, not by a worker much later."""
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
    usable = isinstance(value, str | int | float) and not isinstance(value, bool) and value == value
    if not usable or value == "":
        return default
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def _size(path: str) -> int:
    file = Path(path)
    return file.stat().st_size if file.is_file() else 0


def _is_utf8(text: str) -> bool:
    """False for the lone surrogates that JSON escapes can smuggle in."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shortened(value: Any) -> str:
    shown = repr(value if not isinstance(value, str | bytes) else value[:80])
    return (shown if len(shown) <= 100 else shown[:100] + "…").encode("utf-8", "backslashreplace").decode("utf-8")
