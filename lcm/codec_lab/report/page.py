"""results.json of a codec as a page to read (report.html), other codecs beside it."""

from collections.abc import Sequence
from pathlib import Path

from lcm.codec_lab.report.glance import (
    Results,
    Systems,
    glance,
    middle_noise,
    percent,
    shown,
    systems_of,
    verdict,
)
from lcm.evaluation import render

CHARTED = 3
"""Codecs for which a chart has colours: this one and the first others."""
Series = dict[str, list[tuple[float, float]]]
ScoreRow = tuple[str, Results, list[float | None]]
"""Label, scores of this codec, AutoBLEU of the others."""


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
        "length_rows": _length_rows(systems),
        "noise_rows": _noise_rows(systems),
        "by_length": lambda part, key: _by_length(systems, part, key),
        "under_noise": lambda key: _under_noise(systems, key),
        "middle_noise": middle_noise,
        "settings": _settings(results),
    }
    return render(Path(__file__).with_name("report.html"), values)


def _length_rows(systems: Systems) -> list[ScoreRow]:
    """A row for each group by length, and one for all sentences."""
    ours, *others = systems.values()
    bleu = [{group["from"]: group["bleu"] for group in system["by_length"]} for system in others]
    rows = [(_band(group), group, [other.get(group["from"]) for other in bleu]) for group in ours["by_length"]]
    return [*rows, ("all", ours["reconstruction"], [system["reconstruction"]["bleu"] for system in others])]


def _noise_rows(systems: Systems) -> list[ScoreRow]:
    """A row without noise, and one for each level."""
    ours, *others = systems.values()
    bleu = [{row["multiple"]: row["bleu"] for row in _levels(system)} for system in others]
    return [
        (f"{row['multiple']:g} σ" if row["multiple"] else "none", row, [other.get(row["multiple"]) for other in bleu])
        for row in _levels(ours)
    ]


def _levels(system: Results) -> list[Results]:
    """Scores without noise, then at every level that was measured."""
    return [{"multiple": 0.0} | system["reconstruction"], *system["noise"]]


def _by_length(systems: Systems, part: str, key: str) -> tuple[Series, dict[float, str]]:
    """A chart by length, evenly spaced: series and labels of the x axis. Codecs may differ in their groups."""
    groups = {
        name: system["by_length"] if part == "all" else (system[part] or {}).get("by_length", [])
        for name, system in systems.items()
    }
    starts = sorted({(group["from"], _band(group)) for system in groups.values() for group in system})
    place = {start: float(i) for i, (start, _) in enumerate(starts)}
    series = {
        name: [(place[group["from"]], group[key]) for group in groups[name] if group[key] is not None]
        for name in list(systems)[:CHARTED]
    }
    return series, {place[start]: label for start, label in starts}


def _under_noise(systems: Systems, key: str) -> Series:
    shown_systems = list(systems.items())[:CHARTED]
    return {name: [(row["multiple"], row[key]) for row in _levels(system)] for name, system in shown_systems}


def _band(group: Results) -> str:
    return f"{group['from']}+" if group["to"] is None else f"{group['from']}–{group['to']}"


def _settings(results: Results) -> dict[str, str]:
    speed, settings = results["speed"], results["settings"]
    return {
        "encoding": f"{speed['encoding']:,.0f} sentences a second, on {speed['threads']} threads",
        "decoding": f"{speed['decoding']:,.0f} sentences a second, beam {settings['beam']}",
        "fingerprint": results["codec"]["fingerprint"],
        **{name: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in settings.items()},
        "seconds": ", ".join(f"{name} {seconds:g}" for name, seconds in results["seconds"].items()),
    }
