"""Files → rows → documents, one at a time. Anything else in them comes as `Refused`, never dropped.

Every reader of rows in the project uses `read_rows`, or `Sources`.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

from lcm import streams
from lcm.data.manifest import DatasetInfo
from lcm.ledger import Ledger, printable
from lcm.prepare.discovery import format_of, names_of
from lcm.prepare.parquet import MAGIC, parquet_rows
from lcm.prepare.rows import Columns, Document, Refused, add_names, repeated, shortened
from lcm.streams import DamagedFile, blocks_of, lines_of, opened

TOO_LONG = f"longer than {streams.LIMIT >> 20} MB"

Rows = Iterator[tuple[int, dict[str, Any] | Refused]]
"""Rows with their numbers in the file, which count from 1."""


def read_rows(path: Path) -> Rows:
    """Rows of a .parquet file, or of a file of JSON lines whatever its name; compressed or not. Numbered from 1.

    A row that cannot be read comes as Refused, with "PATH:NUMBER: …" as its example; blank lines are skipped. A damaged
    file ends with (0, Refused), with its path as the example.
    """
    try:
        with open_input(path) as (_, plain):
            yield from rows_of(path, plain, printable(str(path)), None, {})
    except DamagedFile as damage:
        yield 0, _refusal(damage, path)


def open_input(path: Path) -> AbstractContextManager[tuple[BufferedIOBase, BufferedIOBase]]:
    """`opened`, for a file whose name says that it holds text or Parquet."""
    return opened(path, expected=MAGIC if format_of(path) == ".parquet" else b"")


def _refusal(damage: DamagedFile, path: Path) -> Refused:
    return Refused(damage.reason, printable(f"{path}: {damage.detail}"))


def rows_of(path: Path, plain: BufferedIOBase, name: str, wanted: set[str] | None, seen: dict[str, None]) -> Rows:
    """`read_rows` for an open file, which may be damaged.

    name:   stands for the file in examples of `Refused`
    wanted: columns to read of .parquet; None: all
    seen:   names of columns are added to it
    """
    if format_of(path) != ".parquet":
        yield from _json_rows(plain, name, seen)
    elif plain.seekable():
        yield from parquet_rows(plain, name, wanted, seen)
    else:  # the format needs random access
        with tempfile.TemporaryFile() as seekable:
            shutil.copyfileobj(plain, seekable)
            yield from parquet_rows(cast(BufferedIOBase, seekable), name, wanted, seen)


def _json_rows(plain: BufferedIOBase, name: str, seen: dict[str, None]) -> Rows:
    for number, line in enumerate(lines_of(plain), 1):
        place = f"{name}:{number}"
        if len(line) > streams.LIMIT:
            yield number, Refused(TOO_LONG, place)
            continue
        twice: list[str] = []
        try:
            text = line.decode("utf-8").strip()
            row = json.loads(text, object_pairs_hook=partial(_once, twice=twice)) if text else None
        except UnicodeDecodeError:
            yield number, Refused("not UTF-8", f"{place}: {shortened(line)}")
            continue
        except (ValueError, RecursionError):
            yield number, Refused("invalid JSON", f"{place}: {shortened(line)}")
            continue
        if isinstance(row, dict) and twice:
            yield number, Refused("column twice", f"{place}: {shortened(twice[0])}")
        elif isinstance(row, dict):
            add_names(seen, row)
            yield number, row
        elif text:
            yield number, Refused("not a JSON object", f"{place}: {shortened(line)}")


def _once(pairs: list[tuple[str, Any]], twice: list[str]) -> dict[str, Any]:
    """An object of JSON. twice: becomes its keys that it has already; so after the last call, the outermost's."""
    found = dict(pairs)
    twice[:] = () if len(found) == len(pairs) else repeated([key for key, _ in pairs])
    return found


class Sources:
    """The documents of many files, in order. Memory holds one document (of .parquet: a few rows) at a time.

    lang:           language of rows where no column names one
    file_documents: each .txt file is one document; otherwise blank lines separate them
    passed:         what `find_inputs` passed over to find `files`
    """

    def __init__(
        self,
        files: Sequence[Path],
        columns: Columns,
        lang: str = "eng_Latn",
        file_documents: bool = False,
        passed: Ledger | None = None,
    ) -> None:
        self.files, self.columns, self.lang, self.file_documents = files, columns, lang, file_documents
        self._names = names_of(files)
        self.passed = Ledger() if passed is None else passed
        self.info: DatasetInfo | None = None
        self.columns_seen: dict[str, None] = {}
        """Names of the columns in the rows read so far, in order of appearance."""
        self.total_bytes = sum(path.stat().st_size for path in files)
        """Size of all files, as stored on disk."""
        self.file = -1
        """Number of the file that was read last, from 0."""
        self._bytes_before = 0
        self._raw: BufferedIOBase | None = None

    @property
    def bytes_read(self) -> int:
        """Bytes read so far, as stored on disk."""
        return self._bytes_before + (self._raw.tell() if self._raw else 0)

    def __iter__(self) -> Iterator[Document | Refused]:
        self._bytes_before = 0
        for number, path in enumerate(self.files):
            self.file = number
            try:
                with open_input(path) as (self._raw, plain):
                    yield from self._documents(path, plain)
            except DamagedFile as damage:
                yield _refusal(damage, path)
            finally:
                self._raw = None
            self._bytes_before += path.stat().st_size

    def _documents(self, path: Path, plain: BufferedIOBase) -> Iterator[Document | Refused]:
        name = self._names[self.file]
        match format_of(path):
            case ".txt":
                yield from self._texts(path, plain)
            case ".wav" | ".flac":
                # A recording is a row with nothing but its file: no title, no summary, no language of its own.
                columns, only = replace(self.columns, audio="audio"), {"audio": path.name, self.columns.id: name}
                yield columns.document(only, name, name, self.lang, path.parent)
            case _:
                for number, row in rows_of(path, plain, name, self.columns.wanted, self.columns_seen):
                    yield row if isinstance(row, Refused) else self._document(row, path, f"{name}:{number}")

    def _texts(self, path: Path, plain: BufferedIOBase) -> Iterator[Document | Refused]:
        blocks = iter([plain.read(streams.LIMIT + 1)]) if self.file_documents else blocks_of(plain)
        name = self._names[self.file]
        for number, block in enumerate(blocks, 1):
            place = name if self.file_documents else f"{name}:{number}"
            if len(block) > streams.LIMIT:
                yield Refused(TOO_LONG, f"{place}: is there a blank line between documents?")
                continue
            try:
                text = block.decode("utf-8-sig")
            except UnicodeDecodeError:
                yield Refused("not UTF-8", f"{place}: {shortened(block)}")
                continue
            yield self._document({self.columns.id: place, self.columns.text: text}, path, place)

    def _document(self, row: dict[str, Any], path: Path, place: str) -> Document | Refused:
        return self.columns.document(row, self._names[self.file], place, self.lang, path.parent)
