"""Files that are complete or absent: atomic writes, locks, checksums, and disk errors in one line."""

import fcntl
import hashlib
import math
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lcm.errors import UserError, refused_by_system

CACHE_GB, RETRIES = 100.0, 5
"""Defaults for data behind URLs, also where there is no configuration."""
_OF_LIBRARIES = re.compile(r"inline_container|requested and \d+ written")
"""Errors of torch and numpy that a file was not written."""
_POLL = 0.1
"""Seconds between two attempts to get a lock."""


def expanded(path: str | Path, *, setting: str = "") -> str:
    """A path with `~` replaced by the home folder.

    Raises UserError for $NAME, which only a shell replaces: a folder of that name would be made. URLs stay as they are.
    """
    text = str(path)
    if re.match(r"[a-z][a-z0-9+.-]*:/", text):
        return text
    home, before = os.path.expanduser(text), f"{setting}={text}: " if setting else ""
    if found := re.search(r"\$(\w+|\{[^}]*\}|\()", text):
        way_out = "write the path out, or let the shell replace it: in double quotes, not in a file"
        raise UserError(f"{before}{found[0]} is not replaced here, a folder of that name would be made; {way_out}")
    if home.startswith("~"):
        raise UserError(f"{before}no such user's home; write the path out, or ./{text} for a file of that name")
    if "\0" in text:
        raise UserError(f"{before}holds a zero byte; expected a path")
    return home


@contextmanager
def atomic_path(path: Path, *, scratch: Path | None = None, many_writers: bool = False) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` at the end of the block, flushed to disk, or is removed.

    scratch:      a folder on the same file system for the temporary file; without it, the folder of `path`
    many_writers: several processes may write `path` at once, so each needs a temporary name of its own; a process that
                  is killed then leaves its file behind, where a single writer's next attempt overwrites it
    """
    if scratch or many_writers:
        part = (scratch or path.parent) / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}"
    else:
        part = path.with_name(f"{path.name}.tmp")
    try:
        with _naming(path):
            yield part
            _flush(part)
            part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    _flush(path.parent)  # or a power cut could undo the renaming


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let the errors of writing name `path`: the system's do not where a write fails, nor do those of the libraries."""
    try:
        yield
    except Exception as error:
        if _OF_LIBRARIES.search(str(error)) or type(error).__name__ == "SafetensorError":
            reason = _refusal(path.parent) or str(error).partition("\n")[0]
            raise UserError(f"{path}: cannot be written ({reason}); what was saved before is still there") from error
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def _refusal(folder: Path) -> str | None:
    """The reason why a disk takes no more, in the system's words, which the libraries do not tell."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror
    return None


@contextmanager
def atomic(path: Path, *, scratch: Path | None = None, many_writers: bool = False) -> Iterator[BinaryIO]:
    """`atomic_path`, opened for writing bytes."""
    with atomic_path(path, scratch=scratch, many_writers=many_writers) as part, part.open("wb") as file:
        yield file


@contextmanager
def atomic_result(path: Path) -> Iterator[Path]:
    """`atomic_path` for a file that a person has named: behind a link; a pipe or a device is written as it is.

    Raises UserError, naming the file, where the disk refuses it; what was there before is then still there.
    """
    with disk_errors(path):
        if path.exists() and not path.is_file():
            yield path
        else:
            with atomic_path(path.resolve() if path.is_symlink() else path) as part:
                yield part


def write_result(path: Path, text: str) -> None:
    """Write the text of a result, whole or not at all. Raises UserError, naming the file."""
    with atomic_result(path) as part:
        part.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock(path: Path, *, shared: bool = False, patience: float = math.inf) -> Iterator[bool]:
    """Hold the lock file `path` during the block. Yields False where others kept it for longer than `patience` seconds.

    The kernel releases the lock of a process that is killed. Locks exclude threads of one process, too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        yield _acquired(descriptor, kind if patience == math.inf else kind | fcntl.LOCK_NB, patience)
    finally:
        os.close(descriptor)


def _acquired(descriptor: int, kind: int, patience: float) -> bool:
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, kind)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL)


def read_text(path: Path, setting: str = "") -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises UserError for other bytes, naming the file."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        name = f"{setting}={path}" if setting else f"{path}"
        raise UserError(f"{name}: not UTF-8 at byte {error.start}; convert it first") from error


def sha256(path: Path) -> str:
    """The checksum of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn an error of the disk (full, read-only, gone) into a UserError that names the file, else `folder`."""
    try:
        yield
    except ConnectionError:  # a pipe, not a disk
        raise
    except OSError as error:
        raise UserError(refused_by_system(error, folder)) from error


def cache_folder() -> Path:
    """The user's cache of lcm: $LCM_CACHE, else $XDG_CACHE_HOME/lcm, else ~/.cache/lcm."""
    if own := os.environ.get("LCM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lcm"
