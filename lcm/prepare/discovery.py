"""Names on the command line → input files. Whatever a folder holds besides is counted in a ledger, or an error."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path

from lcm.errors import UserError
from lcm.ledger import Ledger, printable
from lcm.options import several
from lcm.streams import COMPRESSIONS

FORMATS = (".txt", ".jsonl", ".parquet")
AUDIO = (".wav", ".flac")
KINDS = f"{', '.join(FORMATS)}, each also with {', '.join(COMPRESSIONS)}"


class _Left(dict[str, tuple[str, str]]):
    """The kind of each path that is passed over, and its name: once, however many names lead to it.

    output: a folder that is being written, and so no part of what is read
    """

    def __init__(self, output: str | Path | None = None) -> None:
        self.output = None if output is None else os.path.abspath(output)

    def note(self, path: Path, kind: str) -> None:
        self.setdefault(os.path.abspath(path), (kind, str(path)))

    def count(self, ledger: Ledger | None) -> None:
        if ledger is not None:
            for kind, name in self.values():
                ledger.add(kind, name)


def format_of(path: Path) -> str | None:
    """'.jsonl' for a.jsonl and for a.jsonl.xz; None for a file that is not an input."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in AUDIO:
        return suffixes[-1]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def find_inputs(
    names: Sequence[str],
    audio: bool = False,
    setting: str = "--input",
    passed: Ledger | None = None,
    output: str | None = None,
) -> list[Path]:
    """Expand files, folders and globs to input files, each once: in the order of `names`, sorted within each name.

    audio:   accept recordings, too; those of a folder or glob only where it holds no text
    setting: the setting that `names` comes from, for error messages
    passed:  counts what folders and globs hold besides
    output:  a folder that is never searched: what a killed run left there is no input of the next
    Raises UserError for a name that matches no input file, and for a folder or file that cannot be read.
    """
    formats = (*FORMATS, *AUDIO) if audio else FORMATS
    by_place: dict[Path, Path] = {}
    left = _Left(output)
    for name in map(str, several(names)):
        for path in _expand(name, formats, setting, left):
            by_place.setdefault(path.resolve(), path)
    for path in by_place.values():
        if not os.access(path, os.R_OK):
            raise UserError(f"{setting}={path}: permission denied; make it readable, or leave it out")
    left.count(passed)
    return list(by_place.values())


def _expand(name: str, formats: Sequence[str], setting: str, left: _Left) -> list[Path]:
    if not name.strip():
        raise UserError(f"{setting}={name!r}: an empty name; is a variable of the shell not set?")
    path = Path(name)
    kinds = KINDS + (f"; {', '.join(AUDIO)}" if AUDIO[0] in formats else "")
    if path.is_file():
        if format_of(path) not in formats:
            raise UserError(f"{setting}={name}: unknown kind of file; expected {kinds}")
        return [path]
    if path.is_dir():
        matches = [path]
    elif path.exists():
        raise UserError(f"{setting}={name}: neither a file nor a folder; write what comes out of it to a file first")
    elif has_magic(name):
        parts = path.parts[1:] if path.is_absolute() else path.parts
        matches = list(dict.fromkeys(_matching(Path(path.anchor), parts, setting)))
    else:
        raise UserError(f"{setting}={name}: no such file or folder")
    files = sorted({f for match in matches for f in (walk(match, left, setting) if match.is_dir() else [match])})
    usable = [file for file in files if _is_input(file, formats, left, setting)]
    texts = [file for file in usable if format_of(file) in FORMATS]
    if not usable:
        raise UserError(f"{setting}={name}: no input in there; expected {kinds}")
    for recording in usable if texts else ():
        if recording not in texts:
            left.note(recording, "recording beside text")
    return texts or usable


def _is_input(path: Path, formats: Sequence[str], left: _Left, setting: str) -> bool:
    """True for an input file; others are counted. Raises UserError for an input that is a link to nothing."""
    if format_of(path) not in formats:
        left.note(path, "file of an unknown kind" if path.exists() else "link to nothing")
        return False
    if not path.exists():
        raise UserError(
            f"{setting}={path}: a link to {os.readlink(path)}, which is not there; mend it, or leave it out"
        )
    if not path.is_file():
        left.note(path, "neither a file nor a folder")
    return path.is_file()


def walk(folder: Path, left: _Left, setting: str) -> Iterator[Path]:
    """Everything in a folder that is not a folder, links to folders followed, none twice; hidden entries are counted.

    Folders behind links come after all that are there without one: a file keeps the path that has no link.
    Raises UserError for a folder that cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    now, later = [folder], list[Path]()
    while now:
        place = now.pop()
        facts = place.stat()
        if (facts.st_dev, facts.st_ino) not in seen and os.path.abspath(place) != left.output:
            seen.add((facts.st_dev, facts.st_ino))
            for entry in _entries(place, setting):
                path = place / entry.name
                if entry.name.startswith("."):
                    left.note(path, "hidden")
                elif _is_folder(path, setting):
                    (later if entry.is_symlink() else now).append(path)
                else:
                    yield path
        if not now:
            now, later = later[::-1], []


def names_of(files: Sequence[Path]) -> list[str]:
    """The name of each file, from which ids are made: with folders before it where several files have one name."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_name[file.name].append(Path(os.path.abspath(file)))
    common = {name: os.path.commonpath([p.parent for p in paths]) for name, paths in by_name.items() if len(paths) > 1}
    return [
        printable(os.path.relpath(os.path.abspath(file), common[file.name]) if file.name in common else file.name)
        for file in files
    ]


def files_of(folder: Path, setting: str, passed: Ledger) -> list[Path]:
    """All files of a folder, sorted; what it holds besides is counted. Raises UserError for what cannot be read."""
    left = _Left()
    files = sorted(walk(folder, left, setting))
    for file in files:
        if not file.is_file():
            left.note(file, "neither a file nor a folder" if file.exists() else "link to nothing")
        elif not os.access(file, os.R_OK):
            raise UserError(f"{setting}={file}: permission denied; make it readable, or leave it out")
    left.count(passed)
    return [file for file in files if os.path.abspath(file) not in left]


def _is_folder(path: Path, setting: str) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        raise _unreadable(path, setting, error) from error


def _unreadable(path: Path, setting: str, error: OSError) -> UserError:
    return UserError(f"{setting}={path}: {(error.strerror or str(error)).lower()}; make it readable, or leave it out")


def _entries(folder: Path, setting: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, setting, error) from error


def _matching(folder: Path, parts: Sequence[str], setting: str) -> Iterator[Path]:
    """The paths that match a glob, part by part. Hidden entries match only a part that begins with a dot.

    Unlike glob.glob, raises UserError for a folder that cannot be read, and takes no folder twice.
    """
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if part == "**" and not rest:
        yield folder
    elif part == "**":
        files = {path.parent for path in walk(folder, _Left(), setting)} if folder.is_dir() else ()
        for below in sorted({folder, *(p for f in files for p in (f, *f.parents) if p.is_relative_to(folder))}):
            yield from _matching(below, rest, setting)
    elif not has_magic(part):
        if os.path.lexists(folder / part):
            yield from _matching(folder / part, rest, setting)
    else:
        for entry in _entries(folder, setting) if folder.is_dir() else ():
            if fnmatchcase(entry.name, part) and (part.startswith(".") or not entry.name.startswith(".")):
                yield from _matching(folder / entry.name, rest, setting)
