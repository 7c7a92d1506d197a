"""Runs on stories of level `errand`, shared by families.py, curve.py and sampling.py: data, recipe, time, judging.

Every command has one thread, and at most two run at a time. What is finished is kept, so a second call resumes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lcm.training.engine import computes_in_bf16

ROOT = Path(__file__).parent.parent
KINDS = ("base", "two_tower", "one_tower", "quant_c", "quant_d", "token")
"""The five model families, and the token language model that is their control."""
RECIPE = (
    "--optimizer.lr=3e-3",
    "--optimizer.warmup_steps=100",
    "--model.dropout=0",
    "--data.slots=32",
    "--data.rows=32",
)
"""Changes to configs/*_toy.yaml. 32 slots hold every story with its gist."""
SNR = ("--model.diffusion.weight=snr", "--model.diffusion.min_snr=0.3", "--model.diffusion.max_snr=5")
CODEBOOKS = 16
"""Codebooks of Quant-LCM. After 8 of 256 units the decoder reads sentences of stories with AutoBLEU 98.5, after 16 with
99.8. Further ones would take as much of the training each, and decide nothing."""
OWN: dict[str, tuple[str, ...]] = {
    "two_tower": ("--model.width=240", "--model.context_layers=1", "--model.denoiser_layers=3", *SNR),
    "one_tower": SNR,
    "quant_c": (f"--model.codebooks={CODEBOOKS}",),
    "quant_d": (f"--model.codebooks={CODEBOOKS}", "--model.step_width=288"),
}
"""Further changes of one kind."""
SAMPLING: dict[str, tuple[str, ...]] = {
    "two_tower": ("--steps=10", "--sampler=dpm", "--guidance=1.5", "--initial-noise=1"),
    "one_tower": ("--steps=10", "--sampler=dpm", "--guidance=1.5", "--initial-noise=1"),
}
"""Sampling settings of each kind; the others have the paper's."""
MEASURED, WARM = 30, 10
"""Steps that are timed, and the first of them, which do not count."""


@dataclass(frozen=True)
class Run:
    """One model: its kind, seed and optimizer steps."""

    kind: str
    seed: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.seed}"


@dataclass(frozen=True)
class Workshop:
    """A folder of runs with the data and settings that they share.

    data: prepared folders, of stories and of their gists
    """

    folder: Path
    data: tuple[str, str]
    precision: str
    limit: int

    @property
    def quantizer(self) -> Path:
        return self.folder / "quantizer.safetensors"

    def train(self, run: Run, folder: Path, checkpoints: int = 1, log_every: int = 10) -> None:
        """Train to `run.steps`, from the newest checkpoint if there is one, with so many checkpoints on the way."""
        log = folder.with_suffix(".log")
        if run.kind == "token":
            words = ["--data", *self.data, "--run", str(folder), f"--steps={run.steps}", f"--seed={run.seed}"]
            words += [f"--precision={self.precision}", f"--checkpoints={checkpoints}"]
            command("python", "benchmarks/token_model.py", *words, log=log)
            return
        words = [f"--config=configs/{run.kind}_toy.yaml", f"--run.dir={folder}", f"--run.seed={run.seed}"]
        words += [*RECIPE, *OWN.get(run.kind, ()), *(f"--data.path={path}" for path in self.data)]
        words += [f"--trainer.max_steps={run.steps}", f"--trainer.precision={self.precision}"]
        words += [f"--trainer.validate_every={run.steps}", f"--trainer.checkpoint_every={-(-run.steps // checkpoints)}"]
        words += [f"--trainer.keep={checkpoints}", f"--trainer.log_every={log_every}"]
        if run.kind.startswith("quant"):
            words.append(f"--model.quantizer={self.quantizer}")
        command("lcm", "train", *words, log=log)

    def fit_quantizer(self) -> None:
        if not self.quantizer.is_file():
            words = ["--data", *self.data, f"--codebooks={CODEBOOKS}", "--units=256"]
            words += ["--vectors=40000", "--autobleu=200"]
            log = self.quantizer.with_suffix(".log")  # has the quality of each number of codebooks
            command("python", "data_prep/fit_quantizer.py", *words, f"--output={self.quantizer}", log=log)

    def step_seconds(self, kind: str) -> float:
        """Seconds of a training step of one thread, from a few of them."""
        folder = self.folder / "measured" / f"{kind}-{self.precision}"
        if not (folder / "model.safetensors").is_file():
            self.train(Run(kind, 1, MEASURED), folder, log_every=5)
        return seconds_of_steps(reports(folder), WARM)

    def judge(self, folder: Path, kind: str) -> dict[str, Any]:
        """Scores of the model in `folder`, as judge_tales.py writes them into a file there."""
        path = folder / f"judged-{self.limit}.json"
        if not path.is_file() or path.stat().st_mtime < (folder / "model.safetensors").stat().st_mtime:
            words = ["--model", str(folder), "--data", *self.data, f"--limit={self.limit}", f"--output={path}"]
            log = folder.with_suffix(".log")
            command("python", "benchmarks/judge_tales.py", *words, *SAMPLING.get(kind, ()), log=log)
        return read_json(path)


def open_workshop(args: argparse.Namespace) -> Workshop:
    """The workshop of a command's options, with its data, which takes a few minutes the first time."""
    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    data = tuple(str(Path(folder).resolve()) for folder in args.data or prepare(output / "data", args.documents))
    return Workshop(output, data, args.precision, args.limit)


def add_options(parser: argparse.ArgumentParser, limit: int) -> None:
    parser.add_argument("--output", type=Path, default=Path("families"), help="folder of data and runs (%(default)s)")
    parser.add_argument("--documents", type=int, default=12000, help="stories, of all splits (%(default)s)")
    parser.add_argument("--data", nargs=2, metavar="DIR", help="prepared stories and gists (by default made here)")
    parser.add_argument("--limit", type=int, default=limit, help="stories, and gists, to judge (%(default)s)")
    both = ("bf16", "fp32")
    parser.add_argument("--precision", choices=both, default=fast_precision(), help="of training (here: %(default)s)")


def fast_precision() -> str:
    """bf16 where the processor has arithmetic for it; emulated, it is many times slower than fp32."""
    return "bf16" if computes_in_bf16("auto", torch.device("cpu")) else "fp32"


def prepare(folder: Path, documents: int) -> tuple[str, str]:
    """Write stories with their gists, and prepare both; return the prepared folders."""
    tales, stories, gists = (
        folder / f"tales-{documents}",
        folder / f"stories-{documents}",
        folder / f"gists-{documents}",
    )
    if not (tales / "pairs.jsonl").is_file():
        words = ["--level=errand", f"--documents={documents}", "--seed=1", f"--output={tales}"]
        command("python", "data_prep/make_tales.py", *words)
    with ThreadPoolExecutor(2) as pool:
        for done in [
            pool.submit(command, "lcm", "prepare", f"--input={tales / 'documents.jsonl'}", f"--output={stories}"),
            pool.submit(command, "lcm", "prepare", "--pairs", f"--input={tales / 'pairs.jsonl'}", f"--output={gists}"),
        ]:
            done.result()
    return str(stories), str(gists)


def command(program: str, *words: str, log: Path | None = None) -> None:
    """Run a command of this environment with one thread; append its output to `log` if there is one.

    A command that fails ends the benchmark with one line.
    """
    path = Path(sys.executable).parent / program
    print("$", program, *words, file=sys.stderr, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if log is None:
        subprocess.run([path, *words], cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        ended = subprocess.run([path, *words], cwd=ROOT, env=environment, stdout=file, stderr=file)
    if ended.returncode:
        raise SystemExit(f"{program} {words[0]} failed with status {ended.returncode}: see the end of {log}")


def reports(folder: Path) -> list[tuple[int, float]]:
    """(step, time in seconds) of each report of a run: of the token model's own, or of Lightning's TensorBoard file."""
    if (folder / "token.json").is_file():
        return [(step, seconds) for step, seconds, _ in read_json(folder / "token.json")["log"]]
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.wall_time) for event in events.Scalars("train/loss")]


def seconds_of_steps(found: Sequence[tuple[int, float]], warm: int = 0) -> float:
    """Seconds of a step, the median between reports after `warm` steps: an interruption does not count."""
    steady = [(step, seconds) for step, seconds in found if step >= warm]
    return statistics.median((end - start) / (last - first) for (first, start), (last, end) in pairwise(steady))


def steps_in(seconds: float, step_seconds: float) -> int:
    """The steps that fit into so many seconds, at least 20 of them: the schedule has a warm-up and a decay."""
    return max(20, round(seconds / step_seconds))


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
