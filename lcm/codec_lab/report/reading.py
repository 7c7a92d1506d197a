"""Files → sentences with their languages: .txt, .jsonl, .tsv and .parquet, one sentence a line or row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcm.errors import UserError
from lcm.files import existing_file
from lcm.prepare import DamagedFile, Refused, opened, read_rows

COMPRESSIONS = (".gz", ".xz", ".zst")
KINDS = f".txt, .jsonl, .tsv, .parquet, each also with {', '.join(COMPRESSIONS)}"


@dataclass(frozen=True)
class Sentence:
    """row: place among the sentences of all inputs, from 0; blank lines are not counted."""

    text: str
    lang: str
    row: int


def read_sentences(
    inputs: Sequence[str | Path], *, text_column: str | None = None, lang_column: str = "lang", lang: str = "eng_Latn"
) -> list[Sentence]:
    """Read the sentences of all files, in order, with white space reduced to single blanks. Blank ones are skipped.

    text_column: .jsonl and .parquet: its name ("text"). .tsv: its number from 1 (the last), or its name in the first
                 line
    lang_column: column of the row's language; rows without one are in `lang`
    Raises UserError for a missing file or one of another kind, a row that cannot be read, and no sentence at all.
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
    """Text and language of each row."""
    suffixes = [suffix for suffix in map(str.lower, path.suffixes) if suffix not in COMPRESSIONS]
    match suffixes[-1] if suffixes else "":
        case ".txt":
            yield from ((line, None) for _, line in _lines(path))
        case ".tsv":
            yield from _tsv(path, text_column, lang_column)
        case ".jsonl" | ".parquet":
            for number, row in read_rows(path):
                if isinstance(row, Refused):
                    raise UserError(f"--input={row.example}: {row.reason}; mend it, or copy the file again")
                yield _cells(row, text_column or "text", lang_column, f"{path}:{number}")
        case _:
            raise UserError(f"--input={path}: unknown kind of file; expected {KINDS}")


def _tsv(path: Path, text_column: str | None, lang_column: str) -> Iterator[tuple[str, str | None]]:
    """There is a header if the column is given by name; it says which column is which."""
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
        if not line.strip():
            continue
        cells, needed = line.split("\t"), 1 + max(place, lang_place or 0)
        if needed > len(cells):
            raise UserError(f"{path}:{number}: {len(cells)} columns, expected at least {needed}")
        yield cells[place], None if lang_place is None else cells[lang_place]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines without their ends, numbered from 1."""
    try:
        with opened(path) as (_, plain):
            for number, line in enumerate(plain, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start} of a line)") from error
    except DamagedFile as damage:
        raise UserError(f"{path}: {damage}; copy it again") from damage


def _cells(row: Mapping[str, Any], text_column: str, lang_column: str, place: str) -> tuple[str, str | None]:
    text, lang = row.get(text_column), row.get(lang_column)
    if not isinstance(text, str):
        known = f"no column {text_column!r}; it has {', '.join(row)}"
        what = f"{text_column} is {text!r:.60}" if text_column in row else known
        raise UserError(f"{place}: {what}; name the sentences' column with --text-column")
    if lang is not None and not isinstance(lang, str):
        raise UserError(f"{place}: {lang_column} is {lang!r:.60}, expected a code such as eng_Latn")
    return text, lang
