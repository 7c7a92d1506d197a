"""Rows of Parquet files. A value of any type becomes text, a number, or the reason to refuse its row."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lcm.prepare.rows import Refused, add_names, repeated, shortened
from lcm.streams import DamagedFile

MAGIC = b"PAR1"


def parquet_rows(
    plain: BufferedIOBase, name: str, wanted: set[str] | None, seen: dict[str, None]
) -> Iterator[tuple[int, dict[str, Any] | Refused]]:
    """Rows with their numbers, from 1, of an open file that can seek. Raises DamagedFile.

    name, wanted, seen: as of `rows_of`
    """
    number = 0
    with _damage():
        # Without the first two settings a whole row group is held in memory, and some files are a single one.
        file = pq.ParquetFile(plain, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
    names = file.schema_arrow.names
    add_names(seen, names)
    columns = [column for column in names if wanted is None or column in wanted]
    batches = file.iter_batches(batch_size=16, columns=columns, use_threads=False)
    while True:
        with _damage():
            batch = next(batches, None)
        if batch is None:
            return
        cells = {column: _plain(array) for column, array in zip(batch.schema.names, batch.columns, strict=True)}
        twice = repeated(batch.schema.names)
        for i in range(len(batch)):
            number += 1
            if twice:
                yield number, Refused("column twice", f"{name}:{number}: {shortened(twice[0])}")
                continue
            yield number, _row({column: array[i] for column, array in cells.items()}, f"{name}:{number}")


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # an error of the disk
            raise
        raise DamagedFile("corrupt file", f"Parquet: {' '.join(str(error).split())[:200]}") from error


def _plain(array: pa.Array) -> pa.Array:
    """A column with times and dates as text: Python's own have no nanoseconds, and no years after 9999."""
    if not pa.types.is_temporal(array.type):
        return array
    try:
        return array.cast(pa.string())
    except pa.ArrowException:  # durations, and time zones that are not known here
        return array.cast(pa.int64()).cast(pa.string()) if array.type.bit_width == 64 else array


def _row(cells: dict[str, Any], place: str) -> dict[str, Any] | Refused:
    values = {}
    for column, cell in cells.items():
        try:
            values[column] = value = cell.as_py()
            if isinstance(value, bytes):  # text of writers that do not mark it as such, or anything else
                values[column] = value.decode("utf-8")
        except UnicodeDecodeError:
            if not isinstance(values.get(column), bytes):
                return Refused("not UTF-8", place)
        except (ValueError, OverflowError, pa.ArrowException) as error:
            return Refused("not convertible", f"{place}: {column} ({cell.type}): {error}"[:200])
    return values
