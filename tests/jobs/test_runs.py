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
        "start": None,
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
    assert main(["runs", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("nothing", "DIR=nothing: no such folder"),
        ("a file", "DIR=a file: is a file; expected a folder of runs"),
        ("", "DIR is empty; expected a file or a folder"),
        ("$RUNS/a", "DIR=$RUNS/a: $RUNS is not replaced here"),
        ("~nobody_of_that_name", "DIR=~nobody_of_that_name: no such user's home"),
    ],
)
def test_what_is_no_folder_is_one_line_for_people_and_for_programs(given, line, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "a file").touch()
    for more in ([], ["--json"]):
        assert main(["runs", given, *more]) == 1
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"lcm runs: {line}")


@pytest.mark.parametrize("header", [b"step,val/loss,train/concepts_per_second\n", b"", b"val/loss\n"])
@pytest.mark.parametrize("row", [b"x,1,2\n", b"51,oops,nan\n", b"51,\xff\n", b"51,0.5\0,\n", b"51,1,2,3\n", b"\0\0\0"])
def test_a_spoiled_report_hides_neither_its_run_nor_the_others(header, row, folder, capsys):
    made(folder, "a", START)
    run = made(folder, "b", START, "start\t\t7\tnode0\tmany\tlog\n")
    (run / "metrics.csv").write_bytes(header + row)
    (run / "submitted/20261201-090000-aa/attempts").write_bytes(b"\xff\n")
    found = shown(folder, capsys)
    assert (found["a"]["step"], list(found)) == (50, ["a", "b"])
    assert found["b"]["step"] in (None, 51)


def test_a_link_to_a_run_elsewhere_is_followed_and_none_twice(folder, capsys):
    made(folder, "elsewhere/a", START)
    (folder / "runs").mkdir()
    (folder / "runs/linked").symlink_to("../elsewhere/a")
    (folder / "runs/loop").symlink_to(".")
    made(folder, "runs/z", START)
    (folder / "runs/current").symlink_to("z")
    assert list(shown(folder / "runs", capsys)) == ["z", "linked"]


def test_a_folder_that_cannot_be_read_is_named_and_the_others_are_shown(folder, capsys, monkeypatch):
    made(folder, "a", START)
    (folder / "secret").mkdir()
    scan = os.scandir

    def refusing(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert main(["runs", str(folder)]) == 1
    printed = capsys.readouterr()
    assert (printed.out.count("\n"), printed.err) == (
        2, f"lcm runs: {folder}/secret: Permission denied; passed over\n"
    )  # fmt: skip


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
