"""`lcm runs DIR`: the runs in a folder, from their own files and from Slurm's queue.

    run      state    step         rate     left     checkpoint         starts  host   validation  last line
    lr=1e-4  running  1,200/5,000  9,310/s  0:12:40  last.ckpt 0:01:12  2       node3  0.412       step 1,200 of …

state   queued, running, finished · stopped (by a person or by Slurm) · failed (its log says why) · lost (its machine is
        gone)
rate    concepts per second; left: at this rate, with full rows, so at most
"""

import argparse
import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from lcm.config import Config, load_config
from lcm.errors import UserError
from lcm.jobs.attempts import Attempts
from lcm.options import Option, add_options, check_fields, options_from

LIVE = {"RUNNING": "running", "COMPLETING": "running"} | dict.fromkeys(("PENDING", "REQUEUED", "SUSPENDED"), "queued")

SILENCE = 30.0
"""Seconds after which the process that owns a run counts as dead."""


@dataclass(frozen=True)
class Run:
    """A row of the table. None: not known. seconds_left: only while the run is running; age in seconds."""

    run: str
    state: str
    step: int | None
    max_steps: int | None
    concepts_per_second: float | None
    seconds_left: int | None
    checkpoint: str | None
    checkpoint_age: int | None
    attempts: int
    job: str | None
    host: str | None
    validation_loss: float | None
    last_line: str | None
    start: str | None
    """Model that the run fine-tunes."""


def find_runs(folder: Path, unreadable: list[OSError]) -> Iterator[Path]:
    """Folders of runs in `folder`, itself included, in the order of their names, links last; none comes twice."""
    seen = set()
    for place, names, files in os.walk(folder, onerror=unreadable.append, followlinks=True):
        here = Path(place)
        if (known := (here.stat().st_dev, here.stat().st_ino)) in seen:
            names.clear()
            continue
        seen.add(known)
        if "metrics.csv" in files or "checkpoints" in names or list(here.glob("submitted/[!.]*/config.yaml")):
            names.clear()
            yield here
        names[:] = sorted(set(names) - {"submitted"}, key=lambda name: ((here / name).is_symlink(), name))


def describe(run: Path, name: str, queue: dict[str, str] | None) -> Run:
    """A run as its files show it. queue: Slurm's states by job; None: there is no Slurm here

    A file that is damaged, being written, or not for us to read counts as absent, and hides no other run.
    """
    submitted, _ = _newest(run, "submitted/[!.]*/config.yaml")
    attempts = Attempts.read(submitted.parent) if submitted else Attempts()
    config = _config(submitted or run / "config.yaml")
    rows = _metrics(run / "metrics.csv")
    step = int(rows[-1]["step"]) if rows else None
    max_steps = config.trainer.max_steps if config else None
    speeds = [speed for row in rows if math.isfinite(speed := _number(row.get("train/concepts_per_second")))]
    speed = speeds[-1] if speeds else 0.0
    losses = [_number(row.get("val/loss")) for row in rows]
    newest, written = _newest(run, "checkpoints/*.ckpt")
    patience = config.trainer.early_stop if config else 0
    waited = [_number(row.get("val/scores_without_best")) for row in rows]
    early = patience > 0 and any(number >= patience for number in waited[-1:])
    done = step is not None and (step == max_steps or early) and (run / "model.safetensors").is_file()
    owner = _owner(run)
    state = _state(done, attempts, queue, owner)
    left = None
    if config and step is not None and speed > 0 and state == "running":
        left = round((config.trainer.max_steps - step) * _concepts_per_step(config, attempts) / speed)
    return Run(
        run=name,
        state=state,
        step=step,
        max_steps=max_steps,
        concepts_per_second=speed if speed > 0 else None,
        seconds_left=left,
        checkpoint=newest.name if newest else None,
        checkpoint_age=round(time.time() - written) if newest else None,
        attempts=attempts.starts,
        job=attempts.job or str(owner.get("job") or "") or None,
        host=attempts.hosts or str(owner.get("host") or "") or None,
        validation_loss=min((loss for loss in losses if math.isfinite(loss)), default=None),
        last_line=attempts.last_line(),
        start=(config.trainer.start or None) if config else None,
    )


def _owner(run: Path) -> dict[str, Any]:
    """The record of the process that trains there now; empty where none does. It touches its file all the time."""
    path = run / "owner.json"
    try:
        record, age = json.loads(path.read_text(encoding="utf-8")), time.time() - path.stat().st_mtime
    except (OSError, ValueError):
        return {}
    lives = isinstance(record, dict) and not record.get("ended", True) and age < SILENCE
    return record if lives else {}


