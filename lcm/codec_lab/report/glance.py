"""The report in one table, for the page and for a terminal: a row for each measure, a column for each codec."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]
Systems = Mapping[str, Results]
"""Results by the name of their codec on the page, this report's own first."""
GOOD = 90
"""AutoBLEU from which sentences of a length count as coming back nearly verbatim."""


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


def middle_noise(noise: Sequence[Results]) -> Results:
    """The level of noise that stands for all: half a standard deviation, or the nearest to it."""
    return min(noise, key=lambda row: abs(row["multiple"] - 0.5))


def _agreed(kind: str) -> Callable[[Results], str]:
    def measure(system: Results) -> str:
        pairs = (system["agreement"] or {}).get(kind, {})
        return shown(pairs.get("centred", {}).get("value"), 2)

    return measure


MEASURES: dict[str, Callable[[Results], str]] = {
    "AutoBLEU": lambda system: shown(system["reconstruction"]["bleu"]),
    "chrF": lambda system: shown(system["reconstruction"]["chrf"]),
    "word for word": lambda system: percent(system["reconstruction"]["exact"]),
    "fragility, BLEU": lambda system: shown(system["fragility"] and system["fragility"]["bleu"], 2),
    "midpoints that stand": lambda system: percent(system["halfway"]["closer_than_ends"]),
    "agreement, random pairs": _agreed("random"),
    "agreement, neighbours": _agreed("neighbours"),
    "exchange decoded rightly": lambda system: percent(system["binding"] and system["binding"]["decoded"]["right"]),
    "directions used": lambda system: (
        f"{shown(system['space']['participation_ratio'], 0)} of {system['codec']['dim']:,}"
    ),
    "over the limit": lambda system: f"{system['counts']['over_limit']:,} of {system['counts']['judged']:,}",
}


def glance(systems: Systems) -> list[tuple[str, list[str]]]:
    """Rows of the table: a measure, and its value for each codec.

    After the first three comes AutoBLEU at the middle level of noise of the first codec.
    """
    rows = [(name, [measure(system) for system in systems.values()]) for name, measure in MEASURES.items()]
    if noise := next(iter(systems.values()))["noise"]:
        level = middle_noise(noise)["multiple"]
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
    whole, longest = results["reconstruction"], None
    for group in results["by_length"]:
        if group["bleu"] < GOOD:
            break
        longest = group
    kept = f"no length reaches AutoBLEU {GOOD}"
    if longest:
        kept = f"up to {longest['to'] or 'any number of'} words AutoBLEU stays above {GOOD}"
    said = [
        f"{percent(whole['exact'])} of the sentences come back word for word (AutoBLEU {shown(whole['bleu'])}); {kept}."
    ]
    if results["noise"]:
        row = middle_noise(results["noise"])
        lost = shown(whole["bleu"] - row["bleu"])
        said.append(f"Noise of {row['multiple']:g} σ on every channel costs {lost} points.")
    agreed = results["agreement"]
    if agreed and (rho := agreed["random"]["centred"]["value"]) is not None:
        kind = "hardly" if rho < 0.2 else "in part" if rho < 0.5 else "largely"
        said.append(
            f"Its similarities {kind} follow meaning (rank correlation {shown(rho, 2)} with the public encoder)."
        )
    return " ".join(said)
