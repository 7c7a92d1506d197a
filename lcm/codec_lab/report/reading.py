"""Files → sentences with their languages: .txt, .jsonl, .tsv and .parquet, one sentence a line or row."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lcm.errors import UserError, existing_file
from lcm.prepare import DamagedFile, opened

KINDS = ".txt, .jsonl, .tsv, .parquet; all but the last also with .gz, .xz, .zst"


@dataclass(frozen=True)
class Sentence:
    """row: its place among the sentences of all inputs, from 0; blank lines have none."""

    text: str
    lang: str
    row: int


def read_sentences(
    inputs: Sequence[str | Path], *, text_column: str | None = None, lang_column: str = "lang", lang: str = "eng_Latn"
) -> list[Sentence]:
    """The sentences of all files, in order, their white space reduced to single blanks; blank ones are left out.

    text_column: .jsonl and .parquet: its name ("text"). .tsv: its number from 1 (the last), or its name in the first
                 line
    lang_column: where a row has such a column, it is the row's language, else `lang`
    Raises UserError for a file that is not there or of another kind, a row that cannot be read, and no sentence at all.
    """
    found: list[Sentence] = []
    for name in inputs:
        path = existing_file(name, "--input")
        for text, row_lang in _rows(path, text_column, lang_column):
            if plain := " ".join(text.split()):
                found.append(Sentence(plain, row_lang or lang, len(found)))
    if not found:
        raise UserError(f"--input={', '.join(map(str, inputs))}: no sentences in there")
    return found


def _rows(path: Path, text_column: str | None, lang_column: str) -> Iterator[tuple[str, str | None]]:
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in (".gz", ".xz", ".zst")]
    match suffixes[-1] if suffixes else "":
        case ".txt":
            yield from ((line, None) for _, line in _lines(path))
        case ".tsv":
            yield from _tsv(path, text_column, lang_column)
        case ".jsonl":
            for number, line in _lines(path):
                if line.strip():
                    yield _cells(_parsed(line, f"{path}:{number}"), text_column, lang_column, f"{path}:{number}")
        case ".parquet" if path.suffix.lower() == ".parquet":
            try:
                table = pq.read_table(path)
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(f"{path}: not a whole parquet file; copy it again") from error
            for number, row in enumerate(table.to_pylist(), 1):
                yield _cells(row, text_column, lang_column, f"{path}:{number}")
        case _:
            raise UserError(f"--input={path}: unknown kind of file; expected {KINDS}")


def _tsv(path: Path, text_column: str | None, lang_column: str) -> Iterator[tuple[str, str | None]]:
    """With a number, or none, there is no header; with a name the first line says which column is which."""
    lines = _lines(path)
    place, lang_place = -1, None
    if text_column is not None and text_column.isdigit():
        place = int(text_column) - 1
        if place < 0:
            raise UserError("--text-column=0: columns are counted from 1")
    elif text_column is not None:
        header = next(lines, (1, ""))[1].split("\t")
        if text_column not in header:
            raise UserError(f"{path}: no column {text_column!r}; the first line has {', '.join(header)}")
        place = header.index(text_column)
        lang_place = header.index(lang_column) if lang_column in header else None
    for number, line in lines:
        cells = line.split("\t")
        wanted = max(place, lang_place or 0)
        if line.strip() and wanted >= len(cells):
            raise UserError(f"{path}:{number}: {len(cells)} columns, expected at least {wanted + 1}")
        if line.strip():
            yield cells[place], None if lang_place is None else cells[lang_place]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines, numbered from 1, without their ends."""
    try:
        with opened(path) as (_, plain):
            for number, line in enumerate(plain, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start} of a line)") from error
    except DamagedFile as damage:
        raise UserError(f"{path}: {damage}; copy it again") from damage


def _parsed(line: str, place: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: invalid JSON: {line[:60]!r}") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: expected a JSON object, found {line[:60]!r}")
    return row


def _cells(row: Mapping[str, Any], text_column: str | None, lang_column: str, place: str) -> tuple[str, str | None]:
    name = text_column or "text"
    if not isinstance(row.get(name), str):
        what = f"{name} is {row[name]!r:.60}" if name in row else f"no column {name!r}; it has {', '.join(row)}"
        raise UserError(f"{place}: {what}; name the sentences' column with --text-column")
    lang = row.get(lang_column)
    if lang is not None and not isinstance(lang, str):
        raise UserError(f"{place}: {lang_column} is {lang!r:.60}, expected a code such as eng_Latn")
    return row[name], lang
