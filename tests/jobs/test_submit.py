"""`lcm submit`: the job runs the copy that was made when it was submitted. sbatch is a stub."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic import tiny_config

from lcm.cli import main
from lcm.config import load_config, save_config
from lcm.jobs import submit

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder with a configuration c.yaml of run/, and a stub of sbatch that writes its words to `sbatch`."""
    save_config(tiny_config("data", tmp_path / "run", "trainer.restarts=5"), tmp_path / "c.yaml")
    (tmp_path / "bin").mkdir()
    stub(tmp_path, "sbatch", f'printf "%s\\n" "$@" >{tmp_path}/sbatch; echo Submitted batch job 41')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("LCM_ROOT", str(ROOT))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return tmp_path


def stub(folder, name, text):
    (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / "bin" / name).chmod(0o755)


def test_code_and_resolved_configuration_are_copied_and_the_copy_is_queued(site, capsys):
    script = str(ROOT / "slurm/train.sbatch")
    assert main(["submit", "--nodes=2", script, f"{site}/c.yaml", "--data.rows", "3"]) == 0
    assert capsys.readouterr().out == "Submitted batch job 41\n"
    (copy,) = (site / "run/submitted").iterdir()
    assert (site / "sbatch").read_text().split() == ["--nodes=2", f"{copy}/slurm/train.sbatch", f"{copy}/config.yaml"]
    assert load_config(copy / "config.yaml") == load_config(site / "c.yaml", ["--data.rows=3"])
    assert [(copy / name).read_text() for name in ("root", "restarts", "job")] == [f"{ROOT}\n", "5\n", "41\n"]
    for path in (ROOT / "lcm").rglob("*.py"):
        assert (copy / path.relative_to(ROOT)).read_bytes() == path.read_bytes()


def test_a_copy_names_its_run_folder_from_the_root(site, monkeypatch):
    monkeypatch.chdir(site)
    main(["submit", "--chdir=/elsewhere", str(ROOT / "slurm/train.sbatch"), "c.yaml", "--run.dir=runs/a"])
    (copy,) = (site / "runs/a/submitted").iterdir()
    assert load_config(copy / "config.yaml").run.dir == f"{site}/runs/a"


def test_python_runs_the_copy_and_not_the_checkout(site):
    main(["submit", str(ROOT / "slurm/train.sbatch"), f"{site}/c.yaml"])
    (copy,) = (site / "run/submitted").iterdir()
    (copy / "lcm/errors.py").write_text((copy / "lcm/errors.py").read_text() + "\nprint('the copy')\n")
    command = [sys.executable, "-c", "import lcm.codec, lcm.errors; print((lcm.codec.__path__[0]))"]
    done = subprocess.run(
        command, cwd=site, env={**os.environ, "PYTHONPATH": f"{copy}:{ROOT}"}, capture_output=True, text=True
    )
    assert done.stdout == f"the copy\n{copy}/lcm/codec\n", done.stderr
    assert (copy / "lcm/codec/assets/mini").is_dir()


def test_a_sweep_is_one_array_with_a_folder_a_run(site):
    (site / "grid.yaml").write_text(f"config: {site}/c.yaml\nrun.dir: {site}/sweep\noptimizer.lr: [1e-4, 2e-4]\n")
    assert main(["submit", "--time=9", str(ROOT / "slurm/sweep.sbatch"), f"{site}/grid.yaml"]) == 0
    (copy,) = (site / "sweep/submitted").iterdir()
    words = ["--array=1-2", "--time=9", f"{copy}/slurm/sweep.sbatch", f"{copy}/runs"]
    assert (site / "sbatch").read_text().split() == words
    for line, rate in zip((copy / "runs").read_text().splitlines(), ("1e-4", "2e-4"), strict=True):
        run = Path(line)
        assert run.parents[1] == site / f"sweep/lr={rate}"
        assert load_config(run / "config.yaml").optimizer.lr == float(rate)
        assert (run / "slurm/train.sbatch").is_file()
        assert (run / "lcm").resolve() == copy / "lcm"


