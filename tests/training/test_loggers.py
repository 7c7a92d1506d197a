"""metrics.csv across resumed runs, and the output on a terminal."""

import csv
import errno
import importlib.util
import io
import logging
import os
import warnings
from types import SimpleNamespace

import pytest
from synthetic import tiny_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lcm.errors import UserError
from lcm.training.loggers import EventFiles, MetricsFile, Terminal, build_loggers, check_loggers, quiet_lightning


def rows(path):
    with path.open() as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def test_metrics_are_readable_after_every_report(tmp_path):
    path = tmp_path / "run/metrics.csv"
    log = MetricsFile(path)
    log.log_metrics({"train/loss": 2.0}, step=1)
    assert rows(path) == [{"step": "1", "train/loss": "2.0"}]
    log.log_metrics({"val/loss": 3.0}, step=1)
    log.log_metrics({"train/loss": 1.5}, step=2)
    assert rows(path) == [
        {"step": "1", "train/loss": "2.0"},
        {"step": "1", "val/loss": "3.0"},
        {"step": "2", "train/loss": "1.5"},
    ]


def test_a_resumed_run_replaces_the_rows_that_it_trains_again(tmp_path):
    path = tmp_path / "metrics.csv"
    killed = MetricsFile(path)
    for step in (1, 2, 3, 4):
        killed.log_metrics({"train/loss": float(step)}, step=step)
    killed.log_metrics({"val/loss": 9.0}, step=4)
    resumed = MetricsFile(path, start=2)
    resumed.log_metrics({"train/loss": 30.0}, step=3)
    resumed.log_metrics({"val/loss": 8.0, "val/l2": 1.0}, step=4)
    assert rows(path) == [
        {"step": "1", "train/loss": "1.0"},
        {"step": "2", "train/loss": "2.0"},
        {"step": "3", "train/loss": "30.0"},
        {"step": "4", "val/loss": "8.0", "val/l2": "1.0"},
    ]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_logger_that_stands_there_twice_is_refused_before_it_writes_each_step_twice(tmp_path):
    config = tiny_config("data", tmp_path, "--trainer.loggers=csv", "--trainer.loggers=csv")
    with pytest.raises(UserError, match=r"trainer.loggers=csv,csv: expected each of them once"):
        check_loggers(config)


