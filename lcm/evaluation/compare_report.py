"""Output of `lcm compare`: the command with its table, and the page with the texts of both runs side by side."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from lcm.evaluation.compare import Comparison, Difference, Run, compare
from lcm.evaluation.report import HERE, render
from lcm.evaluation.results import finite, output_folder
from lcm.files import write_result
from lcm.options import Option, add_options, check_fields, options_from
from lcm.scores import ROUGE

SHOWN = 12
"""Examples on the page: those of which B is better by most, and as many of which A is."""
SORTED_BY = ("truth.consistent", "rougeL", "rougeLsum", "rouge2", "l2")
"""Scores by which examples are sorted; the first that both runs have."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of `lcm compare`."""

    run_a: Annotated[str, Option("RUN_A", place=True, read=True, positional=True)]
    """Folder of an evaluation, which lcm evaluate --output wrote."""
    run_b: Annotated[str, Option("RUN_B", place=True, read=True, positional=True)]
    """Folder of another one, of the same test set. Differences are this one less the first."""
    output: Annotated[str | None, Option("DIR", place=True)] = None
    """Folder for compare.json and compare.html (default: compare-A-B)."""
    bootstrap: Annotated[int, Option(least=1)] = 10_000
    """Bootstrap samples."""
    seed: Annotated[int, Option(least=0)] = 0
    """Seed of the bootstrap."""
    json: bool = False
    """Print compare.json instead of a table."""

    def __post_init__(self) -> None:
        check_fields(self)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, CompareOptions)


def run(args: argparse.Namespace) -> int:
    """`lcm compare`: writes compare.json and compare.html, prints the table."""
    options = options_from(args, CompareOptions)
    found = compare(options.run_a, options.run_b, options.bootstrap, options.seed)
    folder = output_folder(options.output or f"compare-{found.a.name}-{found.b.name}")
    settings = {"bootstrap": options.bootstrap, "seed": options.seed}
    text = json.dumps(finite({**found.stored, **settings}), indent=2, ensure_ascii=False)
    write_result(folder / "compare.json", text + "\n")
    write_result(folder / "compare.html", page(found, options.bootstrap))
    print(text if options.json else "\n".join(lines(found)))
    print(folder / "compare.html")
    return 0


def lines(found: Comparison) -> Iterator[str]:
    """The table for a terminal: a row a score."""
    yield f"A  {found.a.name}\nB  {found.b.name}\n"
    yield f"{'':24}{'A':>10}{'B':>10}{'B - A':>10}{'95% interval':>22}{'p':>9}{'B better':>10}{'A better':>10}{'n':>8}"
    for name, one in found.scores.items():
        interval = f"{one.low:+.4f} to {one.high:+.4f}"
        won = "".join(f"{'' if count is None else f'{count:,}':>10}" for count in (one.wins, one.losses))
        means = f"{one.a:>10.4f}{one.b:>10.4f}{one.difference:>+10.4f}"
        yield f"{name:24}{means}{interval:>22}{one.p:>9.4f}{won}{one.examples:>8,}"
    yield ""
    yield from notes(found)


def notes(found: Comparison) -> Iterator[str]:
    """Notes for a reader: examples of one run alone, and scores that are left out."""
    if found.only_a or found.only_b:
        yield f"left out: {found.only_a:,} examples of A alone, {found.only_b:,} of B alone"
    for name, why in found.left_out.items():
        yield f"left out: {name}: {why}"


def page(found: Comparison, samples: int) -> str:
    """compare.html."""
    name = next((name for name in SORTED_BY if name in found.scores), None)
    values = {
        "found": found,
        "samples": samples,
        "scores": {title(name): _shown(one) for name, one in found.scores.items()},
        "sorted_by": title(name) if name else None,
        "gains": _examples(found, name, 1) if name else [],
        "losses": _examples(found, name, -1) if name else [],
        "notes": list(notes(found)),
    }
    return render(HERE / "compare.html", values)


def title(name: str) -> str:
    return name.replace("rouge", "ROUGE-") if name in ROUGE else name.replace("truth.", "stories: ")


def _shown(one: Difference) -> dict[str, Any]:
    """A row of the page's table, as text."""
    sign = {"higher": 1, "lower": -1}.get(one.better, 0)
    apart = one.low > 0 or one.high < 0
    return {
        "a": f"{one.a:.4f}",
        "b": f"{one.b:.4f}",
        "difference": f"{one.difference:+.4f}",
        "low": f"{one.low:+.4f}",
        "high": f"{one.high:+.4f}",
        "p": f"{one.p:.4f}",
        "wins": "" if one.wins is None else f"{one.wins:,} / {one.losses:,} / {one.ties:,}",
        "examples": f"{one.examples:,}",
        "verdict": ("" if not sign or not apart else "B" if sign * one.difference > 0 else "A"),
    }


def _examples(found: Comparison, name: str, sign: int) -> list[dict[str, Any]]:
    """The examples by which B gains most (sign 1), or A, with their texts."""
    mine, theirs = (run.values()[name][1] for run in (found.a, found.b))
    direction = sign * (-1 if found.scores[name].better == "lower" else 1)
    gains = {key: direction * (theirs[key][0] - mine[key][0]) for key in mine if key in theirs}
    best = sorted((key for key, gain in gains.items() if gain > 0), key=lambda key: -gains[key])[:SHOWN]
    return [_example(found.a, found.b, key, mine[key][0], theirs[key][0]) for key in best]


def _example(a: Run, b: Run, key: str, value_a: float, value_b: float) -> dict[str, Any]:
    row_a, row_b = (_written(run, key) for run in (a, b))
    parts = {name: " ".join(row_a.get(name, [])) for name in ("prompt", "reference")}
    texts = [
        (f"{name} · {value:.3f}", " ".join(row.get("model", [])))
        for name, value, row in (("A", value_a, row_a), ("B", value_b, row_b))
    ]
    return {"id": key, **parts, "texts": texts}


def _written(run: Run, key: str) -> dict[str, Any]:
    """The line of an example that has a text; empty where only its sentences were predicted."""
    return next((rows[key] for rows in run.kinds.values() if "model" in rows.get(key, {})), {})
