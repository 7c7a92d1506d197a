"""Consistent sentences against minutes of training, for one Two-Tower, one Base-LCM and one token language model.

    python benchmarks/curve.py --output families [--minutes 20] [--points 8] [--picture docs/pictures/tales_curve.svg]

Each trains for so many minutes of one core, measured as families.py does, which shares the folder and its data; its
checkpoints, evenly spread, are judged. All points of a model are of one run, whose learning rate falls to its end only
at the last. Writes curve.json and the picture; a second call resumes.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from charts import COLORS, Line, Panel, charts
from tales_runs import KINDS, Run, Workshop, add_options, command, open_workshop, reports, seconds_of_steps, steps_in

DRAWN = ("two_tower", "base", "token")
NAMES = {"two_tower": "Two-Tower", "base": "Base-LCM", "one_tower": "One-Tower", "token": "token model"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="training of each on one core (%(default)s)")
    parser.add_argument("--points", type=int, default=8, help="checkpoints of each (%(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=DRAWN, help="(%(default)s)")
    parser.add_argument("--picture", type=Path, help="the SVG to write (default: curve.svg in the folder)")
    add_options(parser, limit=60)
    args = parser.parse_args()
    shop = open_workshop(args)
    pool = ThreadPoolExecutor(2)
    try:
        trained = [pool.submit(train, shop, kind, 60 * args.minutes, args.points) for kind in args.kinds]
        judged = []
        for kind, future in zip(args.kinds, trained, strict=True):
            step, folders = future.result()
            judged += [pool.submit(point, shop, kind, step * steps, folder) for steps, folder in folders.items()]
        rows = [future.result() for future in judged]
    finally:
        pool.shutdown(cancel_futures=True)
    (shop.folder / "curve.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    (args.picture or shop.folder / "curve.svg").write_text(picture(rows), encoding="utf-8")
    for row in rows:
        print(json.dumps(row))


def train(shop: Workshop, kind: str, seconds: float, points: int) -> tuple[float, dict[int, Path]]:
    """Seconds of a step as they were, and the folder of each checkpoint's model, by its steps."""
    run = Run(kind, 1, steps_in(seconds, shop.step_seconds(kind)))
    folder = shop.folder / "curve" / kind
    shop.train(run, folder, checkpoints=points)
    found = {}
    if kind == "token":
        found = {int(path.name.removeprefix("step-")): path for path in folder.glob("step-*")} | {run.steps: folder}
    for path in (folder / "checkpoints").glob("step-*.ckpt"):
        exported = folder / path.stem
        if not (exported / "model.safetensors").is_file():
            log = folder.with_suffix(".log")
            command("lcm", "export", f"--checkpoint={path}", f"--output={exported}", log=log)
        found[int(path.stem.removeprefix("step-"))] = exported
    return seconds_of_steps(reports(folder)), dict(sorted(found.items()))


def point(shop: Workshop, kind: str, seconds: float, folder: Path) -> dict[str, Any]:
    truth = shop.judge(folder, kind)["truth"]["model"]
    scores = {name: truth[name] for name in ("consistent", "grammatical", "calibration")}
    return {"kind": kind, "minutes": seconds / 60, **scores, "gists": truth["gist"]["word_for_word"]}


def picture(rows: list[dict[str, Any]]) -> str:
    """Consistent sentences on the left, gists word for word on the right, with 95% intervals."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    last = max(row["minutes"] for row in rows)
    whole = max(1, round(last / 4))  # ticks at whole minutes
    ticks = [whole * i for i in range(int(last / whole) + 2)]
    panels = []
    for name, title in (("consistent", "possible sentences"), ("gists", "gists, word for word")):
        lines = []
        for kind, color in zip(kinds, COLORS, strict=False):
            own = [row for row in rows if row["kind"] == kind]
            values = [(row["minutes"], 100 * row[name]["value"]) for row in own]
            intervals = [(100 * row[name]["low"], 100 * row[name]["high"]) for row in own]
            lines.append(Line(NAMES.get(kind, kind), values, color, intervals))
        panels.append(Panel(title, lines, "minutes of one core", "%", 100, ticks))
    return charts(panels, columns=2, width=330, height=250)


if __name__ == "__main__":
    main()
