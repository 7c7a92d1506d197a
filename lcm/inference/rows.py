"""The input of `lcm generate --input`: rows of a file, those that cannot be used by kind, and the units of work."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcm.codec.text import check_language
from lcm.errors import UserError
from lcm.files import sha256
from lcm.inference.pipeline import LCM
from lcm.ledger import Ledger, printable
from lcm.options import existing_file
from lcm.prepare import Columns, Refused, read_rows

UNIT = (32, 512)
"""Fewest and most texts of a unit: enough for a batch, and no more than may be lost by a kill."""
UNITS = 128
"""Units of an input that is neither small nor large."""


@dataclass(frozen=True)
class Row:
    """A text to continue.

    number:            of its row in the file, from 1
    id:                its own, or the number
    lang, output_lang: FLORES codes of its columns; None where it has none
    """

    number: int
    id: str | int
    text: str
    lang: str | None
    output_lang: str | None


@dataclass(frozen=True)
class Input:
    """The usable rows of a file, and the others by kind. digest: sha256 of the file"""

    path: Path
    digest: str
    rows: list[Row]
    refused: Ledger


def read_input(path: str | Path) -> Input:
    """Read a file of {text}, and of {id, lang, output_lang} where a row has them.

    Raises UserError where no row can be used, and for a file that changes while it is read.
    """
    path = existing_file(path, "--input")
    found = Input(path, sha256(path), [], Ledger())
    for number, row in read_rows(path):
        made = row if isinstance(row, Refused) else _row(row, number, path)
        if isinstance(made, Refused):
            found.refused.add(made.reason, made.example)
        else:
            found.rows.append(made)
    if sha256(path) != found.digest:
        raise UserError(f"--input={path}: changed while it was read; run the command again when nothing writes to it")
    if not found.rows:
        raise UserError(f"--input={path}: no text to continue: {found.refused.line or 'the file is empty'}")
    return found


def _row(row: dict[str, Any], number: int, path: Path) -> Row | Refused:
    place = f"{path}:{number}"
    document = Columns(split="").document(row, path.name, place, "", path.parent)
    if isinstance(document, Refused):
        return document
    name = row.get("id", number)
    if isinstance(name, bool) or not isinstance(name, str | int):
        return Refused("id neither text nor a number", f"{place}: {name!r}")
    langs = [row.get(column) for column in ("lang", "output_lang")]
    if strange := [lang for lang in langs if lang is not None and not isinstance(lang, str)]:
        return Refused("language not text", f"{place}: {strange[0]!r}")
    return Row(number, printable(name) if isinstance(name, str) else name, document.text, *langs)


def check_languages(lcm: LCM, given: Input) -> Input:
    """Refuse the rows whose languages codec or splitter do not know. Raises UserError where no other is left."""
    wrong = {lang: _unknown(lcm, lang) for row in given.rows for lang in (row.lang, row.output_lang) if lang}
    kept = []
    for row in given.rows:
        if bad := next((lang for lang in (row.lang, row.output_lang) if lang and wrong[lang]), None):
            given.refused.add(wrong[bad] or "", f"{given.path}:{row.number}: {bad}")
        else:
            kept.append(row)
    if not kept:
        raise UserError(f"--input={given.path}: no text to continue: {given.refused.line}")
    return Input(given.path, given.digest, kept, given.refused)


def _unknown(lcm: LCM, lang: str) -> str | None:
    if lang not in lcm.codec.languages:
        return "unknown language"
    try:
        check_language(lcm.splitter.settings, lang)
    except UserError:
        return "language without stops"
    return None


def units_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of similar length together, the longest first, so that memory that is short runs out at once.

    The units depend on the input alone: neither on the memory of a batch nor on the number of processes.
    """
    least, most = UNIT
    size = max(least, min(most, -(-len(rows) // UNITS)))
    ordered = sorted(rows, key=lambda row: -len(row.text))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
