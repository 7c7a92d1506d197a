"""Files → documents, one at a time. Anything else in them comes as `Refused`, never dropped."""

import glob
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lcm.errors import UserError
from lcm.prepare import reading
from lcm.prepare.reading import AUDIO, FORMATS, KINDS, DamagedFile, format_of, opened
from lcm.prepare.rows import Columns, Document, Refused, shortened


def find_inputs(names: Sequence[str], audio: bool = False, setting: str = "--input") -> list[Path]:
    """Expand files, folders and globs to input files, each once: in the order of `names`, sorted within each name.

    audio:   accept recordings, too; those of a folder or glob only where it holds no text
    setting: the setting that `names` comes from, for error messages
    Raises UserError for a name that matches no input file.
    """
    formats = (*FORMATS, *AUDIO) if audio else FORMATS
    by_place: dict[Path, Path] = {}
    for name in names:
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
    if texts := [f for f in usable if format_of(f) in FORMATS]:
        return texts
    if usable:
        return usable
    raise UserError(f"{setting}={name}: no input in there; expected {kinds}")


class Sources:
    """The documents of many files, in order. Memory holds one document (of .parquet: a few rows) at a time.

    lang:           language of rows where no column names one
    file_documents: each .txt file is one document; otherwise blank lines separate them
    """

    def __init__(
        self, files: Sequence[Path], columns: Columns, lang: str = "eng_Latn", file_documents: bool = False
    ) -> None:
        self.files = files
        self.columns = columns
        self.lang = lang
        self.file_documents = file_documents
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
                for number, row in reading.rows_of(path, plain, path.name, self.columns.wanted, self.columns_seen):
                    yield row if isinstance(row, Refused) else self._document(row, path, f"{path.name}:{number}")

    def _texts(self, path: Path, plain: io.BufferedIOBase) -> Iterator[Document | Refused]:
        blocks = iter([plain.read(reading.LIMIT + 1)]) if self.file_documents else reading.blocks_of(plain)
        for number, block in enumerate(blocks, 1):
            place = path.name if self.file_documents else f"{path.name}:{number}"
            if len(block) > reading.LIMIT:
                yield Refused(reading.TOO_LONG, f"{place}: is there a blank line between documents?")
                continue
            try:
                text = block.decode("utf-8-sig")
            except UnicodeDecodeError:
                yield Refused("not UTF-8", f"{place}: {shortened(block)}")
                continue
            yield self._document({self.columns.id: place, self.columns.text: text}, path, place)

    def _document(self, row: dict[str, Any], path: Path, place: str) -> Document | Refused:
        return self.columns.document(row, path.name, place, self.lang, path.parent)
