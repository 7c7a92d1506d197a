"""Text files → documents and pairs, one at a time. What cannot be used is told apart and handed on, never dropped."""

import codecs
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from lcm.data import SPLITS
from lcm.prepare.inputs import DamagedFile, format_of, opened
from lcm.prepare.rows import Columns, Document, Refused, remember, shortened

__all__ = ["SPLITS", "Columns", "Document", "Refused", "Sources"]

LIMIT = 64 << 20
"""Bytes of the longest document. A corpus without blank lines is one document, and must not fill the memory."""

TOO_LONG = f"longer than {LIMIT >> 20} MB"


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
        self._folder = Path()
        self._bytes_before = 0
        self._raw: io.BufferedIOBase | None = None

    @property
    def bytes_read(self) -> int:
        """How far the reading has come, in bytes on the disk."""
        return self._bytes_before + (self._raw.tell() if self._raw else 0)

    def __iter__(self) -> Iterator[Document | Refused]:
        self._bytes_before = 0
        for path in self.files:
            self._folder = path.parent
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
            case ".wav" | ".flac":
                # Documents that have a file and nothing else: no title, no summary, no language of their own.
                columns, row = replace(self.columns, audio="audio"), {"audio": path.name, self.columns.id: path.name}
                yield columns.document(row, path.name, path.name, self.lang, path.parent)
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
                yield Refused("not UTF-8", f"{place}: {shortened(block)}")
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
                yield Refused("not UTF-8", f"{place}: {shortened(line)}")
                continue
            except (ValueError, RecursionError):
                yield Refused("invalid JSON", f"{place}: {shortened(line)}")
                continue
            if isinstance(row, dict):
                remember(self.columns_seen, row)
                yield self._document(row, name, place)
            elif text:
                yield Refused("not a JSON object", f"{place}: {shortened(line)}")

    def _read_parquet(self, name: str, plain: io.BufferedIOBase) -> Iterator[Document | Refused]:
        # Both settings, or a row group is held whole, and there are files with a single one.
        file = pq.ParquetFile(plain, buffer_size=1 << 20, pre_buffer=False)
        columns = file.schema_arrow.names
        remember(self.columns_seen, columns)
        batches = file.iter_batches(
            batch_size=16, columns=[c for c in columns if c in self.columns.wanted], use_threads=False
        )
        rows = (batch.slice(i, 1) for batch in batches for i in range(len(batch)))
        for number, one_row in enumerate(rows, 1):
            place = f"{name}:{number}"
            try:
                row = one_row.to_pylist()[0]
            except UnicodeDecodeError:
                yield Refused("not UTF-8", place)
                continue
            yield self._document(row, name, place)

    def _document(self, row: dict[str, Any], name: str, place: str) -> Document | Refused:
        return self.columns.document(row, name, place, self.lang, self._folder)


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
