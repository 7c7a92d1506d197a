"""The folder of a data set while it is being made: what was asked for, what is done, and that nobody else is at it."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from lcm.codec import AnySplitter
from lcm.data import MANIFEST, UNFINISHED, CodecInfo, DatasetInfo, InputFile, Manifest, Record, index_path
from lcm.errors import UserError
from lcm.files import atomic, lock, sha256
from lcm.prepare.worker import Finished, note_path

_ASKED = "asked.json"
_SHARD_FILE = re.compile(r"(train|validation|test)-\d{6,}\.(tar|index\.npy)")


class Occupied(UserError):
    """Another run writes into the folder."""


class Asked(Record):
    """All that decides what is in the shards. Another run may go on only where it asks for the same.

    mtimes: when each input changed last, in nanoseconds: an input whose time and size are the same is not read again.
    """

    options: dict[str, str | int | float | bool]
    inputs: tuple[InputFile, ...]
    codec: CodecInfo
    splitter: AnySplitter | None = None
    dataset: DatasetInfo | None = None
    mtimes: tuple[int, ...] = ()

    def difference(self, now: "Asked") -> str | None:
        """What `now` asks for that this did not, in words; None where the shards would be the same."""
        before, after = ([(Path(f.path).name, f.sha256) for f in asked.inputs] for asked in (self, now))
        for name, checksum in after:
            if (name, checksum) not in before:
                return f"other input: {name} is new or has changed"
        if before != after:
            return f"other input: {len(before)} files, now {len(after)} or in another order"
        if self.dataset != now.dataset:
            return f"data set {self.dataset}, now {now.dataset}"
        if self.codec.fingerprint != now.codec.fingerprint:
            return f"codec {self.codec.name!r} ({self.codec.fingerprint}), now {now.codec.fingerprint}"
        for name in self.options | now.options:
            if self.options.get(name) != now.options.get(name):
                return f"--{name.replace('_', '-')} {_given(self.options, name)}, now {_given(now.options, name)}"
        if self.codec != now.codec:
            return f"codec {self.codec.name!r}, which gave another vector for the end of a text than it does now"
        if self.splitter not in (None, now.splitter):
            return f"splitter {self.splitter}, now {now.splitter}"
        return None


def _given(options: dict[str, str | int | float | bool], name: str) -> str | int | float | bool:
    return options.get(name, "not given")


def asked_of(manifest: Manifest) -> Asked:
    return Asked(
        options=manifest.options,
        inputs=manifest.inputs,
        codec=manifest.codec,
        splitter=manifest.splitter,
        dataset=manifest.dataset,
    )


def read_asked(folder: Path) -> Asked | None:
    """What the unfinished run in `folder` was asked for; None where none was begun."""
    try:
        return Asked(**json.loads((folder / UNFINISHED / _ASKED).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, ValidationError) as error:
        raise UserError(f"{folder}: begun by another version of lcm; delete it or give another --output") from error


def fingerprints(files: Sequence[Path], before: Asked | None) -> tuple[tuple[InputFile, ...], tuple[int, ...]]:
    """(inputs, mtimes). A file that `before` knows with the same size and time keeps its hash unread."""
    known = {(f.path, f.bytes, t): f for f, t in zip(before.inputs, before.mtimes, strict=True)} if before else {}
    stats = [path.stat() for path in files]
    inputs = tuple(
        known.get((str(path), stat.st_size, stat.st_mtime_ns)) or _fingerprint(path)
        for path, stat in zip(files, stats, strict=True)
    )
    return inputs, tuple(stat.st_mtime_ns for stat in stats)


def _fingerprint(path: Path) -> InputFile:
    return InputFile(path=str(path), bytes=path.stat().st_size, sha256=sha256(path))


def check_folder(folder: Path) -> None:
    """Raises UserError for an output that is a file, or a folder with anything but a data set in it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output={folder}: is a file; expected a folder, new or empty")
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    ours = MANIFEST in found or UNFINISHED in found
    strange = [n for n in found if not (ours and (n in (MANIFEST, UNFINISHED) or _SHARD_FILE.fullmatch(n)))]
    if strange:
        raise UserError(f"--output={folder}: holds other things ({strange[0]}); expected a new or empty folder")


