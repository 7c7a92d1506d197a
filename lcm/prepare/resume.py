"""State of an unfinished data set: its `Request` (all that decides the bytes), notes of finished shards, and locks.

Equal requests make equal data sets. All of it lies in the data set's folder `.unfinished` until a manifest is written.
"""

import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from lcm.codec.text import RULE, AnySplitter
from lcm.data.manifest import MANIFEST, UNFINISHED, CodecInfo, DatasetInfo, InputFile, Record, ShardRecord
from lcm.data.shards import index_path
from lcm.errors import UserError
from lcm.files import atomic, lock
from lcm.ledger import Entries
from lcm.prepare.inputs import InputChanged, Inputs, origins
from lcm.prepare.rows import Document

_REQUEST = "asked.json"
_SHARD_FILE = re.compile(r"(train|validation|test)-\d{6,}\.(tar|index\.npy)")


class Request(Record):
    """Input, options, codec and splitter: all that decides the bytes. A run resumes another only with an equal request.

    codec:  with an empty `end_of_text` until a worker has encoded it
    ctimes: time of the last change of each input in nanoseconds; one of the same time and size is not hashed again
    cut:    `inputs` ends before one that changed while it was read: those that follow may be any
    rule:   version of the rule by which text is cut
    mtimes: left by older versions
    """

    options: dict[str, str | int | float | bool]
    inputs: tuple[InputFile, ...]
    codec: CodecInfo
    splitter: AnySplitter
    dataset: DatasetInfo | None = None
    mtimes: tuple[int, ...] = ()
    ctimes: tuple[int, ...] = ()
    cut: bool = False
    rule: int = 1

    def with_end_of_text(self, digest: str) -> "Request":
        """A copy with the digest of the vector that ends every document."""
        return self.model_copy(update={"codec": self.codec.model_copy(update={"end_of_text": digest})})

    def cut_before(self, number: int) -> "Request":
        """A copy without the input of this number and those after it."""
        return self.model_copy(
            update={"inputs": self.inputs[:number], "ctimes": self.ctimes[:number], "cut": True, "mtimes": ()}
        )

    def difference(self, now: "Request") -> str | None:
        """The first difference of `now` from this earlier request, in words; None where the shards would be equal."""
        before, after = ([(Path(f.path).name, f.sha256) for f in request.inputs] for request in (self, now))
        after = after[: len(before)] if self.cut else after
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
            old, new = (request.options.get(name, "not given") for request in (self, now))
            if old != new:
                return f"--{name.replace('_', '-')} {old}, now {new}"
        if self.codec != now.codec:
            return f"codec {self.codec.name!r}, which now gives another vector for the end of a text"
        if self.splitter != now.splitter:
            return f"splitter {self.splitter}, now {now.splitter}"
        return None


def fingerprints(files: Sequence[Path], before: Request | None, in_order: bool = True) -> Inputs:
    """Hash the files, except those of the same size and time as in `before`. in_order: as in `Inputs`"""
    known = zip(before.inputs, before.ctimes, strict=False) if before else ()
    return Inputs(files, {(file.path, file.bytes, ctime): file for file, ctime in known}, in_order)


class FolderLocked(UserError):
    """Another run writes into the folder."""


@dataclass(frozen=True)
class ShardTask:
    """A shard to make: its documents with their numbers in input order. origin: as in `Finished`"""

    name: str
    origin: str
    documents: tuple[tuple[int, Document], ...]


class Finished(Record):
    """The note of a finished shard. shard: None where every document was refused, and no file written."""

    name: str
    shard: ShardRecord | None
    refused: Entries
    characters: int
    """Characters in the documents' text, for the estimate of the time left."""
    emojis: int = 0
    """Emojis removed by the splitter."""
    blocks: int = 0
    """Cuts of the splitter in the middle of a sentence."""
    origin: str = ""
    """Digest of the input that decides the shard (lcm.prepare.inputs.origins); older versions left none."""

    @property
    def sentences(self) -> int:
        """Sentences of the text, without the constants that `prepare` appends."""
        return self.shard.concepts - self.shard.documents - self.shard.pairs if self.shard else 0

    def save(self, folder: Path) -> None:
        with atomic(_note_path(folder, self.name), scratch=folder / UNFINISHED) as file:
            file.write(self.model_dump_json().encode("utf-8"))


