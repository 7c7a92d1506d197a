"""The results of an evaluation, and its stages while it runs."""

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from lcm.errors import UserError
from lcm.files import write_result
from lcm.ledger import Entries


@dataclass(frozen=True)
class Evaluation:
    """results: the content of results.json. rows: the lines of examples.jsonl. refused: the ledger, as in results"""

    results: dict[str, Any]
    rows: list[dict[str, Any]]
    refused: Entries = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The content of results.json."""
        return json.dumps(self.results, indent=2, ensure_ascii=False, allow_nan=False)

    def write(self, folder: Path) -> None:
        """Write results.json and examples.jsonl."""
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in self.rows]
        write_result(folder / "results.json", self.text + "\n")
        write_result(folder / "examples.jsonl", "".join(lines))


@dataclass
class Stages:
    """A stopwatch that announces each stage on stderr and keeps how long it took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, name: str, what: str) -> Iterator[None]:
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
    """Make the folder of --output, and write to it. Raises UserError where that is impossible."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--output={folder}: cannot be a folder ({error.strerror})") from error
    return folder
