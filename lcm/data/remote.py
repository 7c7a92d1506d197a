"""Whole files behind URLs, through fsspec, with retries: until the bytes are right, or no retry can help.

    text = read("s3://bucket/data/manifest.json", retries=5, parse=bytes.decode)
    download("https://host/data/train-000000.tar", Path("part"), size, sha256, retries=5)

Credentials and options are those of the backend, which fsspec takes from the environment.
"""

import errno
import random
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any, TypeVar

from lcm import files
from lcm.errors import UserError

FIRST_WAIT = 1.0
"""Seconds before the first retry; they double with each further one."""
LONGEST_WAIT = 60.0
STALL = 60.0
"""Seconds without a byte after which an HTTP connection counts as broken. Other backends have timeouts of their own."""
_random = random.Random()
_T = TypeVar("_T")


class Unreachable(UserError):
    """A file that could not be fetched. The message holds its URL, the cause, and the number of attempts.

    final: a retry cannot help
    """

    def __init__(self, line: str, final: bool) -> None:
        super().__init__(line)
        self.final = final


class WrongBytes(OSError):
    """The bytes that arrived are not those that the manifest promises."""


def read(url: str, retries: int, parse: Callable[[bytes], _T]) -> _T:
    """Fetch and parse a small file. Raises Unreachable.

    parse: raises WrongBytes to have the file fetched again
    """

    def attempt() -> _T:
        system, path = _file_system(url)
        return parse(system.cat_file(path))

    return _with_retries(url, retries, attempt)


def download(url: str, target: Path, size: int, sha256: str, retries: int) -> None:
    """Write a file of `size` bytes to `target`. Raises Unreachable; OSError if the disk fails."""

    def attempt() -> None:
        system, path = _file_system(url)
        system.get_file(path, str(target), callback=_at_most(size))
        if (fetched := target.stat().st_size) != size:
            raise WrongBytes(f"{fetched:,} bytes instead of {size:,}")
        if files.sha256(target) != sha256:
            raise WrongBytes("other bytes than the manifest promises (sha256)")

    _with_retries(url, retries, attempt)


def _at_most(size: int) -> Any:
    """An fsspec callback that ends the download of a file longer than promised: no room was made for it."""
    from fsspec.callbacks import Callback

    def look(_: int | None, value: int, **__: Any) -> None:
        if value > size:
            raise WrongBytes(f"more than {size:,} bytes")

    return Callback(hooks={"longer": look})


def _file_system(url: str) -> tuple[Any, str]:
    """(file system, path in it). Raises ValueError or ImportError for a protocol that fsspec does not know."""
    import fsspec  # here, because it takes a tenth of a second that local data should not pay

    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        # By default a whole download may take five minutes, and so may its first byte; and proxies are ignored.
        options["timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL)
        configured = fsspec.config.conf.get(url.partition(":")[0], {}).get("client_kwargs", {})
        options["encoded"] = "?" in url  # a signature is of these very characters
        options["client_kwargs"] = {"trust_env": True} | configured
    return fsspec.core.url_to_fs(url, **options)


def _with_retries(url: str, retries: int, attempt: Callable[[], _T]) -> _T:
    """The result of the first attempt that succeeds, of `retries` + 1 at most. Raises Unreachable."""
    tries = 0
    while True:
        tries += 1
        try:
            return attempt()
        except Exception as error:  # every backend raises errors of its own
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise  # the local disk is full, over quota or read-only: no fault of the network
            final = _is_final(error)
            if final or tries > retries:
                often = "tried once" if tries == 1 else f"tried {tries} times"
                raise Unreachable(f"{url}: {_describe(error)} ({often})", final) from error
        sleep(wait_before(tries))


def wait_before(retry: int) -> float:
    """Seconds before the retry with this number: exponential, with jitter, so that ranks do not retry together."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2 ** (retry - 1)) * _random.uniform(0.5, 1.0)


def _status(error: Exception) -> int | None:
    """The HTTP status, under the names that the backends of aiohttp, Google and Azure give it."""
    numbers = (getattr(error, name, None) for name in ("status", "code", "status_code"))
    return next((number for number in numbers if isinstance(number, int)), None)


def _is_final(error: Exception) -> bool:
    """True if a retry cannot help. Broken connections, timeouts, 5xx, 408, 429 and wrong bytes may pass."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | ValueError | ImportError):
        return True
    if type(error).__name__ == "NoCredentialsError":  # botocore's
        return True
    status = _status(error)
    return status is not None and 400 <= status < 500 and status not in (408, 429)


def _describe(error: Exception) -> str:
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
