"""slurm/embed.sbatch and generate.sbatch without Slurm: what they run, and when it is queued again, with stubs."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUBS = {
    "scontrol": 'echo "$*" >>"$STUB/scontrol"',
    "lcm": """
        echo "$PYTHONPATH $*" >>"$STUB/lcm"
        code=$(cat "$STUB/status")
        [ "$code" != sleep ] || exec sleep 60
        [ "$code" -lt 128 ] || kill -$((code - 128)) $$
        exit "$code\"""",
}


@pytest.fixture
def start(tmp_path):
    """A function that starts task 4 of an array of 2-8:2, whose work ends with this status, and returns its process."""
    for name, text in STUBS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    for root in ("checkout", "copy"):
        (tmp_path / root / "slurm").mkdir(parents=True)
        (tmp_path / root / "slurm/env.sh").touch()
        shutil.copy(ROOT / "slurm/array.sh", tmp_path / root / "slurm")
    (tmp_path / "copy/root").write_text(f"{tmp_path}/checkout\n")

    def run(status, restarted=0, copied=True, script="embed.sbatch", **more):
        (tmp_path / "status").write_text(str(status))
        environment = {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "STUB": str(tmp_path),
            "LCM_CACHE": str(tmp_path / "cache"),
            "SLURM_SUBMIT_DIR": str(tmp_path / "checkout"),
            "SLURM_JOB_ID": "7",
            "SLURM_ARRAY_TASK_ID": "4",
            "SLURM_ARRAY_TASK_MIN": "2",
            "SLURM_ARRAY_TASK_MAX": "8",
            "SLURM_ARRAY_TASK_STEP": "2",
            "SLURM_ARRAY_TASK_COUNT": "4",
            "SLURM_RESTART_COUNT": str(restarted),
            **more,
        }
        words = [*([f"{tmp_path}/copy"] if copied else []), "--input", "a b", "--output", "d"]
        command = ["bash", str(ROOT / "slurm" / script), *words]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    return run


def ended(process):
    said = process.communicate(timeout=30)[1]
    return process.returncode, said


def lines(path):
    return path.read_text().splitlines() if path.is_file() else []


@pytest.mark.parametrize(("script", "command"), [("embed.sbatch", "prepare"), ("generate.sbatch", "generate")])
@pytest.mark.parametrize("copied", [True, False])
def test_a_task_runs_its_part_with_the_code_of_submission_where_that_was_copied(
    copied, script, command, start, tmp_path
):
    assert ended(start(0, copied=copied, script=script)) == (0, "")
    code = f"{tmp_path}/copy" if copied else ""
    assert lines(tmp_path / "lcm") == [f"{code} {command} --input a b --output d --part 2/4"]
    assert not lines(tmp_path / "scontrol")


@pytest.mark.parametrize("status", [1, 2])
def test_what_the_program_refused_fails_at_once(status, start, tmp_path):
    assert ended(start(status))[0] == status
    assert not lines(tmp_path / "scontrol")


@pytest.mark.parametrize("status", [75, 137])
def test_what_the_machine_ended_is_queued_again_as_often_as_restarts_says(status, start, tmp_path):
    for number in (1, 2):
        code, said = ended(start(status, restarted=number - 1, LCM_RESTARTS="2"))
        told = f"embed.sbatch: the machine ended the task (status {status}): queued again, restart {number} of 2"
        assert (code, said.splitlines()[-1]) == (0, told)
    code, said = ended(start(status, restarted=2, LCM_RESTARTS="2"))
    assert code == status
    assert f"(status {status}), no restart of LCM_RESTARTS=2 is left; FAILED" in said
    assert lines(tmp_path / "scontrol") == ["requeue 7"] * 2
    code, said = ended(start(0, restarted=3, LCM_RESTARTS="2"))
    assert (code, said.count("the machine ended this task 3 times")) == (1, 1), "Slurm's own restarts count, too"
    assert ended(start(137))[1].endswith("restart 1 of 3\n"), "a new job of an old number"


@pytest.mark.parametrize(("number", "queued"), [(signal.SIGUSR1, ["requeue 7"]), (signal.SIGTERM, [])])
def test_time_limits_and_preemption_are_no_restarts(number, queued, start, tmp_path):
    process = start("sleep")
    end = time.monotonic() + 20
    while not lines(tmp_path / "lcm"):
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    assert ended(process)[0] == 143
    assert lines(tmp_path / "scontrol") == queued
    assert "restart 1 of 3" in ended(start(137, restarted=1))[1]
