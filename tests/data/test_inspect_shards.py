"""The scripts that look into a data set: their numbers are those of the data, and mistakes are one line."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from stub_codec import load_stub, use_codec

from lcm.data.manifest import open_dataset
from lcm.data.shards import read_documents
from lcm.prepare.command import prepare
from lcm.prepare.options import PrepareOptions


def script(name):
    path = Path(__file__).parents[2] / "data_prep" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


inspect_shards, fit_normalizer = script("inspect_shards"), script("fit_normalizer")


@pytest.fixture
def data(tmp_path, monkeypatch):
    use_codec(monkeypatch)
    rows = [{"id": f"d{i}", "document": "Go on. " * (i + 1), "summary": "A sum.", "split": "train"} for i in range(10)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"document": 5}]))
    options = PrepareOptions(input=(str(tmp_path / "a.jsonl"),), output=str(tmp_path / "data"), pairs=True)
    prepare(options)
    return tmp_path / "data"


@pytest.mark.needs("matplotlib")
def test_the_counts_are_those_of_the_data(data, capsys):
    from matplotlib import image

    picture = data.parent / "lengths.png"
    assert inspect_shards.main([str(data), "--output", str(picture)], load=load_stub) == 0
    header, train, refused, sentences, *_ = capsys.readouterr().out.splitlines()
    assert train.split() == ["train", "1", "10", "10", str(55 + 10 + 20), "8", "8.5", "13"]
    assert refused == "refused: 1 not text, the first a.jsonl:11: document is 5"
    assert sentences == "sentences of train: 6 characters (10%), 6 (median), 6 (90%)"
    assert image.imread(picture).std() > 0.05  # something is drawn on it
    assert "documents" in header


@pytest.mark.needs("matplotlib")
def test_a_random_document_is_shown_beside_what_it_decodes_to(data, capsys):
    arguments = [str(data), "--output", str(data.parent / "l.png"), "--sentences", "3"]
    shown = []
    for seed in ("1", "1", "2", "3", "4"):
        assert inspect_shards.main([*arguments, "--seed", seed], load=load_stub) == 0
        shown.append(capsys.readouterr().out.split("lengths:")[1])
    assert shown[0] == shown[1]
    assert len(set(shown)) > 2
    assert "   0  Go on.\n    → sentence 0\n" in shown[0]


def test_without_matplotlib_a_line_says_what_to_install(data, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert inspect_shards.main([str(data)], load=load_stub) == 1
    assert "need matplotlib; pip install 'lcm-train[plots]'" in capsys.readouterr().err


def test_every_document_can_be_the_random_one(data):
    manifest = open_dataset(data)
    drawn = {inspect_shards.random_document(data, manifest, "train", seed).id for seed in range(100)}
    assert drawn == {f"d{i}" for i in range(10)}


def test_what_prepare_appended_is_no_sentence_of_the_text(data):
    for document in read_documents(data, "train"):
        assert set(inspect_shards.own_sentences(document)) == {"Go on.", "A sum."}


def test_mistakes_are_one_line(data, capsys):
    assert inspect_shards.main([str(data), "--split", "test"], load=load_stub) == 1
    assert inspect_shards.main([str(data.parent)], load=load_stub) == 1
    assert fit_normalizer.main([str(data.parent)]) == 1
    assert fit_normalizer.main([str(data), "--sample", "0"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 4
    assert "--split=test: empty" in captured.err


def test_fitting_again_gives_the_same_and_with_a_smaller_sample_another(data, capsys):
    before = open_dataset(data)
    assert fit_normalizer.main([str(data)]) == 0
    assert open_dataset(data) == before
    assert "50.0%" in capsys.readouterr().out
    assert fit_normalizer.main([str(data), "--sample", "3"]) == 0
    after = open_dataset(data)
    assert after.normalizer != before.normalizer
    assert after.model_copy(update={"normalizer": before.normalizer}) == before
    assert np.isfinite(after.normalizer.scale).all()
