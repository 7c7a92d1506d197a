"""`lcm runs`: a table of what runs' own files and Slurm's queue say."""

import json
import os
import time

import pytest
from synthetic import tiny_config

from lcm.cli import main
from lcm.config import save_config
from lcm.jobs import runs

START = "start\t2026-12-01T09:00:00\t{job}\tnode[0-1]\t4\t{log}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder, and a queue in which job 7 is running and job 8 waits."""
    monkeypatch.setattr(runs, "slurm_queue", lambda: {"7": "RUNNING", "8": "PENDING", "9": "RUNNING"})
    return tmp_path


def made(folder, name, *attempts, step=50, log="step 50 of 100\n", job="7", finished=False):
    """A run of 100 steps of 2 rows of 16 slots that has reported `step`."""
    run, copy = folder / name, folder / name / "submitted/20261201-090000-aa"
    copy.mkdir(parents=True)
    settings = ("trainer.max_steps=100", "data.rows=2", "data.slots=16", "trainer.accumulate=2")
    save_config(tiny_config("data", run, *settings), copy / "config.yaml")
    (copy / "job").write_text(f"{job}\n")
    (run / "log").write_text(log)
    (copy / "attempts").write_text("".join(attempts).format(job=job, log=run / "log"))
    if step is not None:
        rows = f"step,val/loss,train/concepts_per_second\n{step - 1},0.5,\n{step},,128.0\n"
        (run / "metrics.csv").write_text(rows)
        (run / "checkpoints").mkdir()
        (run / "checkpoints/last.ckpt").touch()
        os.utime(run / "checkpoints/last.ckpt", (time.time() - 61.5,) * 2)
    if finished:
        (run / "model.safetensors").touch()
    return run


def shown(folder, capsys):
    assert main(["runs", str(folder), "--json"]) == 0
    return {run["run"]: run for run in json.loads(capsys.readouterr().out)}


def test_a_running_run_has_every_column(folder, capsys):
    made(folder, "a", START, "end\t2026-12-01T09:30:00\tstopped\n", START, log="first\nstep 50 of 100\n\n")
    found = shown(folder, capsys)["a"]
    assert found.pop("checkpoint_age") in (61, 62, 63)
    assert found == {
        "run": "a",
        "state": "running",
        "step": 50,
        "max_steps": 100,
        "concepts_per_second": 128.0,
        "seconds_left": 50 * (2 * 16 * 2 * 4) // 128,
        "checkpoint": "last.ckpt",
        "attempts": 2,
        "job": "7",
        "host": "node[0-1]",
        "validation_loss": 0.5,
        "last_line": "step 50 of 100",
    }
    assert main(["runs", str(folder)]) == 0
    head, row = capsys.readouterr().out.splitlines()
    columns = {
        "run": "a ",
        "state": "running",
        "step": "50/100",
        "rate": "128/s",
        "left": "0:01:40",
        "checkpoint": "last.ckpt 0:01:0",
        "starts": "2",
        "host": "node[0-1]",
        "validation": "0.5",
        "last line": "step 50 of 100",
    }
    for name, value in columns.items():
        assert row[head.index(name) :].startswith(value), name


END = "end\t2026-12-01T09:30:00\t{}\n"


@pytest.mark.parametrize(
    ("state", "attempts", "more"),
    [
        ("running", [START], {}),
        ("queued", [START, END.format("stopped")], {"job": "8"}),
        ("queued", [], {"job": "8", "step": None}),
        ("finished", [START, END.format("done")], {"job": "5", "step": 100, "finished": True}),
        ("stopped", [START, END.format("stopped")], {"job": "5"}),
        ("stopped", [], {"job": "5", "step": None}),
        ("failed", [START, END.format("failed")], {"job": "5"}),
        ("lost", [START], {"job": "5"}),
    ],
)
def test_the_state_is_that_of_the_queue_or_else_of_the_last_end(state, attempts, more, folder, capsys):
    made(folder, "a", *attempts, **more)
    found = shown(folder, capsys)["a"]
    assert found["state"] == state
    assert (found["seconds_left"] is None) == (state != "running")


