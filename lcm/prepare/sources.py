"""Files → rows → documents, one at a time. Anything else in them comes as `Refused`, never dropped.

Every reader of rows in the project uses `opened` and `read_rows`: decompression, JSON lines and parquet.
"""

import codecs
import glob
import gzip
import io
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from lcm.data.manifest import DatasetInfo
from lcm.errors import UserError
from lcm.options import several
from lcm.prepare.rows import Columns, Document, Refused, add_names, shortened

FORMATS = (".txt", ".jsonl", ".parquet")
AUDIO = (".wav", ".flac")
COMPRESSIONS = (".gz", ".xz", ".zst")
KINDS = f"{', '.join(FORMATS)}, each also with {', '.join(COMPRESSIONS)}"
LIMIT = 64 << 20
"""Largest document, in bytes. A corpus without blank lines is one document, and must not fill the memory."""
TOO_LONG = f"longer than {LIMIT >> 20} MB"


Rows = Iterator[tuple[int, dict[str, Any] | Refused]]
"""Rows with their numbers in the file, which count from 1."""


class DamagedFile(Exception):
    """A file that ends too early, or is not of the format in its name. The rows read so far are good."""


def format_of(path: Path) -> str | None:
    """'.jsonl' for a.jsonl and for a.jsonl.xz; None for a file that is not an input."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in AUDIO:
        return suffixes[-1]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def find_inputs(names: Sequence[str], audio: bool = False, setting: str = "--input") -> list[Path]:
    """Expand files, folders and globs to input files, each once: in the order of `names`, sorted within each name.

    audio:   accept recordings, too; those of a folder or glob only where it holds no text
    setting: the setting that `names` comes from, for error messages
    Raises UserError for a name that matches no input file.
    """
    formats = (*FORMATS, *AUDIO) if audio else FORMATS
    by_place: dict[Path, Path] = {}
    for name in map(str, several(names)):
        for path in _expand(name, formats, setting):
            by_place.setdefault(path.resolve(), path)
    return list(by_place.values())


def _expand(name: str, formats: Sequence[str], setting: str) -> list[Path]:
    path = Path(name)
    kinds = KINDS + (f"; {', '.join(AUDIO)}" if AUDIO[0] in formats else "")
    if path.is_file():
        if format_of(path) not in formats:
            raise UserError(f"{setting}={name}: unknown kind of file; expected {kinds}")
        return [path]
    if path.is_dir():
        matches = [path]
    elif glob.has_magic(name):
        matches = [Path(match) for match in glob.glob(name, recursive=True)]
    else:
        raise UserError(f"{setting}={name}: no such file or folder")
    files = {f for match in matches for f in ([match] if match.is_file() else match.rglob("*"))}
    usable = sorted(f for f in files if f.is_file() and format_of(f) in formats and not f.name.startswith("."))
    if not usable:
        raise UserError(f"{setting}={name}: no input in there; expected {kinds}")
    return [f for f in usable if format_of(f) in FORMATS] or usable


@contextmanager
def opened(path: Path) -> Iterator[tuple[io.BufferedIOBase, io.BufferedIOBase]]:
    """Open a file, decompressed by its suffix. Yields (the file as stored, its plain bytes).

    Raises DamagedFile from inside the block, when the reading comes to the damage.
    """
    with path.open("rb") as raw:
        try:
            match path.suffix.lower():
                case ".gz":
                    yield raw, gzip.GzipFile(fileobj=raw)
                case ".xz":
                    yield raw, lzma.LZMAFile(raw)  # noqa: SIM115 (closing `raw` is enough)
                case ".zst":
                    yield raw, io.BufferedReader(pa.CompressedInputStream(raw, "zstd"))
                case _:
                    yield raw, raw
        except EOFError as error:
            raise DamagedFile("truncated file") from error
        except (zlib.error, lzma.LZMAError, gzip.BadGzipFile, pa.ArrowInvalid) as error:
            raise DamagedFile("corrupt file") from error
        except OSError as error:
            if error.errno is not None:  # an error of the disk
                raise
            raise DamagedFile("truncated file" if "runcated" in str(error) else "corrupt file") from error


def read_rows(path: Path) -> Rows:
    """Rows of a .parquet file, or of a file of JSON lines whatever its name; compressed or not. Numbered from 1.

    A row that cannot be read comes as Refused, with "PATH:NUMBER: …" as its example; blank lines are skipped. A damaged
    file ends with (0, Refused), with its path as the example.
    """
    try:
        with opened(path) as (_, plain):
            yield from rows_of(path, plain, str(path), None, {})
    except DamagedFile as damage:
        yield 0, Refused(str(damage), str(path))


def rows_of(path: Path, plain: io.BufferedIOBase, name: str, wanted: set[str] | None, seen: dict[str, None]) -> Rows:
    """`read_rows` for an open file, which may be damaged.

    name:   stands for the file in examples of `Refused`
    wanted: columns to read of .parquet; None: all
    seen:   names of columns are added to it
    """
    if format_of(path) != ".parquet":
        yield from _json_rows(plain, name, seen)
    elif path.suffix.lower() == ".parquet":
        yield from _parquet_rows(plain, name, wanted, seen)
    else:  # the format needs random access
        with tempfile.TemporaryFile() as seekable:
            shutil.copyfileobj(plain, seekable)
            yield from _parquet_rows(cast(io.BufferedIOBase, seekable), name, wanted, seen)


def _json_rows(plain: io.BufferedIOBase, name: str, seen: dict[str, None]) -> Rows:
    for number, line in enumerate(lines_of(plain), 1):
        place = f"{name}:{number}"
        if len(line) > LIMIT:
            yield number, Refused(TOO_LONG, place)
            continue
        try:
            row = json.loads(text) if (text := line.decode("utf-8").strip()) else None
        except UnicodeDecodeError:
            yield number, Refused("not UTF-8", f"{place}: {shortened(line)}")
            continue
        except (ValueError, RecursionError):
            yield number, Refused("invalid JSON", f"{place}: {shortened(line)}")
            continue
        if isinstance(row, dict):
            add_names(seen, row)
            yield number, row
        elif text:
            yield number, Refused("not a JSON object", f"{place}: {shortened(line)}")


def _parquet_rows(plain: io.BufferedIOBase, name: str, wanted: set[str] | None, seen: dict[str, None]) -> Rows:
    # Without either setting a whole row group is held in memory, and some files are a single one.
    file = pq.ParquetFile(plain, buffer_size=1 << 20, pre_buffer=False)
    names = file.schema_arrow.names
    add_names(seen, names)
    columns = [column for column in names if wanted is None or column in wanted]
    batches = file.iter_batches(batch_size=16, columns=columns, use_threads=False)
    rows = (batch.slice(i, 1) for batch in batches for i in range(len(batch)))
    for number, row in enumerate(rows, 1):
        try:
            values = row.to_pylist()[0]
        except UnicodeDecodeError:
            values = Refused("not UTF-8", f"{name}:{number}")
        yield number, values


def lines_of(plain: io.BufferedIOBase) -> Iterator[bytes]:
    """Lines without the byte order mark, each cut after LIMIT + 1 bytes: enough to see that it is too long."""
    mark = codecs.BOM_UTF8
    while line := plain.readline(LIMIT + 1):
        yield line.removeprefix(mark)
        mark = b""
        while len(line) > LIMIT and not line.endswith(b"\n"):
            line = plain.readline(LIMIT + 1)


def blocks_of(plain: io.BufferedIOBase) -> Iterator[bytes]:
    """Lines joined up to the next blank one, each block cut after about LIMIT bytes."""
    for is_text, lines in groupby(lines_of(plain), lambda line: bool(line.strip())):
        if is_text:
            block, size = [], 0
            for line in lines:
                if size <= LIMIT:
                    block.append(line)
                size += len(line)
            yield b"".join(block)


class Sources:
    """The documents of many files, in order. Memory holds one document (of .parquet: a few rows) at a time.

    lang:           language of rows where no column names one
    file_documents: each .txt file is one document; otherwise blank lines separate them
    """

    def __init__(
        self, files: Sequence[Path], columns: Columns, lang: str = "eng_Latn", file_documents: bool = False
    ) -> None:
        self.files, self.columns, self.lang, self.file_documents = files, columns, lang, file_documents
        self.info: DatasetInfo | None = None
        self.columns_seen: dict[str, None] = {}
        """Names of the columns in the rows read so far, in order of appearance."""
        self.total_bytes = sum(path.stat().st_size for path in files)
        """Size of all files, as stored on disk."""
        self._bytes_before = 0
        self._raw: io.BufferedIOBase | None = None

    @property
    def bytes_read(self) -> int:
        """Bytes read so far, as stored on disk."""
        return self._bytes_before + (self._raw.tell() if self._raw else 0)

    def __iter__(self) -> Iterator[Document | Refused]:
        self._bytes_before = 0
        for path in self.files:
            try:
                with opened(path) as (self._raw, plain):
                    yield from self._documents(path, plain)
            except DamagedFile as damage:
                yield Refused(str(damage), str(path))
            finally:
                self._raw = None
            self._bytes_before += path.stat().st_size

    def _documents(self, path: Path, plain: io.BufferedIOBase) -> Iterator[Document | Refused]:
        match format_of(path):
            case ".txt":
                yield from self._texts(path, plain)
            case ".wav" | ".flac":
                # A recording is a row with nothing but its file: no title, no summary, no language of its own.
                columns, only = replace(self.columns, audio="audio"), {"audio": path.name, self.columns.id: path.name}
                yield columns.document(only, path.name, path.name, self.lang, path.parent)
            case _:
                for number, row in rows_of(path, plain, path.name, self.columns.wanted, self.columns_seen):
                    yield row if isinstance(row, Refused) else self._document(row, path, f"{path.name}:{number}")

    def _texts(self, path: Path, plain: io.BufferedIOBase) -> Iterator[Document | Refused]:
        blocks = iter([plain.read(LIMIT + 1)]) if self.file_documents else blocks_of(plain)
        for number, block in enumerate(blocks, 1):
            place = path.name if self.file_documents else f"{path.name}:{number}"
            if len(block) > LIMIT:
                yield Refused(TOO_LONG, f"{place}: is there a blank line between documents?")
                continue
            try:
                text = block.decode("utf-8-sig")
            except UnicodeDecodeError:
                yield Refused("not UTF-8", f"{place}: {shortened(block)}")
                continue
            yield self._document({self.columns.id: place, self.columns.text: text}, path, place)

    def _document(self, row: dict[str, Any], path: Path, place: str) -> Document | Refused:
        return self.columns.document(row, path.name, place, self.lang, path.parent)
