"""UserError, the one exception that the command line prints as a single line.

ValueError
└── UserError    something a person can put right: a setting, a file, a corpus
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path


class UserError(ValueError):
    """A mistake that a user can put right. Names the setting, its value, what was expected, and the way out."""


def existing_file(path: str | Path, setting: str) -> Path:
    """Return `path` as a Path. Raises UserError with the setting's name where there is no such file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{setting}={path}: no such file")
    return path


def run_command(program: str, work: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Run `work` and return its exit status. A user's mistake ends in one line on stderr, never in a traceback.

    1 for a UserError · 130 for Ctrl-C, with `interrupted` as the line
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
    except BrokenPipeError:  # the reader of our output, such as `head`, has ended: not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
