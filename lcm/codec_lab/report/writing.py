"""The files of a report: results.json, report.html and sentences.parquet; and reading results back."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lcm.codec_lab.report.judging import Judged
from lcm.codec_lab.report.page import report_page
from lcm.errors import UserError
from lcm.evaluation import finite, output_folder
from lcm.files import existing_file

RESULTS, PAGE, SENTENCES = "results.json", "report.html", "sentences.parquet"
COLUMNS = pa.schema(
    {
        "row": pa.int64(),
        "text": pa.string(),
        "lang": pa.string(),
        "words": pa.int32(),
        "pieces": pa.int32(),
        "fits": pa.bool_(),
        "decoded": pa.string(),
        "bleu": pa.float32(),
        "exact": pa.bool_(),
        "fragility": pa.float32(),
        "fragility_cosine": pa.float32(),
        "nearest": pa.string(),
        "nearest_cosine": pa.float32(),
    }
)
"""row: place of the sentence in the input, from 0. bleu: 0 to 100. fragility: −1 (unharmed by noise) to 0."""
PARTS = ("codec", "counts", "reconstruction", "by_length", "noise", "halfway", "agreement", "fragility", "space")
"""Keys without which results.json cannot stand beside others."""


def write(judged: Judged, folder: Path, others: Sequence[dict[str, Any]] = ()) -> None:
    """Write the three files. others: results of other codecs, to stand beside these on the page.

    Raises UserError where the folder cannot be made.
    """
    output_folder(folder)
    results = finite(judged.results)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / RESULTS).write_text(text + "\n", encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(judged.rows, schema=COLUMNS), folder / SENTENCES)
    (folder / PAGE).write_text(report_page(results, others), encoding="utf-8")


def read_results(path: str | Path) -> dict[str, Any]:
    """Read the results.json of another report. Raises UserError for anything else."""
    path = existing_file(path, "--compare")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--compare={path}: not valid JSON; expected a {RESULTS} of a codec report") from error
    missing = [part for part in PARTS if not isinstance(results, dict) or part not in results]
    if missing:
        raise UserError(f"--compare={path}: no {', '.join(missing)}; expected a {RESULTS} of a codec report")
    return results
