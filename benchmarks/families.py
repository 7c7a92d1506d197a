"""The five model families and a token language model on stories whose truth is known, at equal size and equal time.

    python benchmarks/families.py --output families [--seconds 150] [--seeds 3] [--limit 100]

Parameters are within 3% of each other. Equal time, not equal steps: every model trains for --seconds of one core. First
some steps are timed, in a process of one thread beside another one, as in training; then trainer.max_steps is what fits
into that time, so that the learning rate falls to its end. Starting, preparing data, validating, and fitting the
quantizer of Quant-LCM do not count; the table has the seconds that the steps really took. The token model is
transformers' Llama on the codec's pieces, with as many parameters (token_model.py; needs transformers).

Two runs at a time with one thread each. Every model is judged alike: on the continuations of held-out stories, drawn
next sentences, and gists (docs/tales.md). Writes families.json and families.md (tables, also printed). A second call
resumes: finished runs are kept.
"""

import argparse
import csv
import json
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from tales_runs import KINDS, Run, Workshop, add_options, open_workshop, read_json, reports, seconds_of_steps, steps_in

SCORES = {
    "consistent": ("consistent", "value"),
    "grammatical": ("grammatical", "value"),
    "recall": ("recall", "value"),
    "gists": ("gist", "word_for_word"),
    "calibration": ("calibration", "value"),
    "coverage": ("coverage", "value"),
}
"""Columns of the tables that have intervals, in percent; calibration is a distance, of which less is better."""
CONTROLS = ("truth", "random", "previous")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=150, help="training of each run on one core (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (%(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="(all)")
    add_options(parser, limit=100)
    args = parser.parse_args()
    if "token" in args.kinds and not find_spec("transformers"):
        sys.exit(
            "families: the token model needs transformers: pip install 'transformers>=4.56,<5', or --kinds without it"
        )
    start = time.perf_counter()
    shop = open_workshop(args)
    rows, controls = train_and_judge(shop, args.kinds, args.seeds, args.seconds)
    minutes = (time.perf_counter() - start) / 60
    report = {"seconds": args.seconds, "precision": args.precision, "limit": args.limit, "minutes": minutes}
    report |= {"rows": rows, "controls": controls}
    (shop.folder / "families.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = summary(rows, controls) + "\n" + every_run(rows)
    (shop.folder / "families.md").write_text(text, encoding="utf-8")
    print(text)


def train_and_judge(
    shop: Workshop, kinds: Sequence[str], seeds: int, seconds: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each run, and the scores of the controls."""
    # Two of one kind never run side by side, so the time of a kind is measured beside another one. Quant-LCM comes
    # last, because it needs the quantizer.
    order = [(kind, seed) for seed in range(1, seeds + 1) for kind in sorted(kinds, key=is_quantized)]
    measuring = {kind: Lock() for kind in kinds}
    pool = ThreadPoolExecutor(2)
    fitted = pool.submit(shop.fit_quantizer) if any(map(is_quantized, kinds)) else None

    def one(kind: str, seed: int) -> dict[str, Any]:
        if is_quantized(kind):
            assert fitted is not None
            fitted.result()
        with measuring[kind]:
            step = shop.step_seconds(kind)
        run = Run(kind, seed, steps_in(seconds, step))
        folder = shop.folder / run.name
        shop.train(run, folder)
        return row(run, folder, shop.judge(folder, kind))

    try:
        found = [future.result() for future in [pool.submit(one, kind, seed) for kind, seed in order]]
    finally:
        pool.shutdown(cancel_futures=True)
    rows = sorted(found, key=lambda row: (KINDS.index(row["kind"]), row["seed"]))
    return [{**row, "truth": row["truth"]["model"]} for row in rows], {
        name: rows[0]["truth"][name] for name in CONTROLS
    }


def is_quantized(kind: str) -> bool:
    return kind.startswith("quant")


def row(run: Run, folder: Path, judged: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": run.kind,
        "seed": run.seed,
        "steps": run.steps,
        "seconds": run.steps * seconds_of_steps(reports(folder)),
        "sentences_per_second": sentences_per_second(folder),
        "parameters": judged["parameters"],
        "seconds_a_sentence": judged["seconds_a_sentence"],
        "judging_seconds": judged["seconds"],
        "truth": judged["truth"],
    }


def sentences_per_second(folder: Path) -> float:
    """Concepts, or of the token model sentences, that a second of training reads."""
    if (folder / "token.json").is_file():
        return float(read_json(folder / "token.json")["per_second"])
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        found = [line["train/concepts_per_second"] for line in csv.DictReader(file)]
    return statistics.median(float(value) for value in found if value)


def score(truth: dict[str, Any], name: str) -> dict[str, float] | None:
    """value, low and high of a score, in percent; None where it is not defined."""
    outer, inner = SCORES[name]
    found = truth.get(outer, {})
    found = found.get(inner) if inner == "word_for_word" else found
    return {key: 100 * value for key, value in found.items()} if found and found["value"] is not None else None


HEAD = [*(f"{name} %" for name in SCORES), "sentences/s in training", "s a sentence in writing"]


def summary(rows: Sequence[dict[str, Any]], controls: dict[str, Any]) -> str:
    """A Markdown table: a line per kind, the mean over seeds and in brackets the lowest and highest; then controls."""
    lines = [["model", "parameters", "steps", "s trained", *HEAD]]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        each = [[found["value"] for row in own if (found := score(row["truth"], name))] for name in SCORES]
        lines.append(
            [
                kind,
                f"{own[0]['parameters']:,}",
                f"{own[0]['steps']:,}",
                over_seeds([row["seconds"] for row in own], 0),
                *(over_seeds(values, 1) for values in each),
                f"{statistics.mean(row['sentences_per_second'] for row in own):,.0f}",
                f"{statistics.mean(row['seconds_a_sentence'] for row in own):.3f}",
            ]
        )
    for name, truth in controls.items():
        lines.append([name, "", "", "", *(with_interval(score(truth, column)) for column in SCORES), "", ""])
    return table(lines)


def every_run(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: a line per run with 95% bootstrap intervals over prompts."""
    lines = [["model", "seed", "steps", "s trained", *HEAD]]
    for row in rows:
        scores = [with_interval(score(row["truth"], name)) for name in SCORES]
        speeds = [f"{row['sentences_per_second']:,.0f}", f"{row['seconds_a_sentence']:.3f}"]
        lines.append([row["kind"], str(row["seed"]), f"{row['steps']:,}", f"{row['seconds']:.0f}", *scores, *speeds])
    return table(lines)


def over_seeds(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    mean, low, high = (f"{value:.{digits}f}" for value in (statistics.mean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low}–{high})"


def with_interval(found: dict[str, float] | None) -> str:
    return f"{found['value']:.1f} ({found['low']:.1f}–{found['high']:.1f})" if found else ""


def table(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rest]) + "\n"


if __name__ == "__main__":
    main()
