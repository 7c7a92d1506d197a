"""slurm/evaluate.sbatch: a model's report by a job, as by `lcm evaluate`."""

import json

import forked
import lab
import pytest

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(model, data), small and real."""
    folder = tmp_path_factory.mktemp("trained")
    rows = [{"id": i, "text": f"Text {i} begins. It goes on for {i} pages! It ends."} for i in range(300)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepare = ["prepare", "--input", folder / "a.jsonl", "--output", folder / "data", "--workers", "1"]
    (folder / "c.yaml").write_text("model: {kind: base, dim: 512, width: 32, heads: 2, layers: 1}\n")
    settings = ("--trainer.max_steps=2", "--trainer.precision=fp32", "--trainer.devices=1")
    train = ["train", "--config", folder / "c.yaml", f"--data.path={folder}/data", f"--run.dir={folder}/run", *settings]
    for words in (prepare, train):
        forked.printed_by(forked.lcm([*map(str, words)], folder / words[0]), words[0])
    return folder / "run", folder / "data"


def finished(cluster, site, log, *words):
    """The state in which a job of slurm/evaluate.sbatch ends."""
    command = ["sbatch", "--parsable", f"--chdir={site}", f"--output={log}", str(site / "slurm/evaluate.sbatch")]
    number = lab.slurm(cluster, *command, *map(str, words), LCM_ROOT=str(site)).strip()
    shown = lambda: lab.slurm(cluster, "scontrol", "show", "job", number).split()  # noqa: E731
    lab.until(lambda: {"JobState=COMPLETED", "JobState=FAILED"} & set(shown()), 600)
    return next(word for word in shown() if word.startswith("JobState="))


def test_a_job_writes_the_report(cluster, site, trained, tmp_path):
    model, data = trained
    words = ("--model", model, "--data", data, "--output", tmp_path / "report", "--limit", "8")
    assert finished(cluster, site, tmp_path / "log", *words) == "JobState=COMPLETED", (tmp_path / "log").read_text()
    results = json.loads((tmp_path / "report/results.json").read_text())
    assert results["counts"]["scored"] > 0
    assert (tmp_path / "report/report.html").is_file()


def test_a_mistake_fails_the_job_with_one_line(cluster, site, trained, tmp_path):
    words = ("--model", tmp_path / "nothing", "--data", trained[1], "--output", tmp_path / "report")
    assert finished(cluster, site, tmp_path / "log", *words) == "JobState=FAILED"
    assert "expected a folder written by lcm train" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
