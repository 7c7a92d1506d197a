"""Commands that read a data set accept its URL like its folder; commands that write one refuse it."""

import json
import shutil

import pytest
from fakes import FakeCodec, reciting, write_dataset
from serving import ALWAYS, quick_waits, served
from test_evaluate import ANSWER, STORY, TRAIN, knowing

from lcm.cli import main
from lcm.errors import UserError
from lcm.evaluation.command import EvaluateOptions, evaluate
from lcm.inference.nearest import Bank
from lcm.prepare.command import PrepareOptions, prepare


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = {"train": TRAIN, "test": [STORY, (STORY[:3], ANSWER), (["Another.", "Text."], ANSWER), ["Alone."]]}
    write_dataset(tmp_path / "there/data", FakeCodec(), texts)
    return tmp_path / "there/data"


@pytest.fixture
def server(folder):
    with served(folder.parent) as server:
        yield server


def without_times(results):
    return {name: value for name, value in results.items() if name not in ("seconds", "settings")}


def test_evaluate_scores_a_url_as_it_scores_the_folder(folder, server):
    here = evaluate(knowing(), EvaluateOptions(data=(str(folder),)))
    there = evaluate(knowing(), EvaluateOptions(data=(f"{server.url}/data",)))
    assert without_times(there.results) == without_times(here.results)
    assert there.rows == here.rows
    assert len(server.requested_shards()) == 2


def test_a_model_is_scored_without_its_training_data(folder, server, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": " ".join(STORY)}) + "\n")
    options = EvaluateOptions(data=(str(tmp_path / "rows.jsonl"),))
    model = knowing(data=(f"{server.url}/data",))
    assert evaluate(model, options).results["mean_of"] == "training vectors"
    server.fails("manifest.json", 404, times=ALWAYS)
    assert evaluate(model, options).results["mean_of"].startswith("the normalizer's medians")
    assert "manifest.json: not found (tried once)" in capsys.readouterr().err


def test_the_bank_is_read_from_training_data_at_a_url(folder, server):
    there = reciting(STORY, FakeCodec(), data=(f"{server.url}/data",))
    assert there.bank.sentences == Bank.from_shards([str(folder)]).sentences
    server.fails("manifest.json", 503, times=ALWAYS)
    with quick_waits(), pytest.raises(UserError, match=r"manifest\.json: 503"):
        _ = reciting(STORY, FakeCodec(), data=(f"{server.url}/data",)).bank


def test_verify_reads_every_byte_at_the_url_and_nothing_in_the_cache(folder, server, tmp_path, capsys):
    assert main(["verify", str(folder)]) == 0
    here = capsys.readouterr().out
    assert main(["verify", f"{server.url}/data"]) == 0
    assert capsys.readouterr().out == here.replace(str(folder), f"{server.url}/data")
    assert not (tmp_path / "cache").exists()


def test_verify_names_what_is_broken_at_the_url(folder, server, capsys):
    shutil.copy(folder / "test-000000.tar", folder / "train-000000.tar")
    with quick_waits():
        assert main(["verify", f"{server.url}/data"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"train-000000.tar: {server.url}/data/train-000000.tar: " in line
    assert line.endswith("(tried 6 times)")


def test_prepare_refuses_a_url_as_output(tmp_path):
    (tmp_path / "my.txt").write_text("A sentence. Another.")
    with pytest.raises(UserError, match=r"^--output=s3://bucket/data: expected a local folder; copy the data set"):
        prepare(PrepareOptions(input=(str(tmp_path / "my.txt"),), output="s3://bucket/data"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.txt"]