@pytest.mark.parametrize("tail", ["5,0.", "\0\0\0", "5,1.0,7,8\n", "x,1.0\n"])
def test_half_a_row_that_a_killed_process_left_is_dropped(tail, tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(f"step,train/loss\n1,1.0\n2,2.0\n{tail}")
    MetricsFile(path, start=2).log_metrics({"train/loss": 3.0}, step=3)
    assert [row["step"] for row in rows(path)] == ["1", "2", "3"]


def test_rows_of_steps_between_two_reports_go_too_when_a_run_resumes(tmp_path):
    """Another trainer.validate_every would leave a validation of the steps that were thrown away."""
    path = tmp_path / "metrics.csv"
    path.write_text("step,val/loss\n10,1.0\n15,2.0\n")
    MetricsFile(path, start=10).log_metrics({"val/loss": 3.0}, step=20)
    assert [row["step"] for row in rows(path)] == ["10", "20"]


def log_twice(folder, *names):
    """A run that is killed after step 8, and resumes from step 5."""
    for start, steps in ((0, range(1, 9)), (5, range(6, 11))):
        config = tiny_config(folder, folder, *(f"trainer.loggers={name}" for name in names))
        (logger,) = build_loggers(config, folder, start)[1:]
        for step in steps:
            logger.log_metrics({"train/loss": float(step)}, step)
            if step % 4 == 0:
                logger.log_metrics({"val/loss": float(step)}, step)
        yield logger


def test_tensorboard_holds_every_step_once_after_resuming(tmp_path):
    for logger in log_twice(tmp_path, "tensorboard"):
        logger.experiment.close()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [each.step for each in found.Scalars("train/loss")] == list(range(1, 11))
    assert [each.step for each in found.Scalars("val/loss")] == [4, 8]


def test_a_full_disk_is_told_by_tensorboard_too_with_its_folder(tmp_path, monkeypatch):
    """Its thread meets the disk; Lightning then says that a number cannot be logged."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    logger = EventFiles(tmp_path, purge_step=1)
    expected = rf"^{tmp_path}: No space left on device; put it right"
    with pytest.raises(UserError, match=expected):  # noqa: PT012  by one of the first reports
        for step in range(100):
            logger.log_metrics({"train/loss": 1.0}, step)


@pytest.mark.needs("wandb")
def test_wandb_has_one_run_with_every_step_once(tmp_path, monkeypatch):
    """The steps that are trained again are in it already, bit for bit."""
    sent, inits = [], []
    run = SimpleNamespace(log=lambda metrics: sent.append(metrics))
    monkeypatch.setattr("wandb.run", None)
    monkeypatch.setattr("wandb.init", lambda **given: inits.append(given) or run)
    list(log_twice(tmp_path, "wandb"))
    assert len(inits) == 2
    assert inits[0]["id"] == inits[1]["id"]
    assert inits[1]["resume"] == "allow"
    assert [m["trainer/global_step"] for m in sent if "train/loss" in m] == list(range(1, 11))
    assert [m["trainer/global_step"] for m in sent if "val/loss" in m] == [4, 8]


def test_without_a_terminal_lines_are_few(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("lcm.training.loggers.time.monotonic", lambda: clock[0])
    terminal = Terminal(max_steps=1000)
    for step in range(10, 200, 10):
        clock[0] += 3
        terminal.log_metrics({"train/loss": 5.0, "train/concepts_per_second": 12_345.6}, step=step)
    terminal.log_metrics({"val/loss": 4.0}, step=190)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "step 10 of 1,000  loss 5  concepts/s 12,346"
    assert lines[1] == "step 50 of 1,000  loss 5  concepts/s 12,346  0:04:45 left"
    assert lines[-1] == "step 190 of 1,000  loss 5  validation 4  concepts/s 12,346  0:04:03 left"
    assert len(lines) == 6


def test_the_time_left_forgets_a_pause(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("lcm.training.loggers.time.monotonic", lambda: clock[0])
    terminal = Terminal(max_steps=1000)
    for step in range(0, 500, 10):
        clock[0] += 7200 if step == 50 else 20
        terminal.log_metrics({"train/loss": 5.0}, step=step)
    assert capsys.readouterr().err.splitlines()[-1] == "step 490 of 1,000  loss 5  0:17:00 left"


def test_the_time_left_of_reports_that_are_far_apart_is_by_the_last_two(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("lcm.training.loggers.time.monotonic", lambda: clock[0])
    terminal = Terminal(max_steps=100)
    for step, seconds in ((10, 3600), (20, 3600), (30, 1800)):
        clock[0] += seconds
        terminal.log_metrics({"train/loss": 5.0}, step=step)
    assert capsys.readouterr().err.splitlines()[-1] == "step 30 of 100  loss 5  3:30:00 left"


def test_a_terminal_shows_a_progress_bar(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen = Screen()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", screen)
    terminal = Terminal(max_steps=20)
    for step in (10, 20):
        terminal.log_metrics({"train/loss": 2.5, "train/mfu": 0.42}, step=step)
    terminal.finalize("success")
    assert "20/20" in screen.getvalue()
    assert "loss 2.5  MFU 42%" in screen.getvalue()


def test_a_logger_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(UserError, match=r"trainer.loggers=wandb is not installed; pip install wandb"):
        build_loggers(tiny_config(tmp_path, tmp_path, "trainer.loggers=wandb"), tmp_path)


def test_only_lightnings_chatter_is_dropped(caplog):
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with caplog.at_level(logging.INFO, logger.name), quiet_lightning():
        logger.info("GPU available: False, used: False")
        logger.info("The data has changed.")
    logger.warning("GPU available: spoken after the run")
    assert [record.getMessage() for record in caplog.records] == [
        "The data has changed.",
        "GPU available: spoken after the run",
    ]


def test_lightning_s_hint_about_srun_is_suppressed():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet_lightning():
            warnings.warn("The `srun` command is available on your system but is not used. HINT: …", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
    assert [str(one.message) for one in heard] == ["something else"]
