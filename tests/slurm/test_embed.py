"""slurm/embed.sbatch: an array of jobs makes the data set of a single `lcm prepare`, byte for byte."""

import json

import forked
import lab
import pytest

pytestmark = pytest.mark.slurm

OPTIONS = ("--shard-documents", "40", "--workers", "1")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(input, what one command makes of it)"""
    folder = tmp_path_factory.mktemp("alone")
    rows = [{"id": i, "text": f"Text {i} begins. It goes on for {i} pages! It ends."} for i in range(600)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["prepare", "--input", str(folder / "a.jsonl"), *OPTIONS, "--output", str(folder / "data")]
    forked.printed_by(forked.lcm(words, folder / "prepare"), "prepare")
    return folder / "a.jsonl", files(folder / "data")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def submitted(cluster, site, source, output, tasks):
    """The job's number."""
    script = [str(site / "slurm/embed.sbatch"), "--input", str(source), "--output", str(output), *OPTIONS]
    log = f"--output={output.parent}/%a.log"
    command = ["sbatch", "--parsable", f"--array={tasks}", f"--chdir={site}", log, *script]
    return lab.slurm(cluster, *command, LCM_ROOT=str(site)).strip()


def states(cluster, number):
    words = lab.slurm(cluster, "scontrol", "show", "job", number).split()
    return [word.partition("=")[2] for word in words if word.startswith("JobState=")]


def until_completed(cluster, number, folder):
    def done():
        found = states(cluster, number)
        logs = {path.name: path.read_text() for path in folder.glob("*.log")}
        assert not {"FAILED", "TIMEOUT", "CANCELLED"} & set(found), logs
        return set(found) == {"COMPLETED"}

    lab.until(done, 600)


def test_an_array_makes_what_one_command_makes(cluster, site, alone, tmp_path):
    source, expected = alone
    number = submitted(cluster, site, source, tmp_path / "data", "3-9:3%2")
    until_completed(cluster, number, tmp_path)
    assert files(tmp_path / "data") == expected
    said = [path.read_text() for path in tmp_path.glob("*.log")]
    assert len(said) == 3
    assert sum("600 documents" in log for log in said) == 1, "the last one tells of it all"


def test_a_task_whose_time_is_up_is_queued_again_and_goes_on(cluster, site, alone, tmp_path):
    source, expected = alone
    number = submitted(cluster, site, source, tmp_path / "data", "1-2")
    lab.until(lambda: len(list((tmp_path / "data").glob("*.tar"))) > 3, 240)
    lab.slurm(cluster, "scancel", "--batch", "--signal=USR1", f"{number}_1")
    lab.until(lambda: "Restarts=1" in lab.slurm(cluster, "scontrol", "show", "job", f"{number}_1"), 240)
    until_completed(cluster, number, tmp_path)
    assert files(tmp_path / "data") == expected
