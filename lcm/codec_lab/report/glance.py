"""The report in one table, for the page and for a terminal: a row a measure, a column a codec."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lcm.codec_lab.report.shown import Systems, percent, shown
from lcm.evaluation import Html, facts, heading, paragraph, table, text

Results = Mapping[str, Any]
Measure = Callable[[Results], str]
GOOD = 90
"""AutoBLEU from which a length counts as coming back nearly verbatim."""


def _noisy(multiple: float) -> Measure:
    return lambda found: shown(next((row["bleu"] for row in found["noise"] if row["multiple"] == multiple), None))


def _agreed(kind: str, space: str) -> Measure:
    return lambda found: shown(found["agreement"] and found["agreement"].get(kind, {}).get(space, {}).get("value"), 2)


MEASURES: dict[str, Measure] = {
    "AutoBLEU": lambda found: shown(found["reconstruction"]["bleu"]),
    "chrF": lambda found: shown(found["reconstruction"]["chrf"]),
    "word for word": lambda found: percent(found["reconstruction"]["exact"]),
    "fragility, BLEU": lambda found: shown(found["fragility"] and found["fragility"]["bleu"], 2),
    "midpoints that stand": lambda found: percent(found["halfway"]["closer_than_ends"]),
    "agreement, random pairs": _agreed("random", "centred"),
    "agreement, neighbours": _agreed("neighbours", "centred"),
    "exchange decoded rightly": lambda found: percent(found["binding"] and found["binding"]["decoded"]["right"]),
    "directions used": lambda found: f"{shown(found['space']['participation_ratio'], 0)} of {found['codec']['dim']:,}",
    "over the limit": lambda found: f"{found['counts']['over_limit']:,} of {found['counts']['judged']:,}",
}


EXPLAINED = {
    "AutoBLEU": "BLEU of the decoded sentences against what they were, 0 to 100; chrF is the same over characters.",
    "Fragility": "What noise leaves of a sentence, averaged over nine levels: −1 everything, 0 nothing.",
    "Midpoints": "Halfway to the nearest neighbour: how many decode to a sentence that stands there, rather than "
    "where one of the two does. A smooth space has many.",
    "Agreement": "Rank correlation of similarities with those of a public encoder of meaning. 0: the space knows "
    "nothing of meaning; 1: as much as that encoder.",
    "Exchange": "Of sentences such as “the white cat and the black dog”, how many come back with each attribute where "
    "it belongs.",
    "Directions": "As many equal directions would spread as much: few of many means that the space is narrow.",
}


def _measures(systems: Systems) -> list[tuple[str, Measure]]:
    """MEASURES, and after the first three AutoBLEU at the multiple of noise nearest to 0.5 that the first codec had."""
    rows = list(MEASURES.items())
    if noise := next(iter(systems.values()))["noise"]:
        level = middle_noise(noise)["multiple"]
        rows.insert(3, (f"AutoBLEU at {level:g} σ of noise", _noisy(level)))
    return rows


def middle_noise(noise: Sequence[Results]) -> Results:
    """The level that stands for all: half a standard deviation, or what is nearest to it."""
    return min(noise, key=lambda row: abs(row["multiple"] - 0.5))


def glance(systems: Systems) -> list[Html]:
    """The table of the page."""
    rows = [(False, [name, *(measure(found) for found in systems.values())]) for name, measure in _measures(systems)]
    parts = [heading("At a glance"), table(["", *systems], rows), facts(EXPLAINED.items())]
    if len({found["counts"].get("fingerprint") for found in systems.values()}) > 1:
        parts.append(paragraph("Not all were judged on the same sentences: compare with care.", kind="soft"))
    return parts


def headline(systems: Systems) -> str:
    """The table for a terminal."""
    measures = _measures(systems)
    columns = [[name, *(measure(found) for _, measure in measures)] for name, found in systems.items()]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for name, *cells in zip(["", *(name for name, _ in measures)], *columns, strict=True):
        right = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{name:26}" + "  ".join(right))
    return "\n".join(lines)


def agreement_table(systems: Systems) -> Html:
    """Spearman's correlation with its interval; a row a codec and kind of pairs."""
    kinds = {"random": "random pairs", "neighbours": "nearest neighbours"}
    rows = []
    for number, (name, found) in enumerate(systems.items()):
        for kind, agreed in (found["agreement"] or {}).items():
            label = kinds[kind] if len(systems) == 1 else f"{name}, {kinds[kind]}"
            cells = [_with_interval(agreed[space]) for space in ("raw", "centred")]
            rows.append((number == 0 and len(systems) > 1, [label, f"{agreed['pairs']:,}", *cells]))
    return table(["", "pairs", "cosine", "centred cosine"], rows)


def verdict(results: Results) -> str:
    """What the numbers say, in three sentences."""
    whole = results["reconstruction"]
    good = []
    for group in results["by_length"]:
        if group["bleu"] < GOOD:
            break
        good.append(group)
    kept = f"no length reaches AutoBLEU {GOOD}"
    if good:
        kept = f"up to {good[-1]['to'] or 'any number of'} words AutoBLEU stays above {GOOD}"
    said = [
        f"{percent(whole['exact'])} of the sentences come back word for word (AutoBLEU {shown(whole['bleu'])}); {kept}."
    ]
    if results["noise"]:
        row = middle_noise(results["noise"])
        lost = whole["bleu"] - row["bleu"]
        said.append(f"Noise of {row['multiple']:g} σ on every channel costs {shown(lost)} points.")
    agreed = results["agreement"]
    if agreed and agreed["random"]["centred"]["value"] is not None:
        rho = agreed["random"]["centred"]["value"]
        kind = "hardly" if rho < 0.2 else "in part" if rho < 0.5 else "largely"
        said.append(
            f"Its similarities {kind} follow meaning (rank correlation {shown(rho, 2)} with the public encoder)."
        )
    return " ".join(said)


def _with_interval(interval: Mapping[str, float | None]) -> Html:
    value, low, high = (shown(interval[key], 3) for key in ("value", "low", "high"))
    return Html(f"{text(value)}<small>{text(low)} – {text(high)}</small>")