def test_the_code_of_an_array_that_prepares_data_is_copied_beside_the_data_set(site, monkeypatch):
    monkeypatch.chdir(site)
    words = ["--input", "a b.jsonl", "c.jsonl", "--output", "data", "--workers=1"]
    assert main(["submit", "--array=1-4", str(ROOT / "slurm/embed.sbatch"), *words]) == 0
    (copy,) = (site / "data.submitted").iterdir()
    queued = ["--array=1-4", f"{copy}/slurm/embed.sbatch", str(copy), *words]
    assert (site / "sbatch").read_text().splitlines() == queued
    assert [(copy / name).read_text() for name in ("root", "job")] == [f"{ROOT}\n", "41\n"]
    assert (copy / "lcm/prepare/command.py").is_file()
    assert not (site / "data").exists()
    stub(site, "sbatch", "exit 1")
    assert main(["submit", str(ROOT / "slurm/embed.sbatch"), "--output=other"]) == 1
    assert not (site / "other.submitted").exists()


@pytest.mark.parametrize("text", ["exit 1", "echo not a job; exit 0"])
def test_a_job_that_is_not_queued_leaves_nothing(text, site):
    stub(site, "sbatch", text)
    main(["submit", str(ROOT / "slurm/train.sbatch"), f"{site}/c.yaml"])
    assert not (site / "run").exists()
    (site / "grid.yaml").write_text(f"config: {site}/c.yaml\nrun.dir: {site}/sweep\noptimizer.lr: [1e-4, 2e-4]\n")
    main(["submit", str(ROOT / "slurm/sweep.sbatch"), f"{site}/grid.yaml"])
    assert not (site / "sweep").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--nodes=2", "c.yaml"], "no script; expected slurm/train.sbatch, or another of the folder"),
        (["missing.sbatch"], "SCRIPT=missing.sbatch: no such file"),
        (
            [str(ROOT / "slurm/evaluate.sbatch"), "x"],
            "expected slurm/train.sbatch CONFIG, slurm/sweep.sbatch GRID.yaml",
        ),
        ([str(ROOT / "slurm/embed.sbatch"), "--input", "x"], "--output: expected what the job will write"),
        ([str(ROOT / "slurm/embed.sbatch"), "--output", "$D"], "--output=$D: $D is not replaced here"),
        ([str(ROOT / "slurm/train.sbatch"), "nothing.yaml"], "nothing.yaml: no such file"),
    ],
)
def test_a_mistake_is_one_line(words, told, site, capsys):
    assert main(["submit", *words]) == 1
    line = capsys.readouterr().err
    assert told in line
    assert line.count("\n") == 1
    assert not (site / "sbatch").exists()


def test_without_slurm_it_says_so_and_leaves_nothing(site, monkeypatch, capsys):
    (site / "bin/sbatch").unlink()
    monkeypatch.setenv("PATH", f"{site}/bin")
    assert main(["submit", str(ROOT / "slurm/train.sbatch"), f"{site}/c.yaml"]) == 1
    assert capsys.readouterr().err == (
        "lcm submit: sbatch: No such file or directory; expected Slurm on this machine\n"
    )
    assert not (site / "run").exists()


def in_job(site, since):
    stub(site, "scontrol", f"echo SubmitTime={time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(since))}")
    return main(["submit", "--in-job", f"{site}/c.yaml", "--data.rows=3"])


def test_a_job_of_plain_sbatch_is_copied_once_at_its_first_start(site, capsys):
    newest = max(path.stat().st_mtime for path in (*submit.PACKAGE.rglob("*.py"), site / "c.yaml"))
    assert in_job(site, newest) == 0
    copy = Path(capsys.readouterr().out.strip())
    assert copy == site / "run/submitted/job-7"
    assert load_config(copy / "config.yaml").data.rows == 3
    os.utime(site / "c.yaml", (newest + 9, newest + 9))
    assert in_job(site, newest) == 0, "a restart"
    assert Path(capsys.readouterr().out.strip()) == copy


def test_a_job_of_plain_sbatch_is_refused_where_its_code_or_configuration_changed_in_the_queue(
    site, monkeypatch, capsys
):
    now = time.time()
    code = site / "package/a.py"
    code.parent.mkdir()
    code.touch()
    monkeypatch.setattr(submit, "PACKAGE", code.parent)
    for changed in (code, site / "c.yaml"):
        for path, age in ((code, 60), (site / "c.yaml", 60), (changed, 0)):
            os.utime(path, (now - age, now - age))
        assert in_job(site, now - 30) == 1
        line = capsys.readouterr().err
        assert f"lcm submit: {changed}: changed at " in line
        assert "submit again, with lcm submit in place of sbatch" in line
    assert not (site / "run").exists()