def test_runs_without_slurm_or_a_log_are_shown_and_what_is_no_run_is_not(folder, capsys, monkeypatch):
    monkeypatch.setattr(runs, "slurm_queue", lambda: None)
    (folder / "notes").mkdir()
    (folder / "b/checkpoints").mkdir(parents=True)
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/metrics.csv").write_text("step,train/loss\n7,1\n8")
    (folder / "submitted/x").mkdir(parents=True)
    (folder / "submitted/x/grid.yaml").touch()
    found = shown(folder, capsys)
    assert list(found) == ["b", "deep/er"]
    assert found["deep/er"]["step"] == 7, "a row that is being written does not count"
    assert found["b"]["state"] == "stopped"
    assert main(["runs", str(folder)]) == 0
    assert "None" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("age", "ended", "state"), [(1, False, "running"), (99, False, "stopped"), (1, True, "stopped")]
)
def test_a_run_that_its_owner_keeps_touching_is_running_without_slurm(age, ended, state, folder, capsys):
    (folder / "a/checkpoints").mkdir(parents=True)
    (folder / "a/owner.json").write_text(json.dumps({"host": "laptop", "job": "", "ended": ended}))
    os.utime(folder / "a/owner.json", (time.time() - age,) * 2)
    found = shown(folder, capsys)["a"]
    assert (found["state"], found["host"]) == (state, "laptop" if state == "running" else None)
    assert found["job"] is None


def test_a_folder_that_is_a_run_is_shown_by_its_name(folder, capsys):
    run = made(folder, "first", START)
    assert list(shown(run, capsys)) == ["first"]


def test_a_folder_without_runs_is_one_line(folder, capsys):
    assert main(["runs", str(folder)]) == 1
    assert "no runs in it; expected folders of lcm train" in capsys.readouterr().err
    assert main(["runs", str(folder / "nothing")]) == 1
    assert f"DIR={folder}/nothing: no runs in it" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{", '{"host": "laptop"}', "\x00"])
def test_a_damaged_record_of_an_owner_is_that_of_no_owner(text, folder, capsys):
    made(folder, "a", START, "end\t2026-12-01T10:00:00\tstopped\n", job="1")
    (folder / "a/owner.json").write_text(text)
    assert main(["runs", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "stopped"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.csv", b"loss,epoch\n1,2\n"),  # another program's
        ("metrics.csv", b"step,val/loss,train/concepts_per_second\nx,1,1\n1.5,1,1\n"),
        ("metrics.csv", b"step,val/loss,train/concepts_per_second\n4,x,\xff\n"),
        ("metrics.csv", b'step\n"' + b"a" * 140_000),
        ("owner.json", b'{"host": [1], "job": {"a": 1}, "ended": false}'),
        ("owner.json", b"\x00" * 200),
        ("submitted/20261201-090000-aa/attempts", b"start\t1\t2\t3\tx\tlog\n\xff\x00\n"),
        ("submitted/20261201-090000-aa/job", b"\xff"),
        ("submitted/20261201-090000-aa/config.yaml", b"\x00"),
    ],
)
def test_a_damaged_file_of_one_run_hides_no_other(file, content, folder, capsys):
    """Such as a power cut leaves."""
    made(folder, "good", START)
    before = shown(folder, capsys)["good"]
    (made(folder, "damaged", START) / file).write_bytes(content)
    found = shown(folder, capsys)
    assert found.keys() == {"good", "damaged"}
    before["checkpoint_age"] = found["good"]["checkpoint_age"]
    assert found["good"] == before
    assert main(["runs", str(folder)]) == 0


def test_a_number_that_is_being_written_is_not_shown(folder, capsys):
    run = made(folder, "a", START)
    with (run / "metrics.csv").open("a") as file:
        file.write("51,,9")  # of 98.5
    assert (shown(folder, capsys)["a"]["step"], shown(folder, capsys)["a"]["concepts_per_second"]) == (50, 128.0)


def test_a_checkpoint_that_is_replaced_meanwhile_is_passed_over(folder, capsys):
    run = made(folder, "a", START)
    (run / "checkpoints/step-00000050.ckpt").symlink_to("gone")
    assert shown(folder, capsys)["a"]["checkpoint"] == "last.ckpt"
