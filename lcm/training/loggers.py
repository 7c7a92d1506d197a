"""Metrics of a run while it trains: metrics.csv for programs, a progress bar or an occasional line for people."""

import csv
import importlib.util
import io
import json
import logging
import math
import secrets
import sys
import time
import warnings
from argparse import Namespace
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lcm.config import Config
from lcm.errors import UserError
from lcm.files import atomic_path, disk_errors


class PlainLogger(Logger):
    """A logger without versions and hyper-parameters, which are all in config.yaml."""

    name = version = ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        pass


class MetricsFile(PlainLogger):
    """CSV with a row per report and a column per metric. A run that resumes first drops the rows of later steps.

    Lightning's CSVLogger would delete the old file.

    start: the step from which the run resumes, or 0; None where only the first report tells it
    """

    def __init__(self, path: Path, start: int | None = None) -> None:
        super().__init__()
        self.path, self.start = path, start
        self.columns: list[str] = []

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None
        row = {"step": step, **metrics}
        if not row.keys() <= set(self.columns):
            start = step - 1 if self.start is None else self.start
            self._rewrite(list(row), last=math.inf if self.columns else float(start))
        with disk_errors(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _rewrite(self, columns: list[str], last: float) -> None:
        """Rewrite the file with the rows of steps up to `last`, and with these columns added."""
        rows: list[dict[str, Any]] = []
        if self.path.is_file():
            text = self.path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
            whole = text[: text.rfind("\n") + 1]  # a process that was killed may have left half a row
            reader = csv.DictReader(io.StringIO(whole, newline=""))
            read = [row for row in reader if (row.get("step") or "").isdecimal() and None not in row]
            rows = [row for row in read if int(row["step"]) <= last]
            self.columns = list(reader.fieldnames or [])
        self.columns += [name for name in columns if name not in self.columns]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)


