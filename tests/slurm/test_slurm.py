"""slurm/train.sbatch on a real Slurm of two virtual nodes: what is submitted ends as if nothing had happened."""

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import lab
import pytest
from family_runs import config_of
from ranks import Run, train_together
from same_run import assert_same_checkpoint, assert_same_run, losses
from synthetic import write_data

from lcm.config import save_config
from lcm.training.checkpoint import latest, open_checkpoint

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


class Job:
    """A submitted job."""

    def __init__(self, cluster, site, config, path, *options):
        save_config(config, path)
        self.cluster, self.log, self.run = cluster, path.with_suffix(".log"), Path(config.run.dir)
        script = [str(site / "slurm/train.sbatch"), str(path)]
        given = ["--parsable", f"--chdir={site}", f"--output={self.log}", *options]
        self.number = lab.slurm(cluster, "sbatch", *given, *script, LCM_ROOT=str(site)).strip()

    def shown(self):
        """Fields of `scontrol show job`, by name."""
        words = lab.slurm(self.cluster, "scontrol", "show", "job", self.number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def signal(self, name):
        """To every task, as Slurm does before the time limit."""
        lab.slurm(self.cluster, "scancel", f"--signal={name}", self.number)

    def steps(self):
        path = self.run / "metrics.csv"
        return len(path.read_text().splitlines()) - 1 if path.is_file() else 0

    def until(self, state, seconds=600):
        def done():
            found = self.shown()["JobState"]
            failed = found in ("FAILED", "NODE_FAIL", "TIMEOUT", "CANCELLED") and found != state
            assert not failed, f"{found}\n{self.log.read_text() if self.log.is_file() else 'no log'}"
            return found == state

        lab.until(done, seconds)
        return self


LAYOUTS = [(2, 1), (2, 2)]


def run_of(data, folder, processes, *more, dropout=0.2):
    changes = [f"data.rows={8 // processes}", "trainer.validation_rows=8", "trainer.validate_every=20", *more]
    return config_of("two_tower", data, folder, None, *changes, dropout=dropout)


@pytest.mark.parametrize(("nodes", "tasks"), LAYOUTS)
def test_nodes_times_tasks_train_what_one_process_does(nodes, tasks, cluster, site, data, tmp_path, monkeypatch):
    settings = ["trainer.max_steps=20", "trainer.devices=1"]
    alone = run_of(data, tmp_path / "alone", 1, *settings, dropout=0.0)
    Run(alone).here()
    together = run_of(data, tmp_path / "run", nodes * tasks, *settings, dropout=0.0)
    layout = [f"--nodes={nodes}", f"--ntasks-per-node={tasks}"]
    if tasks == 1:  # a job without the variables of the shell that submits it, and so without LCM_ROOT
        layout.append("--export=NONE")
        monkeypatch.chdir(site)
    job = Job(cluster, site, together, tmp_path / "run.yaml", *layout).until("COMPLETED")
    for one, other in zip(losses(tmp_path / "alone"), losses(tmp_path / "run"), strict=True):
        for name in ("train/loss", "val/loss"):
            assert float(one[name] or 0) == pytest.approx(float(other[name] or 0), rel=1e-5)
    log = job.log.read_text()
    assert f"{nodes * tasks} processes, ddp: " in log
    assert log.count("step 20 of 20") == 1, "said once, by all together"


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """The folder of the long run by two processes, without Slurm's help."""
    folder = tmp_path_factory.mktemp("straight")
    alone = run_of(data, folder / "run", 2, *LONG, "trainer.devices=2")
    train_together({"straight": Run(alone)}, folder / "logs", 2)
    return folder / "run"


LONG = ["trainer.max_steps=400", "trainer.checkpoint_every=100", "data.workers=2"]
LAYOUT = ("--nodes=2", "--ntasks-per-node=1")


def test_a_job_is_queued_again_as_often_as_it_is_asked_and_ends_bit_for_bit_the_same(
    cluster, site, data, straight, tmp_path
):
    """The first time while its tasks import what they need."""
    job = Job(cluster, site, run_of(data, tmp_path / "run", 2, *LONG), tmp_path / "run.yaml", *LAYOUT)
    lab.until(lambda: listening(tmp_path / "run") == 2, 240)
    assert job.steps() == 0
    for number, steps in enumerate((0, 150), 1):
        lab.until(lambda n=steps: not n or job.steps() > n, 240)
        job.signal("USR1")
        lab.until(lambda n=number: job.shown()["Restarts"] == str(n), 240)
    job.until("COMPLETED")
    assert job.log.read_text().count(f"job {job.number} is queued again") == 2
    assert_same_run(straight, job.run)


def listening(run):
    """Number of tasks that train in this folder and handle SIGUSR1, by the mask of caught signals in /proc."""
    found = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            if b"/lcm\0train\0--config\0" + os.fsencode(run / "submitted") in line and b"--check" not in line:
                status = (entry / "status").read_text()
                found += int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (signal.SIGUSR1 - 1) & 1
    return found


def test_the_time_limit_queues_the_job_again_and_it_goes_on_bit_for_bit(cluster, site, data, tmp_path):
    """Slurm may send its signal a minute early: half a minute after the start, when there are tasks to get it.

    The run has no end, so that the signal comes before it on any machine; the one without a break is as long as it was.
    """
    endless = ["trainer.max_steps=1000000", "trainer.validate_every=1000000"]
    config = run_of(data, tmp_path / "run", 2, *endless, "trainer.checkpoint_every=1000000")
    job = Job(cluster, site, config, tmp_path / "run.yaml", *LAYOUT, "--time=2", "--signal=USR1@25")
    lab.until(lambda: job.shown()["Restarts"] == "1", 240)
    steps = job.steps()
    lab.until(lambda: job.steps() > steps + 10, 240)
    lab.slurm(cluster, "scancel", job.number)
    job.until("CANCELLED")
    lab.until(lambda: "asked to stop by SIGTERM" in job.log.read_text(), 120)
    last = latest(job.run)
    stopped = open_checkpoint(last)["global_step"]
    settings = [*endless, f"trainer.checkpoint_every={stopped}", "trainer.devices=2"]
    straight = Run(run_of(data, tmp_path / "straight", 2, *settings), breaks=stopped)
    train_together({"straight": straight}, tmp_path / "logs", 2)
    assert_same_checkpoint(latest(tmp_path / "straight"), last)


def test_scancel_leaves_a_checkpoint_from_which_the_next_job_goes_on_and_a_node_that_dies_costs_the_steps_since_one(
    cluster, site, data, straight, tmp_path
):
    config = run_of(data, tmp_path / "run", 2, *LONG)
    job = Job(cluster, site, config, tmp_path / "run.yaml", *LAYOUT)
    lab.until(lambda: job.steps() > 30, 240)
    lab.slurm(cluster, "scancel", job.number)
    job.until("CANCELLED")
    lab.until(lambda: "asked to stop by SIGTERM" in job.log.read_text(), 120)
    assert 30 < open_checkpoint(latest(job.run))["global_step"] < 400
    job = Job(cluster, site, config, tmp_path / "again.yaml", *LAYOUT)
    lab.until(lambda: job.steps() > 120, 240)
    lab.kill_node(cluster, 1)
    lab.until(lambda: job.shown()["Restarts"] == "1", 240)  # by the batch script: nobody has told Slurm
    lab.revive_node(cluster, 1)
    job.until("COMPLETED")
    assert "queued again, restart 1 of 3" in job.log.read_text()
    assert_same_run(straight, job.run)


@pytest.mark.parametrize(
    ("options", "settings", "told"),
    [
        (("--nodes=1", "--ntasks-per-node=1"), ["--data.rwos=3"], "data.rwos"),
        (("--nodes=1", "--ntasks-per-node=1"), ["--data.path=/nowhere"], "/nowhere"),
        (
            ("--nodes=1", "--gpus-per-node=2"),
            [],
            "2 GPUs and 1 tasks a node, expected as many; submit with --ntasks-per-n",
        ),
    ],
)
def test_a_mistake_ends_the_job_before_a_task_starts(options, settings, told, cluster, site, data, tmp_path):
    config = run_of(data, tmp_path / "run", 1)
    save_config(config, tmp_path / "run.yaml")
    log = tmp_path / "run.log"
    command = ["sbatch", "--parsable", f"--chdir={site}", f"--output={log}", *options]
    script = [str(site / "slurm/train.sbatch"), str(tmp_path / "run.yaml"), *settings]
    number = lab.slurm(cluster, *command, *script, LCM_ROOT=str(site)).strip()
    lab.until(lambda: "JobState=FAILED" in lab.slurm(cluster, "scontrol", "show", "job", number), 240)
    assert told in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not (tmp_path / "run").exists()


def test_outside_of_a_job_the_script_says_how_to_submit(site):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", str(site / "slurm/train.sbatch"), "c.yaml"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "train.sbatch: this is a job: sbatch slurm/train.sbatch c.yaml\n")