@contextmanager
def claimed(folder: Path, asked: Asked) -> Iterator[tuple[Asked, dict[str, Finished]]]:
    """The folder for us alone, with what was first asked of it and the shards that are done.

    Left without an error, the notes are removed: the manifest has to be there by then.
    Raises UserError where another run is under way, or one that asked for something else got somewhere.
    """
    with _locked(folder, "lock"):
        _refuse_finished(folder)
        before = read_asked(folder)
        done = _notes(folder) if before else {}
        if before and (difference := before.difference(asked)):
            if any(note.shard for note in done.values()):
                raise _begun_otherwise(folder, difference)
            before, done = None, {}
        _clear(folder, keep=set(done))
        if before is None:
            _write_asked(folder, asked)
        yield before or asked, done
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # somebody may just be looking whether it is locked


@contextmanager
def shared(folder: Path, asked: Asked, part: str) -> Iterator[dict[str, Finished]]:
    """The folder for us and for other parts of the same data set, with the shards that are done. Nothing is removed.

    Raises UserError where this part, or all of it, is under way elsewhere, or something else was asked for.
    """
    # Another part may have the folder for itself for a moment, to see whether all are done.
    with (
        _locked(folder, "lock", shared=True, patience=60.0),
        _locked(folder, f"lock-{part.replace('/', '-')}"),
    ):
        _refuse_finished(folder)
        if read_asked(folder) is None:
            _write_asked(folder, asked)
        before = read_asked(folder)  # ours, or that of another part that began in the same moment
        assert before is not None
        if difference := before.difference(asked):
            raise _begun_otherwise(folder, difference)
        yield _notes(folder)


def _refuse_finished(folder: Path) -> None:
    """Raises Occupied where another run has finished the data set since we looked; what the lock made is removed."""
    if (folder / MANIFEST).is_file():
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        raise Occupied(f"--output={folder}: another lcm prepare has just finished it; the same command finds it")


@contextmanager
def _locked(folder: Path, name: str, *, shared: bool = False, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock of the folder. Raises Occupied where others keep it for longer than `patience` seconds."""
    with lock(folder / UNFINISHED / name, shared=shared, patience=patience) as mine:
        if not mine:
            raise Occupied(f"--output={folder}: another lcm prepare is writing there")
        yield


def _write_asked(folder: Path, asked: Asked) -> None:
    with atomic(folder / UNFINISHED / _ASKED, many_writers=True) as file:
        file.write(asked.model_dump_json().encode("utf-8"))


def _begun_otherwise(folder: Path, difference: str) -> UserError:
    return UserError(
        f"--output={folder}: begun with {difference}; give the same options and it continues, or another --output"
    )


def _notes(folder: Path) -> dict[str, Finished]:
    """The finished shards by name: those that left a note and are still whole."""
    notes = {}
    for path in sorted((folder / UNFINISHED).glob("*.tar.json")):
        note = Finished(**json.loads(path.read_text(encoding="utf-8")))
        tar = folder / note.name
        if note.shard is None or (
            tar.is_file() and tar.stat().st_size == note.shard.bytes and index_path(tar).is_file()
        ):
            notes[note.name] = note
    return notes


def _clear(folder: Path, keep: set[str]) -> None:
    """Remove what a killed run left half done."""
    kept = {name for tar in keep for name in (tar, index_path(Path(tar)).name)}
    for path in folder.iterdir():
        if _SHARD_FILE.fullmatch(path.name) and path.name not in kept:
            path.unlink()
    for path in (folder / UNFINISHED).iterdir():
        if path.name not in ("lock", _ASKED, *(note_path(folder, name).name for name in keep)):
            path.unlink()
