"""Files elsewhere, fetched whole through fsspec: again and again, until their bytes are right or there is no hope.

    text = read("s3://bucket/data/manifest.json", retries=5, made_of=bytes.decode)
    download("https://host/data/train-000000.tar", Path("part"), size, sha256, retries=5)

Credentials and options are the backend's own: fsspec takes them from the environment.
"""

import errno
import itertools
import random
import re
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any, TypeVar

from lcm import files
from lcm.errors import UserError

FIRST_WAIT = 1.0
"""Seconds before the second try; twice as many before each further one."""
LONGEST_WAIT = 60.0
STALL = 60.0
"""Seconds without a byte after which a connection counts as broken. Other backends than HTTP know that themselves."""

_random = random.Random()
_T = TypeVar("_T")


class Unreachable(UserError):
    """A file elsewhere that could not be had: its URL, what happened, and how often it was tried.

    final: asking again is of no use
    """

    def __init__(self, line: str, final: bool) -> None:
        super().__init__(line)
        self.final = final


class WrongBytes(OSError):
    """What arrived is not what the manifest promises."""


def is_url(folder: str | Path) -> bool:
    """Whether a folder is to be reached through fsspec; also one that has gone through a Path, which eats a slash."""
    return re.match(r"[a-z][a-z0-9+.-]*:(:|/)", str(folder)) is not None


def local(folder: str | Path, what: str) -> Path:
    """`folder` as a Path. Raises UserError for a URL, where only a local folder will do."""
    if is_url(folder):
        raise UserError(f"{what}={folder}: expected a local folder; copy the data set here, or there when it is done")
    return Path(folder)


def within(url: str, name: str) -> str:
    return f"{url.rstrip('/')}/{name}"


def read(url: str, retries: int, made_of: Callable[[bytes], _T]) -> _T:
    """What is made of a small file. made_of: raises WrongBytes for what should be fetched again. Raises Unreachable."""

    def attempt() -> _T:
        files, path = _file_system(url)
        return made_of(files.cat_file(path))

    return _persistently(url, retries, attempt)


def download(url: str, target: Path, size: int, sha256: str, retries: int) -> None:
    """A file of `size` bytes into `target`, safe from a power cut. Raises Unreachable; OSError for a full disk."""

    def attempt() -> None:
        system, path = _file_system(url)
        system.get_file(path, str(target), callback=_at_most(size))
        if (found := target.stat().st_size) != size:
            raise WrongBytes(f"{found:,} bytes instead of {size:,}")
        if files.sha256(target) != sha256:
            raise WrongBytes("other bytes than the manifest promises (sha256)")

    _persistently(url, retries, attempt)


def _at_most(size: int) -> Any:
    """Gives up on a file that is longer than promised, for which no room has been made."""
    from fsspec.callbacks import Callback

    def look(_: int | None, value: int, **__: Any) -> None:
        if value > size:
            raise WrongBytes(f"more than {size:,} bytes")

    return Callback(hooks={"longer": look})


def _file_system(url: str) -> tuple[Any, str]:
    """(file system, path in it). Raises ValueError or ImportError for what fsspec does not know."""
    import fsspec  # not where everything is here: it takes a tenth of a second

    options = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        # By default a download may take five minutes in all, and as long for its first byte.
        options["timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL)
    return fsspec.core.url_to_fs(url, **options)


def _persistently(url: str, retries: int, attempt: Callable[[], _T]) -> _T:
    """The result of an attempt, of `retries` + 1 at most."""
    for tries in itertools.count(1):
        try:
            return attempt()
        except Exception as error:  # each backend has errors of its own
            if _of_the_disk(error):
                raise
            final = _is_final(error)
            if final or tries > retries:
                often = "tried once" if tries == 1 else f"tried {tries} times"
                raise Unreachable(f"{url}: {_told(error)} ({often})", final) from error
        sleep(wait_before(tries))
    raise AssertionError("counts without end")


def wait_before(tried: int) -> float:
    """Seconds to wait after so many tries: exponential, and random by half, so that processes do not come in crowds."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tried - 1)) * _random.uniform(0.5, 1.0)


def _of_the_disk(error: Exception) -> bool:
    """Ours, on which the file is written: full, over quota, read-only."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _status(error: Exception) -> int | None:
    """Of HTTP, under the names that aiohttp, Google's and Azure's backends give it."""
    numbers = (getattr(error, name, None) for name in ("status", "code", "status_code"))
    return next((number for number in numbers if isinstance(number, int)), None)


def _is_final(error: Exception) -> bool:
    """Whether asking again is of no use. Connections, timeouts, 5xx, "too many requests" and wrong bytes may pass."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | ValueError | ImportError):
        return True
    if type(error).__name__ == "NoCredentialsError":  # botocore's
        return True
    status = _status(error)
    return status is not None and 400 <= status < 500 and status not in (408, 429)


def _told(error: Exception) -> str:
    """What happened, in a few words of one line."""
    status = _status(error)
    match error:
        case FileNotFoundError():
            return "not found"
        case PermissionError():
            return "access denied"
        case WrongBytes() | ImportError() | ValueError():
            words = str(error)
        case TimeoutError():
            words = f"no answer for {STALL:g} s"
        case _:
            words = f"{status} {getattr(error, 'message', '')}" if status else f"{type(error).__name__} {error}"
    return " ".join(words.split())
