"""Sampling settings by measure: guidance, initial noise, steps and sampler of one trained Two-Tower or One-Tower.

    python benchmarks/sampling.py --model runs/errand --data STORIES [--output sampling] [--limit 60]

For each combination the share of sentences that are possible, in continuations of held-out stories; calibration, the
total variation between DRAWS next sentences after each of POINTS beginnings and their probabilities, beside the floor
of as many draws of the truth itself; and seconds of one thread. Writes a line for each to sampling.jsonl, the best by
each score to sampling.json, and a picture. A second call resumes: finished lines are kept.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from charts import COLORS, Line, Panel, charts

import lcm
from lcm.evaluation import finite
from lcm.evaluation.examples import from_folders
from lcm.evaluation.truth_judge import PROMPT, Tale, TruthJudge, read_tales
from lcm.models import Sampling
from lcm.tales import END, Event, follow, parse
from lcm.tales.judging import judge as judge_tale
from lcm.tales.judging import spread

GRID = {"guidance": (1.0, 1.5, 2.0, 3.0), "initial_noise": (0.6, 0.8, 1.0), "steps": (5, 10, 20, 40)}
SAMPLERS: dict[str, dict[str, Any]] = {
    "DDIM": {"sampler": "ddim", "eta": 0.0},
    "DDIM, fresh noise": {"sampler": "ddim", "eta": 1.0},
    "DPM-Solver++": {"sampler": "dpm"},
}
POINTS, DRAWS = 10, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a run's folder")
    parser.add_argument("--data", required=True, help="prepared stories")
    parser.add_argument("--output", type=Path, default=Path("sampling"), help="folder (%(default)s)")
    parser.add_argument("--picture", type=Path, help="the SVG to write (default: sampling.svg in the folder)")
    parser.add_argument("--limit", type=int, default=60, help="stories to continue (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = lcm.load(args.model)
    stories = from_folders([args.data], model, None, args.limit, 0)
    tales = read_tales(stories.documents, model.config.data.slots)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "sampling.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
    for settings in combinations():
        if any(all(row[name] == value for name, value in settings.items()) for row in rows):
            continue
        row = finite({**settings, **measured(TruthJudge(model, Sampling(seed=1, **settings), 1000, 0), tales)})
        rows.append(row)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    best = {
        "floor": floor(tales),
        "consistent": max(rows, key=lambda row: row["consistent"]["value"]),
        "calibration": min(rows, key=lambda row: row["calibration"]["value"]),
    }
    (args.output / "sampling.json").write_text(json.dumps({"best": best, "rows": rows}, indent=2) + "\n", "utf-8")
    (args.picture or args.output / "sampling.svg").write_text(picture(rows), encoding="utf-8")


def combinations() -> list[dict[str, Any]]:
    """Every combination of settings. The quick ones come first."""
    grids = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    found = [grid | sampler for grid in grids for sampler in SAMPLERS.values()]
    return sorted(found, key=lambda settings: settings["steps"])


def measured(judge: TruthJudge, tales: Sequence[Tale]) -> dict[str, Any]:
    start = time.perf_counter()
    most = min(type(tales[0].story).longest - PROMPT + 1, judge.lcm.config.data.slots - PROMPT - 1)
    written = judge.continued(tales, [PROMPT] * len(tales), most, judge.sampling.seed)
    seconds = time.perf_counter() - start
    judged = [judge_tale(tale.sentences[:PROMPT], *text) for tale, text in zip(tales, written, strict=True)]
    verdicts = [one.verdicts for one in judged]
    lengths = [max(1, len(own)) for own in verdicts]
    distances = [spread(story, events).distance for story, events in drawn(judge, tales)]
    return {
        "consistent": judge.interval([sum(v.consistent for v in own) for own in verdicts], lengths),
        "grammatical": judge.interval([sum(v.event is not None for v in own) for own in verdicts], lengths),
        "calibration": judge.interval(distances),
        "seconds_a_sentence": seconds / sum(lengths),
    }


def beginnings(tales: Sequence[Tale]) -> list[tuple[Tale, int]]:
    """Stories, each with the number of its sentences that are told."""
    return [(tale, 1 + i % (len(tale.sentences) - 1)) for i, tale in enumerate(tales[:POINTS])]


def drawn(judge: TruthJudge, tales: Sequence[Tale]) -> list[tuple[Any, list[Event | None]]]:
    """For each beginning its story, and the events of the sentences drawn after it."""
    chosen, cuts = zip(*beginnings(tales), strict=True)
    return [
        (told(tale, cut), [END if one is None else parse(one, languages=[tale.language]) for one in sentences])
        for tale, cut, sentences in zip(chosen, cuts, judge.drawn(chosen, cuts, DRAWS), strict=True)
    ]


def told(tale: Tale, cut: int) -> Any:
    return follow([parse(sentence) for sentence in tale.sentences[:cut]])


def floor(tales: Sequence[Tale]) -> float:
    """Calibration of the truth itself with as many draws."""
    random = Random(0)
    stories = [told(*point) for point in beginnings(tales)]
    distances = [spread(story, [story.next(random) for _ in range(DRAWS)]).distance for story in stories]
    return sum(distances) / len(distances)


def picture(rows: Sequence[dict[str, Any]]) -> str:
    """A row of charts for each score and initial noise, a column for each guidance; a line for each sampler."""
    panels = []
    scores = (("consistent", "possible sentences, %"), ("calibration", "calibration, %"))
    for (name, label), noise, guidance in itertools.product(scores, GRID["initial_noise"], GRID["guidance"]):
        lines = []
        for (title, sampler), color in zip(SAMPLERS.items(), COLORS, strict=False):
            wanted = {"guidance": guidance, "initial_noise": noise, **sampler}
            own = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
            lines.append(Line(title, [(row["steps"], 100 * row[name]["value"]) for row in own], color))
        title = f"guidance {guidance:g}, initial noise {noise:g}"
        panels.append(Panel(title, lines, "steps", label, 100, GRID["steps"], doubling=True))
    return charts(panels, columns=len(GRID["guidance"]))


if __name__ == "__main__":
    main()
