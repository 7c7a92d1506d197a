"""The one exception that the command line turns into a single line.

ValueError
└── UserError    something a person can put right: a setting, a file, a corpus
"""

from pathlib import Path


class UserError(ValueError):
    """Names the setting or file, its value, what was expected, and the way out. Shown without a traceback."""


def existing_file(path: str | Path, setting: str) -> Path:
    """`path` as a Path, or a UserError that says which setting points at nothing."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{setting}={path}: no such file")
    return path
