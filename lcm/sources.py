"""Text files → documents and pairs, one at a time. What cannot be used is told apart and handed on, never dropped."""

import codecs
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from lcm.inputs import DamagedFile, format_of, opened

SPLITS = ("train", "validation", "test")

LIMIT = 64 << 20
"""Bytes of the longest document. A corpus without blank lines is one document, and must not fill the memory."""

TOO_LONG = f"longer than {LIMIT >> 20} MB"


@dataclass(frozen=True)
class Document:
    """One text, and with it its summary where documents come in pairs. split: None where the row does not say."""

    id: str
    text: str
    title: str
    source: str
    lang: str
    split: str | None
    summary: str | None = None

    @property
    def characters(self) -> int:
        return len(self.text) + len(self.summary or "")


@dataclass(frozen=True)
class Refused:
    """Something that cannot become a document. reason: one of a few; example: where it was, and what."""

    reason: str
    example: str


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read from .jsonl and .parquet. summary: None where there are no pairs."""

    text: str = "text"
    id: str = "id"
    title: str = "title"
    split: str = "split"
    summary: str | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        return (self.text,) if self.summary is None else (self.text, self.summary)


class Sources:
    """The documents of many files, in order. Memory holds one document (of .parquet: a few rows) at a time."""

    def __init__(
        self, files: Sequence[Path], columns: Columns, lang: str = "eng_Latn", file_documents: bool = False
    ) -> None:
        self.files = files
        self.columns = columns
        self.lang = lang
        self.file_documents = file_documents
        self.columns_seen: dict[str, None] = {}
        """Names of the columns that rows had, in the order met."""
        self._bytes_before = 0
        self._raw: io.BufferedIOBase | None = None

    @property
    def bytes_read(self) -> int:
        """How far the reading has come, in bytes on the disk."""
        return self._bytes_before + (self._raw.tell() if self._raw else 0)

    def __iter__(self) -> Iterator[Document | Refused]:
        self._bytes_before = 0
        for path in self.files:
            try:
                with opened(path) as (self._raw, plain):
                    yield from self._read(path, plain)
            except DamagedFile as damage:
                yield Refused(str(damage), str(path))
            except pa.ArrowInvalid:
                yield Refused("corrupt file", str(path))
            finally:
                self._raw = None
            self._bytes_before += path.stat().st_size

    def _read(self, path: Path, plain: io.BufferedIOBase) -> Iterator[Document | Refused]:
        match format_of(path):
            case ".txt":
                yield from self._read_txt(path.name, plain)
            case ".jsonl":
                yield from self._read_jsonl(path.name, plain)
            case ".parquet" if path.suffix.lower() == ".parquet":
                yield from self._read_parquet(path.name, plain)
            case _:
                with tempfile.TemporaryFile() as seekable:
                    shutil.copyfileobj(plain, seekable)
                    yield from self._read_parquet(path.name, cast(io.BufferedIOBase, seekable))

    def _read_txt(self, name: str, plain: io.BufferedIOBase) -> Iterator[Document | Refused]:
        blocks = iter([plain.read(LIMIT + 1)]) if self.file_documents else _blocks(plain)
        for number, block in enumerate(blocks, 1):
            place = name if self.file_documents else f"{name}:{number}"
            if len(block) > LIMIT:
                yield Refused(TOO_LONG, f"{place}: is there a blank line between documents?")
                continue
            try:
                text = block.decode("utf-8-sig")
            except UnicodeDecodeError:
                yield Refused("not UTF-8", f"{place}: {_shortened(block)}")
                continue
            yield self._document({self.columns.id: place, self.columns.text: text}, name, place)

    def _read_jsonl(self, name: str, plain: io.BufferedIOBase) -> Iterator[Document | Refused]:
        for number, line in enumerate(_lines(plain), 1):
            place = f"{name}:{number}"
            if len(line) > LIMIT:
                yield Refused(TOO_LONG, place)
                continue
            try:
                row = json.loads(text) if (text := line.decode("utf-8").strip()) else None
            except UnicodeDecodeError:
                yield Refused("not UTF-8", f"{place}: {_shortened(line)}")
                continue
            except (ValueError, RecursionError):
                yield Refused("invalid JSON", f"{place}: {_shortened(line)}")
                continue
            if isinstance(row, dict):
                self._saw(row)
                yield self._document(row, name, place)
            elif text:
                yield Refused("not a JSON object", f"{place}: {_shortened(line)}")

    def _read_parquet(self, name: str, plain: io.BufferedIOBase) -> Iterator[Document | Refused]:
        # Both settings, or a row group is held whole, and there are files with a single one.
        file = pq.ParquetFile(plain, buffer_size=1 << 20, pre_buffer=False)
        columns = file.schema_arrow.names
        self._saw(columns)
        wanted = {*self.columns.needed, self.columns.id, self.columns.title, self.columns.split, "source"}
        batches = file.iter_batches(batch_size=16, columns=[c for c in columns if c in wanted], use_threads=False)
        rows = (batch.slice(i, 1) for batch in batches for i in range(len(batch)))
        for number, one_row in enumerate(rows, 1):
            place = f"{name}:{number}"
            try:
                row = one_row.to_pylist()[0]
            except UnicodeDecodeError:
                yield Refused("not UTF-8", place)
                continue
            yield self._document(row, name, place)

    def _saw(self, columns: Iterable[str]) -> None:
        if len(self.columns_seen) < 100:
            self.columns_seen |= dict.fromkeys(columns)

    def _document(self, row: dict[str, Any], name: str, place: str) -> Document | Refused:
        """A row as a document, or the first thing that is wrong with it."""
        columns = self.columns
        for column in columns.needed:
            if column not in row:
                return Refused(f"no column '{column}'", place)
            value = row[column]
            if not isinstance(value, str) or "\0" in value:
                return Refused("not text", f"{place}: {column} is {_shortened(value)}")
            if not value.strip():
                return Refused("empty", f"{place}: {column}")
            if not _is_utf8(value):
                return Refused("not UTF-8", f"{place}: {column} is {_shortened(value)}")
        split = row.get(columns.split) or None
        if split is not None and split not in SPLITS:
            return Refused("unknown split", f"{place}: {_shortened(split)}, expected one of {', '.join(SPLITS)}")
        return Document(
            id=_label(row.get(columns.id), place),
            text=row[columns.text],
            title=_label(row.get(columns.title), ""),
            source=_label(row.get("source"), name),
            lang=self.lang,
            split=split,
            summary=None if columns.summary is None else row[columns.summary],
        )


def _lines(plain: io.BufferedIOBase) -> Iterator[bytes]:
    """The lines of a file without its byte order mark, each cut after LIMIT + 1 bytes: so one sees it is too long."""
    mark = codecs.BOM_UTF8
    while line := plain.readline(LIMIT + 1):
        yield line.removeprefix(mark)
        mark = b""
        while len(line) > LIMIT and not line.endswith(b"\n"):
            line = plain.readline(LIMIT + 1)


def _blocks(plain: io.BufferedIOBase) -> Iterator[bytes]:
    """Lines joined up to the next blank one, cut after some LIMIT bytes."""
    block: list[bytes] = []
    size = 0
    for line in _lines(plain):
        if line.strip():
            if size <= LIMIT:
                block.append(line)
            size += len(line)
        elif block:
            yield b"".join(block)
            block, size = [], 0
    if block:
        yield b"".join(block)


def _label(value: Any, default: str) -> str:
    """An id, title or source as text; `default` where the row has none."""
    usable = isinstance(value, str | int | float) and not isinstance(value, bool) and value == value
    if not usable or value == "":
        return default
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def _is_utf8(text: str) -> bool:
    """False for the lone surrogates that JSON escapes can smuggle in."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shortened(value: Any) -> str:
    shown = repr(value if not isinstance(value, str | bytes) else value[:80])
    return (shown if len(shown) <= 100 else shown[:100] + "…").encode("utf-8", "backslashreplace").decode("utf-8")
