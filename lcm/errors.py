"""UserError, the exception that is one line; and the last line of defence, which makes one of anything else.

Whatever the system or a library refuses (a full disk, bytes that are not UTF-8, memory that ran out) reaches a person
as one line: `run_command` of lcm/cli.py prints it, and functions of the Python API raise it, under `in_one_line`.
LCM_DEBUG=1 shows the traceback before it.
"""

import errno
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
STDLIB = sysconfig.get_path("stdlib")
LONGEST = 400
"""Characters of a library's message that are shown."""
DEBUG = "LCM_DEBUG"
HINTS = {
    errno.EFBIG: "see ulimit -f",
    errno.EACCES: "see who may read and write it: ls -l",
    errno.EPERM: "see who may read and write it: ls -l",
    errno.EISDIR: "expected a file",
    errno.ENOTDIR: "expected a folder",
    errno.ELOOP: "a link leads to itself",
    errno.ENOMEM: "memory ran out, not the disk: ask for less, or take a larger machine",
    errno.EMFILE: "raise the limit: ulimit -n 4096",
    errno.EIO: "the disk has failed",
    errno.ESTALE: "the file server has lost it",
    errno.EADDRINUSE: "another process has the port",
}
"""Words for errors of the system whose own say too little."""
AGAIN = "put it right and run the same command again"

_URL = re.compile(r"""\b([a-z][a-z0-9+.-]*:/{1,2})([^\s/'"?@]*@)?([^\s'"?]*)(\?[^\s'"]+?(?=[:;,.)\]]*(?:[\s'"]|$)))?""")
"""A URL: scheme, user and password, host and path, query."""


def without_secrets(text: str) -> str:
    """The text with what may be secret left out of its URLs: "https://…@host/data?…"."""
    return _URL.sub(lambda url: f"{url[1]}{'…@' if url[2] else ''}{url[3]}{'?…' if url[4] else ''}", text)


class UserError(ValueError):
    """A mistake that a user can put right. Names the setting or file, its value, what was expected, and the way out."""

    status = 1
    """Exit status of a command that ends by it."""

    def __init__(self, line: str = "") -> None:
        super().__init__(without_secrets(line))


class MachineError(UserError):
    """A failure of the machine: a lost rank, a hang. The same command may succeed, so slurm/train.sbatch requeues."""

    status = 75


def optional_import(module: str, otherwise: str) -> Any:
    """Import a module of an extra. Raises UserError with the line `otherwise` where it does not import."""
    try:
        return import_module(module)
    except (ImportError, OSError) as error:
        raise UserError(otherwise) from error


def refused_by_system(error: OSError, place: str | Path = "") -> str:
    """The line of an error of the system. place: file or folder to name where the error names none."""
    if error.errno == errno.ENOENT and error.filename is None:
        return "the working directory is gone; change to one that is there"
    what = error.filename if error.filename is not None else place or "the system refuses"
    what = os.fsdecode(what) if isinstance(what, str | bytes | Path) else f"file {what}"
    hint = f" ({HINTS[error.errno]})" if error.errno in HINTS else ""
    return f"{what}: {error.strerror or _first_line(error)}{hint}; {AGAIN}"


def explained(error: Exception) -> str:
    """One line for any exception: what it is about, the cause, the way out. A UserError has one line for each mistake.

    Where nothing better is known it names the library that refused, or the line of lcm that failed.
    """
    match error:
        case UserError():
            return str(error)
        case UnicodeDecodeError(encoding=encoding, start=start):
            what = f"not {encoding.upper()} at byte {start}: {error.object[start : start + 10]!r}"
            return f"{what}; convert the file first{_place(error)}"
        case UnicodeEncodeError(encoding=encoding, start=start):
            letters = error.object[start : min(error.end, start + 10)]
            return f"{letters!r} cannot be written as {encoding}; set PYTHONIOENCODING=utf-8{_place(error)}"
        case MemoryError():
            return _out_of_memory(error)
        case OSError() if error.errno is not None and error.strerror:
            return refused_by_system(error)
    if re.search(r"out of memory|can't allocate memory|bad_alloc|Cannot allocate memory", str(error), re.IGNORECASE):
        return _out_of_memory(error)
    if "can't start new thread" in str(error):
        return "this process may start no more threads (see ulimit -u, or the job's limit); use fewer workers"
    if origin(error) == "lcm":
        line = f"{type(error).__name__}: {_first_line(error)}{_place(error)}"
        return f"{line}; a fault of lcm: please report it, with what {DEBUG}=1 shows"
    return f"{_first_line(error)} ({type(error).__name__}{_place(error)}); {DEBUG}=1 shows the traceback"


def origin(error: Exception) -> Literal["lcm", "library", "caller"]:
    """The code that raised an error: lcm's own, a library's, or the caller's."""
    *_, (file, _) = [("", 0), *_frames(error)]
    if Path(file).is_relative_to(HERE):
        # torch raises a RuntimeError from its C++, under the line of lcm that called it.
        return "library" if type(error) is RuntimeError or type(error).__module__ != "builtins" else "lcm"
    of_library = "site-packages" in file or file.startswith((STDLIB, "<frozen"))
    return "library" if of_library else "caller"


def report(program: str, error: Exception) -> None:
    """Print the lines of an error on stderr, after its traceback where LCM_DEBUG asks for it."""
    if os.environ.get(DEBUG, "") not in ("", "0"):
        traceback.print_exception(error)
    for line in without_secrets(explained(error)).splitlines():
        print(f"{program}: {line}", file=sys.stderr)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Raise as a UserError, of one line, whatever the system or a library refuses; for functions of the Python API.

    Pipes and connections keep their errors, and so do mistakes in lcm itself and in the code that calls it.
    """
    try:
        yield
    except (UserError, ConnectionError):
        raise
    except Exception as error:
        if isinstance(error, OSError | UnicodeError | MemoryError) or origin(error) == "library":
            raise UserError(explained(error)) from error
        raise


def _out_of_memory(error: Exception) -> str:
    asked = re.search(r"(?:allocate|Unable to allocate) ([\d.]+ ?\w+)", str(error))
    wanted = f" for {asked[1]}" if asked else ""
    return f"memory ran out{wanted}{_place(error)}; ask for less (rows, workers, --limit), or take a larger machine"


def _first_line(error: BaseException) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def _frames(error: BaseException) -> list[tuple[str, int]]:
    """(file, line) of each call, the deepest last; of an error in a worker process, those of the worker."""
    if type(error.__cause__).__name__ == "_RemoteTraceback":
        return [(file, int(line)) for file, line in re.findall(r'File "([^"]+)", line (\d+)', str(error.__cause__))]
    return [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]


def _place(error: BaseException) -> str:
    """' at lcm/codec/codec.py:120', the deepest line of lcm that it came through; nothing where there is none."""
    own = [(file, line) for file, line in _frames(error) if Path(file).is_relative_to(HERE)]
    own = [(file, line) for file, line in own if file not in (__file__, str(HERE / "cli.py"))]
    return f", at lcm/{Path(own[-1][0]).relative_to(HERE)}:{own[-1][1]}" if own else ""
