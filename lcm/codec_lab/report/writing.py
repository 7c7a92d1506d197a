"""What a report leaves behind: results.json, report.html and sentences.parquet; and reading results back."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lcm.codec_lab.report.judging import Judged
from lcm.codec_lab.report.report_page import report_page
from lcm.errors import UserError, existing_file

RESULTS, PAGE, SENTENCES = "results.json", "report.html", "sentences.parquet"
COLUMNS = pa.schema(
    [
        ("row", pa.int64()),
        ("text", pa.string()),
        ("lang", pa.string()),
        ("words", pa.int32()),
        ("pieces", pa.int32()),
        ("fits", pa.bool_()),
        ("decoded", pa.string()),
        ("bleu", pa.float32()),
        ("exact", pa.bool_()),
        ("fragility", pa.float32()),
        ("fragility_cosine", pa.float32()),
        ("nearest", pa.string()),
        ("nearest_cosine", pa.float32()),
    ]
)
"""row: the sentence's place in the input, from 0. bleu: 0 to 100. fragility: −1 (unharmed by noise) to 0."""
PARTS = ("codec", "counts", "reconstruction", "by_length", "noise", "halfway", "agreement", "fragility", "space")
"""What another results.json must have to stand beside these."""


def write(judged: Judged, folder: Path, others: Sequence[dict[str, Any]] = ()) -> None:
    """The three files. others: results of other codecs, to stand beside these on the page.

    Raises UserError where the folder cannot be made.
    """
    make_folder(folder)
    results = finite(judged.results)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / RESULTS).write_text(text + "\n", encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(judged.rows, schema=COLUMNS), folder / SENTENCES)
    (folder / PAGE).write_text(report_page(results, others), encoding="utf-8")


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={folder}: cannot be a folder ({error.strerror})") from error


def read_results(path: str | Path) -> dict[str, Any]:
    """Another report's results.json. Raises UserError for anything else."""
    path = existing_file(path, "--compare")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--compare={path}: not valid JSON; expected a {RESULTS} of a codec report") from error
    missing = [part for part in PARTS if not isinstance(results, dict) or part not in results]
    if missing:
        raise UserError(f"--compare={path}: no {', '.join(missing)}; expected a {RESULTS} of a codec report")
    return results


def finite(value: Any) -> Any:
    """The same with None where a number is not finite: JSON knows no NaN."""
    match value:
        case dict():
            return {key: finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [finite(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
    return value
