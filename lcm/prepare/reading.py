"""Bytes of a file → rows: decompression, JSON lines and parquet. Every reader of rows in the project uses this one."""

import codecs
import gzip
import io
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from lcm.prepare.rows import Refused, add_names, shortened

FORMATS = (".txt", ".jsonl", ".parquet")
AUDIO = (".wav", ".flac")
COMPRESSIONS = (".gz", ".xz", ".zst")
KINDS = f"{', '.join(FORMATS)}, each also with {', '.join(COMPRESSIONS)}"

LIMIT = 64 << 20
"""Largest document, in bytes. A corpus without blank lines is one document, and must not fill the memory."""
TOO_LONG = f"longer than {LIMIT >> 20} MB"


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


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | Refused]]:
    """Rows of a .parquet file, or of a file of JSON lines whatever its name; compressed or not. Numbered from 1.

    A row that cannot be read comes as Refused, with "PATH:NUMBER: …" as its example; blank lines are skipped. A damaged
    file ends with (0, Refused), with its path as the example.
    """
    try:
        with opened(path) as (_, plain):
            yield from rows_of(path, plain, str(path))
    except DamagedFile as damage:
        yield 0, Refused(str(damage), str(path))


def rows_of(
    path: Path,
    plain: io.BufferedIOBase,
    name: str,
    wanted: Collection[str] | None = None,
    seen: dict[str, None] | None = None,
) -> Iterator[tuple[int, dict[str, Any] | Refused]]:
    """`read_rows` for an open file, which may be damaged.

    name:   stands for the file in examples of `Refused`
    wanted: columns to read of .parquet (default: all)
    seen:   names of columns are added to it
    """
    seen = {} if seen is None else seen
    if format_of(path) != ".parquet":
        yield from _json_rows(plain, name, seen)
    elif path.suffix.lower() == ".parquet":
        yield from _parquet_rows(plain, name, wanted, seen)
    else:  # the format needs random access
        with tempfile.TemporaryFile() as seekable:
            shutil.copyfileobj(plain, seekable)
            yield from _parquet_rows(cast(io.BufferedIOBase, seekable), name, wanted, seen)


def _json_rows(
    plain: io.BufferedIOBase, name: str, seen: dict[str, None]
) -> Iterator[tuple[int, dict[str, Any] | Refused]]:
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


def _parquet_rows(
    plain: io.BufferedIOBase, name: str, wanted: Collection[str] | None, seen: dict[str, None]
) -> Iterator[tuple[int, dict[str, Any] | Refused]]:
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
    block: list[bytes] = []
    size = 0
    for line in lines_of(plain):
        if line.strip():
            if size <= LIMIT:
                block.append(line)
            size += len(line)
        elif block:
            yield b"".join(block)
            block, size = [], 0
    if block:
        yield b"".join(block)