def read_request(folder: Path) -> Request | None:
    """The request that `folder` was begun with, if any. Raises UserError for one that this version cannot read."""
    try:
        return Request.model_validate_json((folder / UNFINISHED / _REQUEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise UserError(
            f"{folder / UNFINISHED / _REQUEST}: cannot be read: damaged, or of another version of lcm; "
            f"give another --output, or delete {folder} with the shards that are finished"
        ) from error


def _begun(folder: Path) -> Request | None:
    """`read_request`, for writing on. Raises UserError where its text was cut by another rule than today's."""
    request = read_request(folder)
    if request and request.rule != RULE:
        raise UserError(
            f"--output={folder}: begun by a version of lcm that cut sentences otherwise; continue with that version, "
            "give another --output, or delete the folder with the shards that are finished"
        )
    return request


def check_folder(folder: Path) -> None:
    """Raise UserError for an output that is a file, or a folder that holds anything but a data set."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output={folder}: is a file; expected a folder, new or empty")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    ours = MANIFEST in names or UNFINISHED in names
    if strange := [n for n in names if not (ours and (n in (MANIFEST, UNFINISHED) or _SHARD_FILE.fullmatch(n)))]:
        raise UserError(f"--output={folder}: holds other things ({strange[0]}); expected a new or empty folder")


@contextmanager
def claimed(folder: Path, request: Request) -> Iterator[tuple[Request, dict[str, Finished]]]:
    """Lock the folder for this process alone. Yields (the request it was begun with, notes of finished shards by name).

    If the block ends without an error the notes are removed: the manifest has to be written by then.
    Raises UserError where another run is under way, or shards of another request are there.
    """
    with _locked(folder, "lock"):
        before = _begun(folder)
        done = _notes(folder, before.cut, request) if before else {}
        if before and (difference := before.difference(request)):
            if any(note.shard for note in _notes(folder, False, before).values()) and not _is_size(before, difference):
                raise _begun_otherwise(folder, difference)
            before, done = None, {}
        _clear(folder, keep=done)
        if before is None or before.cut:
            before = request
            _write_request(folder, request)
        with _cut_on_change(folder, before):
            yield before, done
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # another process may be trying the lock right now


@contextmanager
def shared(folder: Path, request: Request, part: str) -> Iterator[dict[str, Finished]]:
    """Lock one part of the folder, beside the processes of other parts. Yields the notes of finished shards by name.

    Raises UserError where this part, or the whole, is under way elsewhere, or was begun with another request.
    """
    # Another part locks the whole folder for a moment, to see whether all parts are done.
    own = f"lock-{part.replace('/', '-')}"
    found = read_request(folder)
    if found and found.cut:  # every part begins again, so none may still be at work
        with _locked(folder, "lock", patience=60.0):
            found = read_request(folder)
            difference = found.difference(request) if found and found.cut else None
            if found and found.cut and (difference is None or _is_size(found, difference)):
                _write_request(folder, request)
    with _locked(folder, "lock", shared=True, patience=60.0), _locked(folder, own):
        if read_request(folder) is None:
            _write_request(folder, request)
        before = _begun(folder)  # ours, or that of another part that began at the same moment
        assert before is not None
        if difference := before.difference(request):
            raise _begun_otherwise(folder, difference)
        with _cut_on_change(folder, before):
            yield _notes(folder, False, request)


@contextmanager
def _locked(folder: Path, name: str, *, shared: bool = False, patience: float = 0.0) -> Iterator[None]:
    """Hold one of the folder's locks. Raises FolderLocked where others keep it for longer than `patience` seconds, and
    where another run has just finished the data set.
    """
    with lock(folder / UNFINISHED / name, shared=shared, patience=patience) as acquired:
        if not acquired:
            raise FolderLocked(f"--output={folder}: another lcm prepare is writing there")
        if (folder / MANIFEST).is_file():
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # which taking the lock has made
            line = "another lcm prepare has just finished it; the same command finds it"
            raise FolderLocked(f"--output={folder}: {line}")
        yield


def _write_request(folder: Path, request: Request) -> None:
    with atomic(folder / UNFINISHED / _REQUEST, many_writers=True) as file:
        file.write(request.model_dump_json().encode("utf-8"))


@contextmanager
def _cut_on_change(folder: Path, request: Request) -> Iterator[None]:
    """Have the next run take a file that changed as it is then, and keep the shards made of what stands before it."""
    try:
        yield
    except InputChanged as error:
        _write_request(folder, request.cut_before(error.number))
        raise


def _is_size(before: Request, difference: str) -> bool:
    """True where input that changed has another size, and so makes shards of another size: all are made again."""
    return before.cut and difference.startswith("--shard-characters ")


def _begun_otherwise(folder: Path, difference: str) -> UserError:
    return UserError(
        f"--output={folder}: begun with {difference}; give the same options and it continues, or another --output"
    )


def _note_path(folder: Path, shard: str) -> Path:
    return folder / UNFINISHED / f"{shard}.json"


def _notes(folder: Path, strict: bool, request: Request) -> dict[str, Finished]:
    """Notes, by name, whose shard is still whole and made of the request's input. strict: none of older versions"""
    notes, known = {}, {*origins(request.options, request.inputs), *(() if strict else ("",))}
    for path in sorted((folder / UNFINISHED).glob("*.tar.json")):
        with suppress(ValidationError):  # a damaged note: the shard is made again
            note = Finished.model_validate_json(path.read_bytes())
            if note.origin in known and _is_whole(folder / note.name, note.shard):
                notes[note.name] = note
    return notes


def _is_whole(tar: Path, shard: ShardRecord | None) -> bool:
    return shard is None or (tar.is_file() and index_path(tar).is_file() and tar.stat().st_size == shard.bytes)


def _clear(folder: Path, keep: Collection[str]) -> None:
    """Remove what a killed run left half done. keep: names of finished shards."""
    kept = {name for tar in keep for name in (tar, index_path(Path(tar)).name)}
    for path in folder.iterdir():
        if _SHARD_FILE.fullmatch(path.name) and path.name not in kept:
            path.unlink()
    for path in (folder / UNFINISHED).iterdir():
        if path.name not in ("lock", _REQUEST, *(_note_path(folder, name).name for name in keep)):
            path.unlink()
