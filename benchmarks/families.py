"""The five model families side by side: the same data, parameters within 3%, steps, optimizer, codec and evaluation.

    python benchmarks/families.py --output families [--steps 400] [--seeds 3] [--limit 150]

Trains configs/*_toy.yaml on the demo's corpus, two runs at a time with one thread each, Base and Two-Tower with several
seeds, and evaluates each on the same held-out documents. Writes families.json and families.md (a table, also printed).
A second call resumes: finished runs are kept.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import lcm
from lcm.evaluation.examples import from_folders
from lcm.inference.loop import StopRules

ROOT = Path(__file__).parent.parent
KINDS = ("base", "one_tower", "two_tower", "quant_c", "quant_d")
SEEDED = ("base", "two_tower")
PROSE = ("examples/corpus/sotu.jsonl.xz", "examples/corpus/moby-dick.jsonl.xz")
PAIRS = ("examples/corpus/wikipedia/leads-with-descriptions.jsonl.xz",)
PROMPTS, SENTENCES = 16, 4
"""Continuations that are timed and checked for repetition: prompts, and new sentences of each."""


@dataclass(frozen=True)
class Run:
    kind: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("families"), help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="steps of 1,024 slots, at least 10 (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of Base and Two-Tower (%(default)s)")
    parser.add_argument("--limit", type=int, default=150, help="documents and pairs to score (%(default)s)")
    args = parser.parse_args()
    start = time.perf_counter()
    args.output.mkdir(parents=True, exist_ok=True)
    data = prepare(args.output)
    quantizer = args.output / "quantizer.safetensors"
    runs = [Run(kind, seed) for kind in KINDS for seed in range(1, 1 + (args.seeds if kind in SEEDED else 1))]
    # Long runs start early, so both threads stay busy to the end; the first of them needs no quantizer.
    runs.sort(key=lambda run: (run.kind in SEEDED, run.kind.startswith("quant")))
    with ThreadPoolExecutor(2) as pool:
        fitted = pool.submit(fit_quantizer, data, quantizer)

        def one(run: Run) -> None:
            if run.kind.startswith("quant"):
                fitted.result()
            train_and_evaluate(run, data, args.output, args.steps, args.limit)

        list(pool.map(one, runs))
    rows = [row(run, data, args.output) for run in runs]
    report = {"steps": args.steps, "limit": args.limit, "rows": rows, "minutes": (time.perf_counter() - start) / 60}
    (args.output / "families.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = table(rows)
    (args.output / "families.md").write_text(text, encoding="utf-8")
    print(text)


def prepare(output: Path) -> list[Path]:
    """Prepare the demo's data; return its folders."""
    prose, pairs = output / "data" / "prose", output / "data" / "pairs"
    run("lcm", "prepare", "--input", *PROSE, "--max-characters", "120", "--output", str(prose))
    run("lcm", "prepare", "--pairs", "--input", *PAIRS, "--max-characters", "120", "--output", str(pairs))
    return [prose, pairs]


def fit_quantizer(data: list[Path], path: Path) -> None:
    if not path.is_file():
        words = ["--data", *map(str, data), "--codebooks", "64", "--units", "256", "--output", str(path)]
        words += ["--autobleu", "200"]  # logs the quality of each number of codebooks
        run("python", "data_prep/fit_quantizer.py", *words, log=path.with_suffix(".log"))


def train_and_evaluate(one: Run, data: list[Path], output: Path, steps: int, limit: int) -> None:
    folder, scores = output / one.name, output / one.name / "report"
    words = [f"--config=configs/{one.kind}_toy.yaml", f"--run.dir={folder}", f"--run.seed={one.seed}"]
    words += [f"--trainer.max_steps={steps}", *(f"--data.path={path}" for path in data)]
    if one.kind.startswith("quant"):
        words.append(f"--model.quantizer={output / 'quantizer.safetensors'}")
    run("lcm", "train", *words, log=output / f"{one.name}.log")
    results, model = scores / "results.json", folder / "model.safetensors"
    if not results.is_file() or results.stat().st_mtime < model.stat().st_mtime:  # it was trained further since
        where = ["--data", *map(str, data), "--output", str(scores), "--limit", str(limit)]
        run("lcm", "evaluate", "--model", str(folder), *where, log=output / f"{one.name}.log")


