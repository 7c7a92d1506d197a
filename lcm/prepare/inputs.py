"""Which files are meant, and their bytes: folders and globs → paths; .gz, .xz and .zst → plain."""

import glob
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from lcm.errors import UserError

FORMATS = (".txt", ".jsonl", ".parquet")
AUDIO = (".wav", ".flac")
COMPRESSIONS = (".gz", ".xz", ".zst")
KINDS = f"{', '.join(FORMATS)}, each also with {', '.join(COMPRESSIONS)}"


class DamagedFile(Exception):
    """A compressed file that ends too early, or is not what its name says. What came before is good."""


def format_of(path: Path) -> str | None:
    """'.jsonl' for a.jsonl and for a.jsonl.xz; None for a file that is not an input."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in AUDIO:
        return suffixes[-1]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def find_inputs(names: Sequence[str], audio: bool = False, setting: str = "--input") -> list[Path]:
    """The files that `names` (files, folders, globs) mean, each once: in the order given, sorted within each name.

    audio: recordings are inputs, too; those of a folder or glob only where there is no text in it
    setting: what gave the names
    Raises UserError for a name that means nothing.
    """
    formats = (*FORMATS, *AUDIO) if audio else FORMATS
    found: dict[Path, Path] = {}
    for name in names:
        for path in _expand(name, formats, setting):
            found.setdefault(path.resolve(), path)
    return list(found.values())


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


@contextmanager
def opened(path: Path) -> Iterator[tuple[io.BufferedIOBase, io.BufferedIOBase]]:
    """(the file as it lies on the disk, its plain bytes). Raises DamagedFile while being read."""
    with path.open("rb") as raw:
        try:
            match path.suffix.lower():
                case ".gz":
                    yield raw, gzip.GzipFile(fileobj=raw)
                case ".xz":
                    yield raw, lzma.LZMAFile(raw)  # noqa: SIM115 (`raw` is what has to be closed)
                case ".zst":
                    yield raw, io.BufferedReader(pa.CompressedInputStream(raw, "zstd"))
                case _:
                    yield raw, raw
        except EOFError as error:
            raise DamagedFile("truncated file") from error
        except (zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise DamagedFile("corrupt file") from error
        except OSError as error:
            if error.errno is not None:  # the disk's own
                raise
            raise DamagedFile("truncated file" if "runcated" in str(error) else "corrupt file") from error
