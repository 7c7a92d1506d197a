"""UserError, the one exception that the command line prints as a single line, and modules whose absence raises it."""

from importlib import import_module
from typing import Any


class UserError(ValueError):
    """A mistake that a user can put right. Names the setting or file, its value, what was expected, and the way out."""


def optional_import(module: str, otherwise: str) -> Any:
    """Import a module of an extra. Raises UserError with the line `otherwise` where it does not import."""
    try:
        return import_module(module)
    except (ImportError, OSError) as error:
        raise UserError(otherwise) from error