def run(program: str, *words: str, log: Path | None = None) -> None:
    """Run a command of this environment with one thread; append its output to `log` if there is one."""
    path = Path(sys.executable).parent / program
    print("$", program, *words, file=sys.stderr)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if log is None:
        subprocess.run([path, *words], cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
        return
    with log.open("a", encoding="utf-8") as file:
        subprocess.run([path, *words], cwd=ROOT, env=environment, check=True, stdout=file, stderr=file)


def row(one: Run, data: list[Path], output: Path) -> dict[str, Any]:
    """A row of the table: scores, speed and continuations of one run."""
    results = json.loads((output / one.name / "report" / "results.json").read_text(encoding="utf-8"))
    return {
        "kind": one.kind,
        "seed": one.seed,
        "parameters": results["model"]["parameters"],
        "concepts_per_second": speed(output / one.name / "metrics.csv"),
        "intervals": results["intervals"],
        "end_of_text": results["end_of_text"],
        "summaries": results["summaries"],
        **continuations(output / one.name, data),
    }


def speed(path: Path) -> float:
    """The median of the logged concepts per second, with one thread."""
    lines = path.read_text(encoding="utf-8").splitlines()
    column = lines[0].split(",").index("train/concepts_per_second")
    found = [float(cell) for line in lines[1:] if (cell := line.split(",")[column])]
    return statistics.median(found)


def continuations(folder: Path, data: list[Path]) -> dict[str, float]:
    """Seconds per new concept, one prompt at a time, and the similarity of neighbouring sentences in the output."""
    torch.set_num_threads(1)
    model = lcm.load(folder)
    documents = from_folders([str(path) for path in data], model, None, 200, 0).documents
    prompts = [document.vectors[:4] for document in documents if len(document.vectors) > 4][:PROMPTS]
    stop = StopRules(max_sentences=SENTENCES, min_sentences=SENTENCES, end_threshold=2, repetition_threshold=None)
    start = time.perf_counter()
    written = [model.continue_concepts([prompt], stop, lcm.Sampling())[0].vectors for prompt in prompts]
    seconds = (time.perf_counter() - start) / (len(prompts) * SENTENCES)
    alike = torch.cat([torch.cosine_similarity(v[:-1], v[1:], dim=1) for v in written])
    true = torch.cat(
        [torch.cosine_similarity(d.vectors[4:8], d.vectors[5:9], dim=1) for d in documents if len(d.vectors) > 9]
    )
    return {
        "seconds_a_sentence": seconds,
        "neighbours_cosine": float(alike.mean()),
        "true_neighbours_cosine": float(true.mean()),
        "repeated": float((alike >= 0.9).float().mean()),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: a line per run with 95% intervals over documents; the two controls last."""
    head = [
        "model",
        "seed",
        "parameters",
        "L2",
        "L2-r",
        "CA %",
        "PAR",
        "ROUGE-L",
        "concepts/s",
        "s a sentence",
        "repeated",
    ]
    lines = [head, ["---"] * len(head)]
    order = sorted(rows, key=lambda row: (KINDS.index(str(row["kind"])), row["seed"]))
    for one in order:
        rouge = one["summaries"]["model"]["rougeL"]
        lines.append(
            [
                str(one["kind"]),
                str(one["seed"]),
                f"{one['parameters']:,}",
                *scores(one["intervals"]["model"]),
                interval(percent(rouge), 1),
                f"{one['concepts_per_second']:,.0f}",
                f"{one['seconds_a_sentence']:.3f}",
                f"{one['repeated']:.0%}",
            ]
        )
    for control in ("mean", "previous"):
        lines.append([control, "", "", *scores(order[0]["intervals"][control]), "", "", "", ""])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def scores(found: dict[str, dict[str, float]]) -> list[str]:
    return [
        interval(found["l2"], 2),
        interval(found["l2_roundtrip"], 2),
        interval(percent(found["contrastive_accuracy"]), 1),
        interval(found["par"], 2),
    ]


def percent(found: dict[str, float]) -> dict[str, float]:
    return {name: 100 * value for name, value in found.items()}


def interval(found: dict[str, float], digits: int) -> str:
    return f"{found['value']:.{digits}f} ({found['low']:.{digits}f}–{found['high']:.{digits}f})"


if __name__ == "__main__":
    main()
