"""slurm/train.sbatch without Slurm: what it runs, and when it queues the job again. All it calls are stubs."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUBS = {
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; "$@"',
    "scontrol": 'echo "$*" >>"$STUB/scontrol"',
    "lcm": """
        echo "$PYTHONPATH $*" >>"$STUB/lcm"
        case "$*" in
            *--check) exit 0 ;;
            submit*) echo "$STUB/submitted"; exit 0 ;;
            *) code=$(cat "$STUB/status"); [ "$code" -lt 128 ] || kill -$((code - 128)) $$; exit "$code" ;;
        esac""",
}


@pytest.fixture
def start(tmp_path):
    """A function that starts the job of a copy whose training ends with this status, and returns the script's end."""
    for name, text in STUBS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    copy = tmp_path / "submitted"
    (copy / "slurm").mkdir(parents=True)
    for name, text in {"slurm/env.sh": "", "root": "/checkout\n", "restarts": "2\n", "config.yaml": ""}.items():
        (copy / name).write_text(text)

    def run(status, config=copy / "config.yaml", restarted=0):
        (tmp_path / "status").write_text(str(status))
        environment = {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "STUB": str(tmp_path),
            "LCM_CACHE": str(tmp_path / "cache"),
            "LCM_ROOT": str(copy),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node[0-1]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NTASKS_PER_NODE": "4",
            "SLURM_RESTART_COUNT": str(restarted),
        }
        command = ["bash", str(ROOT / "slurm/train.sbatch"), str(config), "--data.rows=3"]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def lines(path):
    return path.read_text().splitlines() if path.is_file() else []


def ends(tmp_path):
    return [line.split("\t")[-1] for line in lines(tmp_path / "submitted/attempts") if line.startswith("end")]


def test_a_copy_is_run_whole_and_its_settings_are_not_given_again(start, tmp_path):
    assert start(0).returncode == 0
    copy = tmp_path / "submitted"
    layout = f"{copy} train --config {copy}/config.yaml --trainer.nodes=2 --trainer.devices=4"
    assert lines(tmp_path / "lcm") == [f"{layout} --check", layout]
    assert ends(tmp_path) == ["done"]


def test_a_job_of_plain_sbatch_is_checked_then_copied_and_restarts_from_its_copy_without_the_checkout(start, tmp_path):
    config = tmp_path / "c.yaml"
    config.touch()
    start(0, config)
    first = lines(tmp_path / "lcm")
    assert [line.split()[:2] for line in first[1:2]] == [["submit", "--in-job"]]
    assert first[0].strip().endswith("--data.rows=3 --check")
    assert first[2].startswith(f"{tmp_path}/submitted train")
    start(0, config, restarted=1)
    assert all(line.startswith(f"{tmp_path}/submitted train") for line in lines(tmp_path / "lcm")[3:])
    assert len(lines(tmp_path / "lcm")) == 5


@pytest.mark.parametrize("status", [1, 2])
def test_what_the_program_refused_fails_at_once(status, start, tmp_path):
    assert start(status).returncode == status
    assert not lines(tmp_path / "scontrol")
    assert ends(tmp_path) == ["failed"]


@pytest.mark.parametrize("status", [75, 137])
def test_what_the_machine_ended_is_queued_again_as_often_as_restarts_says(status, start, tmp_path):
    for number in (1, 2):
        done = start(status, restarted=number - 1)
        expected = f"the machine ended the job (status {status} on node[0-1]): queued again, restart {number} of 2\n"
        assert done.stderr.endswith(f"train.sbatch: {expected}")
    done = start(status, restarted=2)
    assert done.returncode == status
    assert "no restart of trainer.restarts=2 is left; FAILED" in done.stderr
    assert lines(tmp_path / "scontrol") == ["requeue 7"] * 2
    assert ends(tmp_path) == ["lost", "lost", "failed"]


@pytest.mark.parametrize(("statuses", "again"), [((137, 1), True), ((1, 137), False), ((75, 1), True)])
def test_the_first_task_that_fails_is_the_cause(statuses, again, start, tmp_path):
    one_after_another = "".join(f'echo {status} >"$STUB/status"; "$@"; ' for status in statuses)
    (tmp_path / "bin/srun").write_text(
        f'#!/bin/bash\nwhile [ "${{1#--}}" != "$1" ]; do shift; done; {one_after_another}\n'
    )
    start(0)
    assert bool(lines(tmp_path / "scontrol")) == again


def test_time_limits_do_not_count_as_restarts(start, tmp_path):
    for _ in range(5):
        start(0)
    assert "restart 1 of 2" in start(137).stderr


def test_starts_that_left_no_end_count_and_the_job_ends_once_they_are_too_many(start, tmp_path):
    attempts = tmp_path / "submitted/attempts"
    attempts.write_text("start\t2026-12-01\t7\tnode0\t8\t/log\n" * 2)
    assert start(0).returncode == 0
    attempts.write_text("start\t2026-12-01\t7\tnode0\t8\t/log\n" * 3)
    done = start(0)
    assert (done.returncode, len(lines(tmp_path / "lcm"))) == (1, 3)
    assert done.stderr == ("train.sbatch: the machine ended this job 3 times (trainer.restarts=2); submit it again\n")
