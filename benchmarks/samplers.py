"""Quality against calls of the denoiser: DDIM and DPM-Solver++ on a trained Two-Tower or One-Tower model.

    python benchmarks/samplers.py --model runs/two_tower --data data/mine [--output samplers] [--limit 30]

Every sentence of some held-out documents is predicted from the true ones before it. Prints a JSON line for each sampler
and number of steps: contrastive accuracy, round-trip distance of a sample, L2 to what 200 steps (or as many as the
model was trained with) give, all with the same noise; and the fewest calls whose accuracy and round-trip distance are
at most 1% worse than DDIM's with 40. Writes samplers.png beside the lines.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

import lcm
from lcm.evaluation import scoring
from lcm.evaluation.examples import from_folders
from lcm.evaluation.scoring import l2
from lcm.inference.pipeline import LCM

STEPS = (2, 3, 4, 5, 6, 8, 10, 14, 20, 28, 40, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a run's folder")
    parser.add_argument("--data", required=True, nargs="+", help="prepared folders")
    parser.add_argument("--output", type=Path, default=Path("samplers"), help="folder (%(default)s)")
    parser.add_argument("--limit", type=int, default=30, help="documents and pairs (%(default)s)")
    parser.add_argument("--roundtrip", type=int, default=200, help="sentences decoded and encoded again (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    model = lcm.load(args.model)
    examples = from_folders(args.data, model, None, args.limit, 0)
    pieces = scoring.pieces_of(examples.drawn, model.config.data.slots)
    trained = model.model.diffusion.config.steps
    finest = predictions(model, pieces, "ddim", min(200, trained))
    rows = []
    for sampler in ("ddim", "dpm"):
        for steps in (s for s in STEPS if s <= trained):
            start = time.perf_counter()
            predicted = predictions(model, pieces, sampler, steps)
            seconds = time.perf_counter() - start
            row = judged(model, predicted, finest, args.roundtrip)
            rows.append({"name": "samplers", "sampler": sampler, "calls": steps, **row, "seconds": round(seconds, 2)})
            print(json.dumps(rows[-1]), flush=True)
    reference = next(row for row in rows if row["sampler"] == "ddim" and row["calls"] == 40)
    print(json.dumps({"name": "samplers", "fewest_calls_within_1%": fewest(rows, reference)}))
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "samplers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    picture(rows).savefig(args.output / "samplers.png", dpi=110)


def predictions(model: LCM, pieces: list[scoring.Piece], sampler: str, steps: int) -> scoring.Predictions:
    sampling = lcm.Sampling(steps=steps, sampler="dpm" if sampler == "dpm" else "ddim")
    return scoring.predictions_of(pieces, scoring.predict(model.model, pieces, sampling), model.record)


def judged(
    model: LCM, predicted: scoring.Predictions, finest: scoring.Predictions, roundtrip: int
) -> dict[str, float | str]:
    """Scores of one sampler; `roundtrip` sentences are decoded and encoded again."""
    sample = torch.zeros(len(predicted.place), dtype=torch.bool)
    sample[torch.randperm(len(sample), generator=torch.Generator().manual_seed(0))[:roundtrip]] = True
    scores = scoring.measure(predicted.predicted, predicted, model.round_trip, sample)
    back = l2(model.round_trip(predicted.predicted[sample]), predicted.predicted[sample])
    return {
        "sentences": len(predicted.place),
        "contrastive_accuracy": float(scores["contrastive_accuracy"].nanmean()),
        "l2": float(scores["l2"].mean()),
        "roundtrip": float(back.mean()),
        "l2_to_finest": float(l2(predicted.predicted, finest.predicted).mean()),
    }


def fewest(rows: list[dict[str, float | str]], reference: dict[str, float | str]) -> dict[str, float | str]:
    """The fewest calls of each sampler from which on, up to the reference, quality is at most 1% worse than its."""
    found: dict[str, float | str] = {}
    for sampler in ("ddim", "dpm"):
        own = [row for row in rows if row["sampler"] == sampler and float(row["calls"]) <= float(reference["calls"])]
        for row in reversed(own):
            close = float(row["contrastive_accuracy"]) >= 0.99 * float(reference["contrastive_accuracy"])
            close &= float(row["roundtrip"]) <= 1.01 * float(reference["roundtrip"])
            if not close:
                break
            found[sampler] = row["calls"]
    return found


def picture(rows: list[dict[str, float | str]]) -> Figure:
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    names = {
        "contrastive_accuracy": "contrastive accuracy",
        "roundtrip": "round-trip distance",
        "l2_to_finest": "L2 to the finest DDIM",
    }
    for axes, (name, label) in zip(figure.subplots(1, 3), names.items(), strict=True):
        for sampler, color, mark in (("ddim", "#3b6ea5", "o"), ("dpm", "#c8553d", "s")):
            own = [row for row in rows if row["sampler"] == sampler]
            title = "DDIM" if sampler == "ddim" else "DPM-Solver++(2M)"
            values = [float(row[name]) for row in own]
            axes.plot([float(r["calls"]) for r in own], values, color=color, marker=mark, ms=4, label=title)
        axes.set_xscale("log")
        axes.set_xticks([2, 5, 10, 20, 40, 100], ["2", "5", "10", "20", "40", "100"])
        axes.minorticks_off()
        axes.set_xlabel("calls of the denoiser")
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.25)
    figure.axes[0].legend(frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    main()
