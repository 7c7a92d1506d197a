"""A report as people read it: results.json, report.html, sentences.parquet, and one table for a terminal.

The table has a row for each measure and a column for each codec; the page begins with it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lcm.codec_lab.judging import Judged
from lcm.errors import UserError
from lcm.evaluation import finite, output_folder, render
from lcm.files import atomic_result, write_result
from lcm.options import existing_file

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
GOOD = 90
"""AutoBLEU from which sentences of a length count as coming back nearly verbatim."""
CHARTED = 3
"""Codecs for which a chart has colours: this one and the first others."""

Results = Mapping[str, Any]
Systems = Mapping[str, Results]
"""Results by the name of their codec on the page, this report's own first."""


def write(judged: Judged, folder: Path, others: Sequence[Results] = ()) -> None:
    """Write the three files, the page with `others` beside. Raises UserError where the folder cannot be made."""
    output_folder(folder)
    results = finite(judged.results)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    write_result(folder / RESULTS, text + "\n")
    with atomic_result(folder / SENTENCES) as part:
        pq.write_table(pa.Table.from_pylist(judged.rows, schema=COLUMNS), part)
    write_result(folder / PAGE, report_page(results, others))


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


def systems_of(results: Results, others: Sequence[Results]) -> dict[str, Results]:
    """Results by codec name; a name that is taken already gets a number."""
    named: dict[str, Results] = {}
    for system in (results, *others):
        name = str(system["codec"]["name"])
        same = sum(str(earlier["codec"]["name"]) == name for earlier in named.values())
        named[f"{name} ({same + 1})" if same else name] = system
    return named