def _state(done: bool, attempts: Attempts, queue: dict[str, str] | None, owner: dict[str, Any]) -> str:
    if queue and (live := LIVE.get(queue.get(attempts.job or "", ""))):
        return live
    if owner:
        return "running"
    if done:
        return "finished"
    if attempts.starts and not attempts.end:
        return "running" if queue is None else "lost"
    return {"failed": "failed", "lost": "lost"}.get(attempts.end, "stopped")


def _concepts_per_step(config: Config, attempts: Attempts) -> int:
    devices = config.trainer.devices
    ranks = attempts.ranks or config.trainer.nodes * (devices if isinstance(devices, int) else 1)
    return config.data.rows * config.data.slots * config.trainer.accumulate * ranks


def _config(path: Path) -> Config | None:
    try:
        return load_config(path)
    except (UserError, OSError):  # of another version, or being written
        return None


def _newest(run: Path, pattern: str) -> tuple[Path | None, float]:
    """The newest file, and the time when it was written. One that is replaced or removed meanwhile is passed over."""
    found: list[tuple[float, Path]] = []
    for path in run.glob(pattern):
        with suppress(OSError):
            found.append((path.stat().st_mtime, path))
    written, newest = max(found, default=(0.0, None))
    return newest, written


def _metrics(path: Path) -> list[dict[str, str]]:
    """Rows of steps, without a last one that is being written."""
    try:
        text = path.read_bytes().decode(errors="replace").replace("\0", "")
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    except (OSError, csv.Error):
        return []
    return [row for row in rows if (row.get("step") or "").isdecimal() and None not in row.values()]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def slurm_queue() -> dict[str, str] | None:
    """States of all jobs in the queue, by number; None where no Slurm answers."""
    if shutil.which("squeue") is None:
        return None
    done = subprocess.run(["squeue", "-h", "-o", "%A %T"], capture_output=True, text=True, check=False)
    return None if done.returncode else dict(line.split() for line in done.stdout.splitlines())


def table(runs: list[Run]) -> Iterator[str]:
    """Lines of text, in columns."""
    head = ("run", "state", "step", "rate", "left", "checkpoint", "starts", "host", "validation", "last line")
    rows = [head, *(tuple(_cells(run)) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cells(run: Run) -> Iterator[str]:
    yield run.run
    yield run.state
    steps = "" if run.max_steps is None else f"/{run.max_steps:,}"
    yield "-" if run.step is None else f"{run.step:,}{steps}"
    yield "-" if run.concepts_per_second is None else f"{run.concepts_per_second:,.0f}/s"
    yield _duration(run.seconds_left)
    yield "-" if run.checkpoint is None else f"{run.checkpoint} {_duration(run.checkpoint_age)}"
    yield str(run.attempts)
    yield run.host or "-"
    yield "-" if run.validation_loss is None else f"{run.validation_loss:.4g}"
    yield " · ".join(filter(None, (run.start and f"fine-tunes {run.start}", run.last_line))) or "-"


def _duration(seconds: int | None) -> str:
    return "-" if seconds is None else f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


@dataclass(frozen=True, kw_only=True)
class RunsOptions:
    folder: Annotated[str, Option("DIR", place=True, positional=True)]
    """A run's folder, or one above several."""
    json: bool = False
    """A list of objects, for programs."""

    def __post_init__(self) -> None:
        check_fields(self)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, RunsOptions)


def run(args: argparse.Namespace) -> int:
    """`lcm runs`: prints a table, or JSON."""
    options = options_from(args, RunsOptions)
    folder = Path(options.folder)
    if not folder.is_dir():
        what = "is a file; expected a folder of runs" if folder.exists() else "no such folder"
        raise UserError(f"DIR={folder}: {what}")
    queue = slurm_queue()
    unreadable: list[OSError] = []
    names = {each: str(each.relative_to(folder)) for each in find_runs(folder, unreadable)}
    runs = [describe(each, folder.absolute().name if name == "." else name, queue) for each, name in names.items()]
    if not runs and not options.json:
        raise UserError(f"DIR={folder}: no runs in it; expected folders of lcm train")
    print(json.dumps([asdict(each) for each in runs], indent=1) if options.json else "\n".join(table(runs)))
    for error in unreadable:
        print(f"lcm runs: {error.filename}: {error.strerror}; passed over", file=sys.stderr)
    return 1 if unreadable else 0
