"""lcm submit, sweeps, restarts and the written chain on a real Slurm."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import lab
import pytest
from family_runs import config_of
from synthetic import write_data

from lcm.config import save_config
from lcm.training.checkpoint import latest, open_checkpoint

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def checkout(tmp_path):
    """A checkout of its own, whose code may be broken."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "slurm", root / "slurm")
    shutil.copytree(ROOT / "lcm", root / "lcm", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    environment = f'export PATH="{BIN}:$PATH" PYTHONPATH="$LCM_ROOT" OMP_NUM_THREADS=1\n'
    (root / "slurm/env.sh").write_text(environment)
    return root


def config_in(data, folder, *settings):
    config = config_of("base", data, folder / "run", None, "data.rows=4", "trainer.validation_rows=8", *settings)
    save_config(config, folder / "c.yaml")
    return folder / "c.yaml"


def lcm(cluster, root, *words):
    """The output of a command, run with the code of `root`."""
    return lab.slurm(cluster, str(BIN / "lcm"), *map(str, words), PYTHONPATH=str(root))


def shown(cluster, job):
    words = lab.slurm(cluster, "scontrol", "show", "job", job).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def until(cluster, job, state, log, seconds=240):
    def done():
        found = shown(cluster, job)["JobState"]
        assert found == state or found in ("PENDING", "RUNNING", "COMPLETING"), log.read_text()
        return found == state

    lab.until(done, seconds)


def test_a_job_runs_what_was_submitted_after_the_queue_and_after_restarts(cluster, data, checkout, tmp_path):
    config = config_in(data, tmp_path, "trainer.max_steps=600", "trainer.validate_every=1000")
    log = tmp_path / "log"
    options = ("--hold", f"--output={log}", "--signal=USR1@60")
    printed = lcm(cluster, checkout, "submit", *options, checkout / "slurm/train.sbatch", config, "--data.rows=2")
    job = printed.split()[-1]
    (checkout / "lcm/cli.py").write_text("raise SystemExit('the checkout of later')\n")
    (checkout / "slurm/train.sbatch").unlink()
    config.unlink()
    lab.slurm(cluster, "scontrol", "release", job)
    metrics = tmp_path / "run/metrics.csv"
    lab.until(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 5, 240)
    lab.slurm(cluster, "scancel", "--signal=USR1", job)
    lab.until(lambda: shown(cluster, job)["Restarts"] == "1", 240)
    lab.until(lambda: shown(cluster, job)["JobState"] == "PENDING", 60)
    (row,) = json.loads(lcm(cluster, ROOT, "runs", tmp_path / "run", "--json"))
    assert (row["state"], row["job"], row["attempts"]) == ("queued", job, 1)
    until(cluster, job, "COMPLETED", log)
    checkpoint = open_checkpoint(latest(tmp_path / "run"))
    assert (checkpoint["global_step"], checkpoint["config"]["data"]["rows"]) == (600, 2)
    (row,) = json.loads(lcm(cluster, ROOT, "runs", tmp_path / "run", "--json"))
    assert (row["state"], row["step"], row["attempts"]) == ("finished", 600, 2)
    assert row["host"].startswith("node")
    assert row["last_line"] in log.read_text()


def test_plain_sbatch_refuses_what_changed_in_the_queue(cluster, site, data, tmp_path):
    config, log = config_in(data, tmp_path), tmp_path / "log"
    command = ["sbatch", "--parsable", "--hold", f"--output={log}", str(site / "slurm/train.sbatch"), str(config)]
    job = lab.slurm(cluster, *command, LCM_ROOT=str(site)).strip()
    later = config.stat().st_mtime + 2
    os.utime(config, (later, later))
    lab.slurm(cluster, "scontrol", "release", job)
    until(cluster, job, "FAILED", log)
    assert f"lcm submit: {config}: changed at " in log.read_text()
    assert not (tmp_path / "run").exists()


def test_a_sweep_is_an_array_with_a_folder_each_and_one_table(cluster, site, data, tmp_path):
    config = config_in(data, tmp_path, "trainer.max_steps=4", "trainer.validate_every=2")
    text = f"config: {config}\nrun.dir: {tmp_path}/sweep\noptimizer.lr: [1e-3, 2e-3]\n"
    (tmp_path / "grid.yaml").write_text(text)
    logs = f"--output={tmp_path}/%a.log"
    printed = lcm(cluster, ROOT, "submit", logs, site / "slurm/sweep.sbatch", tmp_path / "grid.yaml")
    assert printed.startswith("Submitted batch job ")

    def rows():
        found = json.loads(lcm(cluster, ROOT, "runs", tmp_path / "sweep", "--json"))
        assert not {"failed", "lost"} & {row["state"] for row in found}, [row["last_line"] for row in found]
        return found

    lab.until(lambda: [row["state"] for row in rows()] == ["finished"] * 2, 300)
    assert [(row["run"], row["step"]) for row in rows()] == [("lr=1e-3", 4), ("lr=2e-3", 4)]
    assert len({row["validation_loss"] for row in rows()}) == 2


def kill_a_task(run):
    """Kill one training process of this run, as the kernel does that needs memory."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            if b"/lcm\0train\0--config\0" + os.fsencode(run / "submitted") in line and b"--check" not in line:
                os.kill(int(entry.name), signal.SIGKILL)
                return


def test_a_killed_task_queues_the_job_again_until_no_restart_is_left(cluster, site, data, tmp_path):
    settings = ("trainer.max_steps=1000000", "trainer.validate_every=1000000", "trainer.restarts=1")
    config, log, metrics = config_in(data, tmp_path, *settings), tmp_path / "log", tmp_path / "run/metrics.csv"
    layout = ("--nodes=2", "--ntasks-per-node=1")
    command = ["sbatch", "--parsable", f"--output={log}", *layout, str(site / "slurm/train.sbatch"), str(config)]
    job = lab.slurm(cluster, *command, LCM_ROOT=str(site)).strip()
    for restart in ("0", "1"):
        lab.until(lambda n=restart: shown(cluster, job)["Restarts"] == n, 240)
        metrics.unlink(missing_ok=True)
        lab.until(metrics.is_file, 240)
        kill_a_task(tmp_path / "run")
    until(cluster, job, "FAILED", log)
    said = log.read_text()
    assert said.count("queued again, restart 1 of 1") == 1
    assert "no restart of trainer.restarts=1 is left; FAILED" in said


def test_slurm_takes_each_job_of_the_written_chain(cluster, tmp_path):
    environment = {**os.environ, "SLURM_CONF": str(cluster / "slurm.conf"), "TEXTS": str(ROOT / "README.md")}
    command = [str(ROOT / "slurm/pipeline.sh"), "--test-only"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(" to start at ") == 3
    assert "error" not in done.stderr
