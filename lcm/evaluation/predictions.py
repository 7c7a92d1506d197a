"""Predictions that were made elsewhere, judged as a model's summaries are: `lcm evaluate --predictions F.jsonl`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lcm.errors import UserError, in_one_line
from lcm.evaluation.examples import PAIR, Pair, Pairs
from lcm.evaluation.judging import Panel, judge_summaries
from lcm.evaluation.options import PredictionOptions
from lcm.evaluation.results import Evaluation, Stages, finite
from lcm.evaluation.summaries import LEAD
from lcm.files import sha256
from lcm.ledger import Ledger
from lcm.options import existing_file
from lcm.prepare import Document, Refused, Sources
from lcm.scores import CONVENTIONS, Row, asked_for, sentences


@dataclass(frozen=True)
class Predicted(Pair):
    """A pair with the text that a system wrote for its document; it may be empty."""

    prediction: str = ""


class Predictions(Pairs):
    """Columns of rows that are {document, summary, prediction}."""

    @property
    def wanted(self) -> set[str]:
        return super().wanted | {"prediction"}

    def document(self, row: dict[str, Any], name: str, place: str, lang: str, folder: Path) -> Document | Refused:
        pair = super().document(row, name, place, lang, folder)
        if isinstance(pair, Refused):
            return pair
        if "prediction" not in row:
            return Refused("no column 'prediction'", place)
        if not isinstance(row["prediction"], str):
            return Refused("not text", f"{place}: prediction is {row['prediction']!r}"[:200])
        return Predicted(**vars(pair), prediction=row["prediction"])


@in_one_line()
def judge_predictions(options: PredictionOptions) -> Evaluation:
    """Judge the texts of a file beside its references; no model of ours is loaded.

    The rows are those of `Predictions`; an id that comes again is refused. The control `lead` is the first LEAD
    sentences of each document.
    Raises UserError for a file without a row that can be judged, and for a judge whose weights are not there.
    """
    asked = asked_for(options.judge)
    path, stages, ledger = existing_file(options.predictions, "--predictions"), Stages(), Ledger()
    with stages.of("reading", options.predictions):
        found = _read(path, ledger)
    if not found:
        raise UserError(
            f"--predictions={path}: no row to judge; {ledger.line or 'it is empty'}; expected lines of "
            "{id, document, summary, prediction}"
        )
    failed, reasons = ledger.total, ledger.stored
    systems = {"model": [row for row, _ in found]}
    systems["lead"] = [Row(row.id, row.document, row.references, " ".join(read[:LEAD])) for row, read in found]
    lines = [_line(row, read) for row, read in found]
    with stages.of("judging", f"{len(found):,} predictions"):
        convention = CONVENTIONS[options.convention]
        panel = Panel(asked, options.lang, options.bootstrap, options.seed, convention)
        judged = judge_summaries(panel, systems, lines, ledger)
    results = {
        **judged.results,
        "counts": {"scored": len(found), "failed": failed, "reasons": reasons, "documents": 0, "pairs": len(found)},
        "refused": ledger.stored,
        "settings": {**asdict(options), "lead": LEAD},
        "predictions": {"file": path.name, "sha256": sha256(path), "lang": options.lang},
        "seconds": stages.seconds,
    }
    return Evaluation(finite(results), [finite(line) for line in lines], ledger.entries)


def _read(path: Path, ledger: Ledger) -> list[tuple[Row, list[str]]]:
    """The rows of a file, each with the sentences of its document."""
    found: dict[str, tuple[Row, list[str]]] = {}
    for one in Sources([path], Predictions(text=PAIR.text, summary=PAIR.summary, split="")):
        if isinstance(one, Refused):
            ledger.add(one.reason, one.example)
        elif one.id in found:
            ledger.add("id twice", one.id)
        elif isinstance(one, Predicted):
            row = Row(one.id, one.text, (one.summary or "", *one.others), one.prediction)
            found[one.id] = row, sentences(one.text)
    return list(found.values())


def _line(row: Row, read: Sequence[str]) -> dict[str, Any]:
    """A line of examples.jsonl, as of a model's summary."""
    return {
        "kind": "summary",
        "id": row.id,
        "prompt": list(read),
        "reference": sentences(row.references[0]),
        "others": list(row.references[1:]),
        "model": sentences(row.prediction),
        "lead": list(read[:LEAD]),
    }