class EventFiles(TensorBoardLogger):
    """TensorBoard's logger; an error of the disk names its folder."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        super().__init__(folder, name="", version="", purge_step=purge_step)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with disk_errors(Path(self.log_dir)):
            try:
                super().log_metrics(metrics, step)
            except ValueError as error:  # Lightning's, which says that a number cannot be logged
                raise error.__cause__ or error from None

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with disk_errors(Path(self.log_dir)):
            super().finalize(status)


class OneWandbRun(WandbLogger):
    """W&B's logger, whose run a resumed run continues. It has got the steps that are trained again already.

    FILE in the run's folder holds the id of the run and the newest report that it has got.
    """

    FILE = "wandb.json"

    def __init__(self, folder: Path) -> None:
        self._state = folder / self.FILE
        self._sent: dict[str, Any] = {"id": secrets.token_hex(4), "step": -1, "names": []}
        with suppress(OSError, ValueError):
            self._sent |= json.loads(self._state.read_bytes())
        self._before = dict(self._sent)
        super().__init__(name=folder.name, project="lcm", save_dir=folder, id=self._sent["id"])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None
        before = self._before
        if step < before["step"] or (step == before["step"] and set(metrics) <= set(before["names"])):
            return
        super().log_metrics(metrics, step)
        names = self._sent["names"] if step == self._sent["step"] else []
        self._sent |= {"step": step, "names": [*names, *metrics]}
        part = self._state.with_suffix(".tmp")
        with disk_errors(self._state):
            part.write_text(json.dumps(self._sent))
            part.replace(self._state)


class Terminal(PlainLogger):
    """A progress bar on a terminal; elsewhere a line every ten seconds and at each validation. On stderr.

    The time left is by the rate of the last minutes, so that a pause is soon forgotten.
    """

    SECONDS = 10.0
    MINUTES = 10.0

    def __init__(self, max_steps: int) -> None:
        super().__init__()
        self.max_steps = max_steps
        self.metrics: dict[str, float] = {}
        self.recent: deque[tuple[int, float]] = deque()
        """Steps and times of the reports of the last minutes, and at least of two."""
        self.printed = -math.inf
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True)) if sys.stderr.isatty() else None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None
        now = time.monotonic()
        self.metrics.update(metrics)
        self.recent.append((step, now))
        while len(self.recent) > 2 and self.recent[0][1] < now - 60 * self.MINUTES:
            self.recent.popleft()
        if self.bar is not None:
            if not self.bar.tasks:
                self.bar.add_task("", total=self.max_steps, completed=step)
                self.bar.start()
            self.bar.update(self.bar.task_ids[0], completed=step, description=self._summary())
        elif now - self.printed >= self.SECONDS or any(name.startswith("val/") for name in metrics):
            self.printed = now
            print(f"step {step:,} of {self.max_steps:,}  {self._summary()}{self._left(step, now)}", file=sys.stderr)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.bar is not None:
            self.bar.stop()

    def _summary(self) -> str:
        shown = [
            ("loss", "train/loss", "{:.4g}"),
            ("validation", "val/loss", "{:.4g}"),
            ("ROUGE-L", "val/summaries.rougeL", "{:.1%}"),
            ("consistent", "val/truth.consistent", "{:.1%}"),
            ("gists", "val/truth.gist", "{:.1%}"),
            ("concepts/s", "train/concepts_per_second", "{:,.0f}"),
            ("MFU", "train/mfu", "{:.0%}"),
        ]
        return "  ".join(f"{label} {how.format(self.metrics[key])}" for label, key, how in shown if key in self.metrics)

    def _left(self, step: int, now: float) -> str:
        first, then = self.recent[0]
        seconds = int((now - then) / (step - first) * (self.max_steps - step)) if step > first else 0
        return f"  {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left" if seconds else ""


def check_loggers(config: Config) -> None:
    """Raises UserError for a logger that is not installed, or stands there twice: each would write every step."""
    loggers = config.trainer.loggers
    if len(set(loggers)) < len(loggers):
        raise UserError(f"trainer.loggers={','.join(loggers)}: expected each of them once")
    if "wandb" in config.trainer.loggers and importlib.util.find_spec("wandb") is None:
        raise UserError("trainer.loggers=wandb is not installed; pip install wandb, or leave it out")


def build_loggers(config: Config, folder: Path, start: int = 0) -> list[Logger]:
    """A logger for the terminal, and those that `trainer.loggers` names. start: the step from which the run resumes

    Each has every step once: TensorBoard drops what it was told of later ones.
    """
    check_loggers(config)
    loggers: list[Logger] = [Terminal(config.trainer.max_steps)]
    for name in config.trainer.loggers:
        match name:
            case "csv":
                loggers.append(MetricsFile(folder / "metrics.csv", start))
            case "tensorboard":
                loggers.append(EventFiles(folder, purge_step=start + 1))
            case "wandb":
                loggers.append(OneWandbRun(folder))
    return loggers


def peak_flops(device: torch.device, bf16: bool) -> float | None:
    """FLOP/s of a device by its data sheet; None for a CPU, and for a device that Lightning does not know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_available_flops(device, torch.bfloat16 if bf16 else torch.float32)


CHATTER = (
    "GPU available:",
    "TPU available:",
    "\N{ELECTRIC LIGHT BULB} Tip:",
    "`Trainer(limit_val_batches=",
    "`Trainer.fit` stopped:",
    "Restoring states from",
    "Restored all states from",
)
"""Beginnings of Lightning's greetings, advertisements, and repetitions of our own messages."""


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's chatter, but no other message of it."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(CHATTER)

    logger.addFilter(wanted)
    try:
        with warnings.catch_warnings():
            # Lightning 2.6 on newer torch (seen on 2.13) warns of its own use of a deprecated class.
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec", category=FutureWarning)
            warnings.filterwarnings("ignore", message="The `srun` command is available")  # on every login node
            yield
    finally:
        logger.removeFilter(wanted)


@rank_zero_only
def say(message: str, file: TextIO | None = None) -> None:
    """Print one line, on rank 0 only; to stderr by default."""
    print(message, file=file or sys.stderr)
