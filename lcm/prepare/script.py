"""The script that calls `prepare`, and its worker processes: they start without it, where they need nothing of it.

A process that Python starts imports its parent's script. One without a main guard would prepare again, and one from
stdin has no file that could be imported.
"""

import multiprocessing as mp
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

IMPORTS_SCRIPT = 83
"""Exit status of a worker whose start imports a script that prepares, without asking whether it is run."""


@contextmanager
def script_hidden() -> Iterator[None]:
    """Keep a process that starts now from importing the script that runs here."""
    script = vars(sys.modules["__main__"])
    kept: dict[str, Any] = {name: script.pop(name) for name in ("__file__", "__spec__") if name in script}
    script["__spec__"] = None
    try:
        yield
    finally:
        script |= kept


def end_while_imported() -> None:
    """End this process where it is a worker that still imports the script of its parent: the parent then says so."""
    if getattr(mp.current_process(), "_inheriting", False):
        os._exit(IMPORTS_SCRIPT)
