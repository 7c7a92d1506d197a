"""data_prep/fit_quantizer.py: what it fits to, what it writes, the table, and what it refuses."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from synthetic import DIM, write_data

from lcm.data.dataset import PreparedData
from lcm.data.shards import read_documents
from lcm.models.quantizer import load_quantizer


def script():
    path = Path(__file__).parents[2] / "data_prep" / "fit_quantizer.py"
    spec = importlib.util.spec_from_file_location("fit_quantizer", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fit_quantizer = script()
SIZES = ("--codebooks", "5", "--units", "16")


class Telling:
    """A codec that writes a vector as its rounded numbers."""

    name, fingerprint, dim = "synthetic", "0", DIM

    def decode(self, vectors, lang):
        assert set(lang) == {"eng_Latn"}
        return [" ".join(f"{value:.1f}" for value in row) for row in vectors.tolist()]


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def sentences(folder, split):
    """(text, vector) without the constants."""
    return [
        (text, vector)
        for document in read_documents(folder, split)
        for i, (text, vector) in enumerate(zip(document.sentences[:-1], document.vectors, strict=False))
        if i != document.source_length - 1
    ]


def test_it_writes_codebooks_with_their_codec_and_normalizer(data, tmp_path, capsys):
    path = tmp_path / "q.safetensors"
    assert fit_quantizer.main(["--data", str(data), "--output", str(path), *SIZES]) == 0
    quantizer, record = load_quantizer(path)
    assert quantizer.codebooks.shape == (5, 16, DIM)
    assert (record.codec, record.fingerprint, record.space) == ("synthetic", "0", "normalised")
    record.check("q", "0", fit_quantizer.normalizer_of(PreparedData([data])))
    out, err = capsys.readouterr()
    assert out == ""
    assert "codebook 5 of 5: " in err
    first = path.read_bytes()
    assert fit_quantizer.main(["--data", str(data), "--output", str(path), *SIZES]) == 0
    assert path.read_bytes() == first


def test_normalized_and_raw_space_hold_the_same_sentences(data):
    prepared = PreparedData([data])
    expected = torch.stack([torch.from_numpy(vector) for _, vector in sentences(data, "train")]).float()
    raw = fit_quantizer.training_vectors(prepared, 10_000, fit_quantizer.Normalizer(DIM))
    assert torch.equal(raw, expected)
    normalizer = fit_quantizer.normalizer_of(prepared)
    assert torch.equal(fit_quantizer.training_vectors(prepared, 10_000, normalizer), (raw - 0.25) / 2)


def test_vectors_are_limited_in_proportion_to_each_folder(data, tmp_path, monkeypatch):
    both = PreparedData([data, write_data(tmp_path / "other", documents=20, shards=1)])
    parts, sample = [], fit_quantizer.sample_vectors
    monkeypatch.setattr(fit_quantizer, "sample_vectors", lambda *given: parts.append(sample(*given)) or parts[-1])
    found = fit_quantizer.training_vectors(both, 80, fit_quantizer.Normalizer(DIM))
    assert 50 <= len(found) <= 80
    assert found.tolist() == [row for part in parts for row in part.tolist()]
    sizes = [sum(shard.record.concepts for shard in both.shards("train", folder)) for folder in both.manifests]
    assert len(parts[0]) / len(parts[1]) == pytest.approx(sizes[0] / sizes[1], rel=0.3)


def test_the_table_has_a_row_for_1_2_4_and_all_codebooks_and_the_vectors_as_they_are(
    data, tmp_path, capsys, monkeypatch
):
    asked = []
    monkeypatch.setattr(fit_quantizer, "load_codec", lambda name: asked.append(name) or Telling())
    held_out = sentences(data, "validation")
    told = {tuple(vector.tolist()): text for text, vector in held_out}
    spoken = Telling().decode(torch.tensor([list(key) for key in told]), ["eng_Latn"])
    monkeypatch.setattr(
        fit_quantizer, "_sentences", lambda _: zip(spoken, ["eng_Latn"] * 999, (v for _, v in held_out), strict=False)
    )
    command = ["--data", str(data), "--output", str(tmp_path / "q"), *SIZES, "--autobleu", "9999"]
    for space in ("raw", "normalised"):
        assert fit_quantizer.main([*command, "--space", space]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["codebooks"] for row in rows] == [1, 2, 4, 5, None]
        left = [row["left"] for row in rows]
        assert 1 > left[0] > left[1] > left[2] > left[3] > left[4] == 0
        assert rows[-1]["autobleu"] == pytest.approx(100)
        assert rows[0]["autobleu"] < rows[-1]["autobleu"]
        assert {row["sentences"] for row in rows} == {len(held_out)}
        assert all(row["left_normalised"] == pytest.approx(row["left"], rel=1e-4) for row in rows), "one scale for all"
    assert asked == ["synthetic"] * 2


def test_sentences_that_are_decoded_are_spread_over_the_validation_split(data):
    held_out, every = fit_quantizer.read_held_out(PreparedData([data]), 10), sentences(data, "validation")
    step = -(-len(every) // 10)
    assert held_out.texts == [text for text, _ in every[::step]]
    assert held_out.vectors.half().tolist() == [vector.tolist() for _, vector in every[::step]]


def test_numbers_of_codebooks_double():
    assert fit_quantizer.numbers_of_codebooks(1) == [1]
    assert fit_quantizer.numbers_of_codebooks(64) == [1, 2, 4, 8, 16, 32, 64]
    assert fit_quantizer.numbers_of_codebooks(6) == [1, 2, 4, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--units", "100000"], "units=100000, but there are only"),
        (["--codebooks", "0"], "--codebooks=0: expected 1 or more"),
        (["--vectors", "0"], "--vectors=0: expected 1 or more"),
        (["--data", "nowhere"], "nowhere: no data set there"),
    ],
)
def test_mistakes_are_one_line(data, tmp_path, capsys, options, message):
    path = tmp_path / "q.safetensors"
    assert fit_quantizer.main(["--data", str(data), "--output", str(path), *SIZES, *options]) == 1
    err = capsys.readouterr().err
    assert f"fit_quantizer: {message}" in err
    assert not path.exists()


def test_a_codec_that_is_not_the_datas_is_refused_unless_it_is_named(data, tmp_path, capsys, monkeypatch):
    other = Telling()
    other.fingerprint = "another"
    monkeypatch.setattr(fit_quantizer, "load_codec", lambda name: other)
    command = ["--data", str(data), "--output", str(tmp_path / "q"), *SIZES, "--autobleu", "4"]
    assert fit_quantizer.main(command) == 1
    assert not (tmp_path / "q").exists(), "said before the fitting, which takes its time"
    assert "fingerprint another) is not the data's (8, 0); name another with --codec" in capsys.readouterr().err
    assert fit_quantizer.main([*command, "--codec", "tuned"]) == 0


def test_autobleu_needs_a_validation_split(tmp_path, capsys):
    data = write_data(tmp_path / "data", validation=0)
    assert fit_quantizer.main(["--data", str(data), "--output", str(tmp_path / "q"), *SIZES, "--autobleu", "4"]) == 1
    assert "--autobleu=4: there is no validation split" in capsys.readouterr().err
