"""The fragility network: frozen, of any normalizer, fitted to what it can predict and honest about what it cannot."""

import importlib.util
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fakes import FakeCodec
from safetensors import safe_open
from safetensors.torch import save_file

from lcm.errors import UserError
from lcm.models.fragility import FragilityNetwork, load_fragility, save_fragility
from lcm.models.interface import Normalizer

WORDS = ["the", "old", "sea", "was", "calm", "and", "we", "went", "home", "before", "night", "came", "over", "hills"]


def script(name):
    path = Path(__file__).parents[2] / "data_prep" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fit_fragility = script("fit_fragility")


class Brittle(FakeCodec):
    """Sentences whose first channel is above 0 come back whole, whatever the noise on the others; the rest never do."""

    languages = ("eng_Latn",)

    def encode(self, sentences, lang="eng_Latn", *, progress=None):
        vectors = super().encode(sentences, lang)
        vectors[:, 0] = 100 * vectors[:, 0].sign()
        for sentence, vector in zip(sentences, vectors, strict=True):
            self.known[sentence] = vector
        return vectors

    def decode(self, vectors, lang="eng_Latn", *, beam=1, progress=None):
        whole = super().decode(vectors, lang)
        return [text if self.known[text][0] > 0 else "lost" for text in whole]


def network(dim=6, seed=0):
    found = FragilityNetwork(dim)
    found.start(torch.Generator().manual_seed(seed))
    return found


def normalizer(dim=6, seed=0):
    generator, found = torch.Generator().manual_seed(seed), Normalizer(dim)
    found.set(torch.randn(dim, generator=generator), torch.rand(dim, generator=generator) + 0.5)
    return found


def sentences(count):
    return [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(4 + i % 7)) + f" {i}." for i in range(count)]


def test_it_is_three_layers_with_answers_between_zero_and_one_and_no_parameters():
    found = network()
    z = 100 * torch.randn(50, 6)
    state = z
    for i in range(3):
        state = state @ getattr(found, f"weight{i}").T + getattr(found, f"bias{i}")
        state = torch.nn.functional.gelu(state) if i < 2 else state.sigmoid()
    torch.testing.assert_close(found(z), state[:, 0])
    assert 0 <= found(z).min() < found(z).max() <= 1
    assert not list(found.parameters())
    assert not any(buffer.requires_grad for buffer in found.buffers())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_is_fp32_out(dtype):
    found, z = network(), torch.randn(3, 6).to(dtype)
    assert torch.equal(found(z), found(z.float()))
    assert found.to(dtype)(z).dtype == torch.float32


def test_it_is_not_a_number_until_it_is_filled():
    assert FragilityNetwork(6)(torch.zeros(2, 6)).isnan().all()


def test_a_saved_network_loads_unchanged(tmp_path):
    path = tmp_path / "new" / "fragility.safetensors"
    save_fragility(path, network(), normalizer(), "mini", "abc")
    assert [file.name for file in path.parent.iterdir()] == ["fragility.safetensors"]
    z = torch.randn(5, 6)
    assert torch.equal(load_fragility(path, 6, fingerprint="abc")(z), network()(z))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"kind": "lcm fragility 1", "codec": "mini", "fingerprint": "abc", "dim": "6"}
        assert torch.equal(file.get_tensor("normalizer.scale"), normalizer().scale)


def test_a_sentence_is_as_fragile_whatever_normalizes_its_vector(tmp_path):
    path = tmp_path / "fragility.safetensors"
    fitted, asked = normalizer(seed=1), normalizer(seed=2)
    save_fragility(path, network(), fitted, "mini", "abc")
    x = torch.randn(50, 6)
    moved = load_fragility(path, 6, normalizer=asked)
    torch.testing.assert_close(moved(asked(x)), network()(fitted(x)))
    assert (network()(asked(x)) - network()(fitted(x))).abs().max() > 1e-3, "or nothing was moved"


def test_a_wrong_file_is_one_line(tmp_path):
    path, other, broken = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors"))
    save_fragility(path, network(), normalizer(), "mini", "abc")
    save_file({"weight": torch.zeros(1)}, other)
    broken.write_bytes(path.read_bytes()[:100])
    for line, arguments in {
        "model.diffusion.fragility is empty: weight 'fragility' needs the file": ("", 6),
        "no such file": (tmp_path / "missing", 6),
        "not a whole safetensors file": (broken, 6),
        "expected a file that data_prep/fit_fragility.py wrote": (other, 6),
        "for vectors of 6 numbers, the model's have 7; fit one for this codec": (path, 7),
    }.items():
        with pytest.raises(UserError, match=line) as caught:
            load_fragility(*arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"of codec 'mini' \(abc\), but the data is of codec xyz; fit one"):
        load_fragility(path, 6, fingerprint="xyz")


