"""The one exception that the command line turns into a single line.

ValueError
└── UserError    something a person can put right: a setting, a file, a corpus
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path


class UserError(ValueError):
    """Names the setting or file, its value, what was expected, and the way out. Shown without a traceback."""


def existing_file(path: str | Path, setting: str) -> Path:
    """`path` as a Path, or a UserError that says which setting points at nothing."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{setting}={path}: no such file")
    return path


def run_command(program: str, work: Callable[[], int], interrupted: str = "interrupted") -> int:
    """`work`'s exit status; everything a user can cause ends in one line on stderr, never in a traceback.

    1 something a person can put right · 130 interrupted, with `interrupted` as the line
    """
    try:
        return work()
    except UserError as error:
        for line in str(error).splitlines():
            print(f"{program}: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: {interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
