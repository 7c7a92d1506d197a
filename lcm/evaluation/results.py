"""Parts of every evaluation: its output folder, numbers for results.json, and the seconds of each stage."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcm.errors import UserError


@dataclass
class Stages:
    """A stopwatch that announces each stage on stderr and keeps how long it took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, name: str, what: str) -> Iterator[None]:
        """Announce and time the body of a `with` statement."""
        print(f"{name} {what}", file=sys.stderr)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def finite(value: Any) -> Any:
    """Replace every number that is not finite by None, inside dicts and lists too: JSON knows no NaN."""
    match value:
        case dict():
            return {key: finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [finite(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
    return value


def output_folder(path: str | Path) -> Path:
    """Make the folder of --output. Raises UserError where that is impossible."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={folder}: cannot be a folder ({error.strerror})") from error
    return folder