def test_learnable_scores_are_predicted_on_held_out_sentences():
    z = torch.randn(1500, 8, generator=torch.Generator().manual_seed(0))
    truth = torch.sigmoid(2 * z[:, 0] - z[:, 1])
    fitted = fit_fragility.fit(z, truth, epochs=15)
    assert fitted.correlation > 0.98
    assert fitted.mse < 0.05 * fitted.mse_of_the_mean
    assert fitted.held_out == 150
    held_out = slice(150, 300)
    error = (fitted.network(z[held_out]) - truth[held_out]).square().mean().item()
    assert error == pytest.approx(fitted.mse), "the network handed back is the one that was judged"
    assert not any(buffer.requires_grad for buffer in fitted.network.buffers())


def test_the_fit_depends_on_the_seed_alone():
    z, truth = torch.randn(100, 4), torch.rand(100)
    first, again, other = (fit_fragility.fit(z, truth, epochs=2, seed=seed).network(z) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_scores_that_nothing_predicts_are_not_predicted():
    """Memorized truth would be seen if the sentences that were fitted were judged."""
    z, truth = torch.randn(1000, 64), torch.rand(1000)
    fitted = fit_fragility.fit(z, truth, epochs=40)
    assert abs(fitted.correlation) < 0.35
    assert fitted.mse > 0.9 * fitted.mse_of_the_mean
    assert fitted.epoch < 15, "the best epoch is an early one"
    stopped_there = fit_fragility.fit(z, truth, epochs=fitted.epoch)
    assert torch.equal(stopped_there.network(z), fitted.network(z)), "what comes after it leaves no trace"


def test_from_sentences_to_the_file(tmp_path, monkeypatch, capsys):
    """Doubled lines count once. F is 1 for what is always lost, near 0 for what always comes back."""
    codec = Brittle(16)
    monkeypatch.setattr(fit_fragility, "load_codec", lambda name: codec)
    (tmp_path / "text.txt").write_text("\n".join(sentences(200) * 2))
    output = tmp_path / "fragility.safetensors"
    assert fit_fragility.main(["--input", str(tmp_path / "text.txt"), "--output", str(output), "--epochs", "60"]) == 0
    told = capsys.readouterr()
    results = json.loads(told.out)
    assert (results["sentences"], results["held_out"]) == (200, 20)
    assert results["output"] == str(output)
    assert results["correlation"] > 0.6
    assert "epoch 1: validation mse" in told.err
    assert "noise level 0.1" in told.err
    vectors = codec.encode(sentences(200))
    scale = Normalizer(16)
    found = load_fragility(output, 16, normalizer=scale, fingerprint="fake")(scale(vectors))
    whole = vectors[:, 0] > 0
    assert found[whole].mean() + 0.3 < found[~whole].mean()


def test_a_report_s_scores_are_taken_as_they_are(tmp_path, monkeypatch, capsys):
    """FragilityNetwork −0.25 is F = 0.75; sentences without one are left out."""
    monkeypatch.setattr(fit_fragility, "load_codec", lambda name: Brittle(16))
    texts = sentences(60)
    rows = [{"text": text, "lang": "eng_Latn", "fragility": -0.25 if i < 50 else None} for i, text in enumerate(texts)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "sentences.parquet")
    command = ["--scores", str(tmp_path / "sentences.parquet"), "--output", str(tmp_path / "f"), "--epochs", "3"]
    assert fit_fragility.main(command) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["sentences"] == 50
    assert results["mean_fragility"] == pytest.approx(0.75)
    assert results["correlation"] is None, "the truth never varies"
    other = {"name": "other", "fingerprint": "xyz"}
    parts = dict.fromkeys(
        ("counts", "reconstruction", "by_length", "noise", "halfway", "agreement", "fragility", "space")
    )
    (tmp_path / "results.json").write_text(json.dumps(parts | {"codec": other}))
    assert fit_fragility.main(command) == 1
    assert "measured on codec 'other', not on --codec=fake" in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit_fragility, "load_codec", lambda name: Brittle(16))
    few, many, spoiled = tmp_path / "few.txt", tmp_path / "many.txt", tmp_path / "spoiled.parquet"
    few.write_text("One.\nTwo.\n")
    many.write_text("\n".join(sentences(30)))
    spoiled.write_text("no parquet")
    for line, arguments in {
        "2 sentences to fit on: expected 20 at least": ["--input", few],
        "does not know the language 'fra_Latn'": ["--input", many, "--lang", "fra_Latn"],
        "expected the sentences.parquet of a codec report": ["--scores", spoiled],
        "--input=": ["--input", tmp_path / "missing.txt"],
        "--epochs=0: expected more than 0": ["--input", many, "--epochs", "0"],
        "--lr=nan": ["--input", many, "--lr", "nan"],
    }.items():
        assert fit_fragility.main([*map(str, arguments), "--output", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err.strip()
        assert line in error.splitlines()[-1]
        assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