def shown(value: float | None, digits: int = 1) -> str:
    """A number for people; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _middle_noise(noise: Sequence[Results]) -> Results:
    """The level of noise that stands for all: half a standard deviation, or the nearest to it."""
    return min(noise, key=lambda row: abs(row["multiple"] - 0.5))


def _agreed(system: Results, kind: str) -> str:
    pairs = (system["agreement"] or {}).get(kind, {})
    return shown(pairs.get("centred", {}).get("value"), 2)


MEASURES: dict[str, Callable[[Results], str]] = {
    "AutoBLEU": lambda system: shown(system["reconstruction"]["bleu"]),
    "chrF": lambda system: shown(system["reconstruction"]["chrf"]),
    "word for word": lambda system: percent(system["reconstruction"]["exact"]),
    "fragility, BLEU": lambda system: shown(system["fragility"] and system["fragility"]["bleu"], 2),
    "midpoints that stand": lambda system: percent(system["halfway"]["closer_than_ends"]),
    "agreement, random pairs": lambda system: _agreed(system, "random"),
    "agreement, neighbours": lambda system: _agreed(system, "neighbours"),
    "exchange decoded rightly": lambda system: percent(system["binding"] and system["binding"]["decoded"]["right"]),
    "directions used": lambda system: (
        f"{shown(system['space']['participation_ratio'], 0)} of {system['codec']['dim']:,}"
    ),
    "over the limit": lambda system: f"{system['counts']['over_limit']:,} of {system['counts']['judged']:,}",
}


def glance(systems: Systems) -> list[tuple[str, list[str]]]:
    """Rows of the table: a measure, and its value for each codec; noise at the middle level of the first codec."""
    rows = [(name, [measure(system) for system in systems.values()]) for name, measure in MEASURES.items()]
    if noise := next(iter(systems.values()))["noise"]:
        level = _middle_noise(noise)["multiple"]
        levels = [{row["multiple"]: row["bleu"] for row in system["noise"]} for system in systems.values()]
        rows.insert(3, (f"AutoBLEU at {level:g} σ of noise", [shown(bleu.get(level)) for bleu in levels]))
    return rows


def headline(systems: Systems) -> str:
    """The table for a terminal."""
    rows = [("", list(systems)), *glance(systems)]
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in rows), strict=True)]
    return "\n".join(
        f"{name:26}" + "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        for name, cells in rows
    )


def verdict(results: Results) -> str:
    """The numbers in three sentences."""
    whole, kept = results["reconstruction"], f"no length reaches AutoBLEU {GOOD}"
    for group in takewhile(lambda group: group["bleu"] >= GOOD, results["by_length"]):
        kept = f"up to {group['to'] or 'any number of'} words AutoBLEU stays above {GOOD}"
    said = [
        f"{percent(whole['exact'])} of the sentences come back word for word (AutoBLEU {shown(whole['bleu'])}); {kept}."
    ]
    if results["noise"]:
        row = _middle_noise(results["noise"])
        lost = shown(whole["bleu"] - row["bleu"])
        said.append(f"Noise of {row['multiple']:g} σ on every channel costs {lost} points.")
    agreed = results["agreement"]
    if agreed and (rho := agreed["random"]["centred"]["value"]) is not None:
        kind = "hardly" if rho < 0.2 else "in part" if rho < 0.5 else "largely"
        said.append(
            f"Its similarities {kind} follow meaning (rank correlation {shown(rho, 2)} with the public encoder)."
        )
    return " ".join(said)


def report_page(results: Results, others: Sequence[Results] = ()) -> str:
    """The whole page. others: results of other codecs."""
    systems = systems_of(results, others)
    values = {
        "results": results,
        "systems": systems,
        "others": list(systems)[1:],
        "shown": shown,
        "percent": percent,
        "verdict": verdict(results),
        "glance": glance(systems),
        "same_sentences": len({system["counts"].get("fingerprint") for system in systems.values()}) == 1,
        "length_rows": _compared(systems, _lengths, "from", lambda row: _band(row) if "to" in row else "all"),
        "noise_rows": _compared(
            systems, _levels, "multiple", lambda row: f"{row['multiple']:g} σ" if row["multiple"] else "none"
        ),
        "by_length": lambda part, key: _by_length(systems, part, key),
        "under_noise": lambda key: {
            name: [(row["multiple"], row[key]) for row in _levels(systems[name])] for name in list(systems)[:CHARTED]
        },
        "middle_noise": _middle_noise,
    }
    return render(Path(__file__).with_name(PAGE), values)


def _compared(
    systems: Systems, rows_of: Callable[[Results], list[Results]], key: str, label: Callable[[Results], str]
) -> list[tuple[str, Results, list[float | None]]]:
    """Rows of this codec: label, its scores, and AutoBLEU of the others where `key` is the same."""
    ours, *others = map(rows_of, systems.values())
    bleu = [{row[key]: row["bleu"] for row in rows} for rows in others]
    return [(label(row), row, [other.get(row[key]) for other in bleu]) for row in ours]


def _lengths(system: Results) -> list[Results]:
    """Scores of each group by length, then of all sentences."""
    return [*system["by_length"], {"from": "all"} | system["reconstruction"]]


def _levels(system: Results) -> list[Results]:
    """Scores without noise, then at every level that was measured."""
    return [{"multiple": 0.0} | system["reconstruction"], *system["noise"]]


def _by_length(systems: Systems, part: str, key: str) -> tuple[dict[str, list[tuple[float, float]]], dict[float, str]]:
    """A chart by length, evenly spaced: series and labels of the x axis. Codecs may differ in their groups."""
    groups = {
        name: system["by_length"] if part == "all" else (system[part] or {}).get("by_length", [])
        for name, system in systems.items()
    }
    bands = sorted({(group["from"], _band(group)) for system in groups.values() for group in system})
    place = {start: float(i) for i, (start, _) in enumerate(bands)}
    series = {
        name: [(place[group["from"]], group[key]) for group in groups[name] if group[key] is not None]
        for name in list(systems)[:CHARTED]
    }
    return series, {place[start]: label for start, label in bands}


def _band(group: Results) -> str:
    return f"{group['from']}+" if group["to"] is None else f"{group['from']}–{group['to']}"
