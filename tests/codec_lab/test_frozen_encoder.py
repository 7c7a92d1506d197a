"""A decoder trained on a frozen encoder: the vectors keep every bit, and what was trained on them stays of use."""

import json

import pytest
import torch
from safetensors.torch import load_file
from stub_codec import InlinePool
from tiny_codec import SIZES, settings_for

from lcm.cli import main
from lcm.codec import load_codec, storage
from lcm.codec_lab.training import train_codec
from lcm.config import Config
from lcm.errors import UserError
from lcm.inference import load
from lcm.prepare import command as prepare_module
from lcm.prepare.command import prepare
from lcm.prepare.options import PrepareOptions
from lcm.training.run import train

SENTENCES = ["A red fox sees.", "A red boat.", "A small fox.", "A fox.", "A old fox loves."]
RECIPES = {
    "robust": ("terms.robust=0.5", "terms.noise=0"),
    "quantized": ("terms.codebooks=2", "terms.units=8", "terms.noise=0"),
}


@pytest.fixture(scope="module", params=RECIPES)
def decoder(request, start, tmp_path_factory):
    """The codec that a recipe has made of `start`."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = (*RECIPES[request.param], f"start={start}", "freeze=encoder", "optimizer.lr=1e-2")
    return train_codec(settings_for(folder, *recipe))


def test_it_encodes_bit_for_bit_as_its_start_and_decodes_otherwise(start, decoder):
    before, after = load_codec(start, device="cpu"), load_codec(decoder, device="cpu")
    vectors = before.encode(SENTENCES)
    assert torch.equal(after.encode(SENTENCES), vectors)
    assert after.fingerprint == before.fingerprint
    assert after.decode(vectors) != before.decode(vectors)
    assert torch.equal(after.encode(SENTENCES), vectors), "loading the decoder leaves the shared table as it was"
    assert after.encoder.embed is after.decoder.embed


def test_only_weights_of_the_decoder_move_and_not_its_table(start, decoder):
    before, after = (load_codec(path, device="cpu").model.state_dict() for path in (start, decoder))
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert len(moved) > 20
    assert all(name.startswith("decoder.") and "embed" not in name for name in moved)


def test_what_is_not_the_decoder_is_copied_and_the_record_is_in_the_card(start, decoder):
    assert {p.name for p in decoder.iterdir()} == {
        "encoder.safetensors", "decoder.safetensors", "spm.model", "config.json", "card.json", "checksums.json",
    }  # fmt: skip
    assert all((decoder / name).read_bytes() == (start / name).read_bytes() for name in ("spm.model", "config.json"))
    whole, kept, new = (load_file(path) for path in (start / storage.WEIGHTS, *decoder.glob("*coder.safetensors")))
    kept, new = (kept, new) if storage.SHARED in kept else (new, kept)
    assert set(whole) == kept.keys() | new.keys()
    assert not kept.keys() & new.keys()
    assert all(torch.equal(whole[name], value) for name, value in kept.items())
    assert {value.dtype for value in (*kept.values(), *new.values())} == {torch.float16}
    record = json.loads((decoder / "card.json").read_text())["training"]
    assert (record["steps"], record["start"]) == (6, str(start))
    assert storage.damaged_files(decoder) == []


def test_the_stored_digest_is_that_of_the_tensors(decoder):
    record = storage.read_json(decoder / storage.CHECKSUMS)["encoder.safetensors"]
    assert record["encoder"] == storage.encoder_digest(decoder / "encoder.safetensors")


def test_codebooks_lie_beside_the_codec(decoder):
    quantized = load_codec(decoder, device="cpu").card["training"]["settings"]["terms"]["codebooks"] == 2
    assert (decoder.parent / "codebooks.safetensors").exists() == quantized


def test_a_model_that_was_trained_on_its_starts_vectors_speaks_through_it(
    start, decoder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(prepare_module, "Pool", InlinePool)
    corpus = str(start.parent.parent / "corpus.jsonl")
    prepare(PrepareOptions(input=(corpus,), output=str(tmp_path / "data"), codec=str(start)))
    model = {"kind": "base", "dim": SIZES.dim, "width": 16, "heads": 2, "layers": 1}
    values = {
        "model": model,
        "data": {"path": [str(tmp_path / "data")], "slots": 16, "rows": 1},
        "trainer": {"max_steps": 2, "precision": "fp32", "devices": 1, "validate_every": 2},
        "run": {"dir": str(tmp_path / "run")},
    }
    train(Config.parse(values, (), where="test"))
    words = ["generate", "--model", str(tmp_path / "run"), "--text", SENTENCES[0], "--max-sentences", "2"]
    capsys.readouterr()
    assert main([*words, "--codec", str(decoder)]) == 0
    spoken = load(tmp_path / "run", codec=decoder, device="cpu").generate(SENTENCES[0], max_sentences=2)
    assert len(spoken.sentences) == 2
    assert capsys.readouterr().out == spoken.text + "\n"  # perhaps nothing but blanks: such a model knows little
    moved = train_codec(settings_for(tmp_path, f"start={start}", f"run.dir={tmp_path / 'moved'}"))
    assert main([*words, "--codec", str(moved)]) == 1
    assert "is not the one that the model was trained on" in capsys.readouterr().err


def test_a_run_into_the_folder_of_another_leaves_nothing_of_it(start, tmp_path):
    """Left behind, the old encoder would be the one that is loaded."""
    recipe = (f"start={start}", "limit.steps=1")
    for freeze in ("none", "encoder", "none"):
        settings = settings_for(tmp_path, *recipe, f"freeze={freeze}")
        (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
        weights = {p.name for p in train_codec(settings).glob("*.safetensors")}
        assert weights == (
            {"codec.safetensors"} if freeze == "none" else {"encoder.safetensors", "decoder.safetensors"}
        )
        assert (tmp_path / "run" / "codec" / "checksums.json").exists() == (freeze == "encoder")


def test_a_language_that_a_frozen_encoder_does_not_know_is_refused(start, tmp_path):
    corpus = tmp_path / "french.jsonl"
    corpus.write_text('{"id": "a", "text": "Le renard voit.", "split": "train"}\n')
    text = f"data.text={json.dumps([{'files': [str(corpus)], 'lang': 'fra_Latn'}])}"
    with pytest.raises(UserError, match="does not know fra_Latn, and learns nothing"):
        train_codec(settings_for(tmp_path, text, f"start={start}", "freeze=encoder"))


def test_decoders_keep_the_precision_of_each_tensor(start, tmp_path):
    """Also where the file holds several, and the model that was trained has fp32."""
    codec = load_codec(start, device="cpu", dtype=torch.float32)
    assert codec.model.sizes == SIZES
    tensors = load_file(start / storage.WEIGHTS)
    exact = "text_decoder/decoder.layer_norm.weight"
    tensors[exact] = tensors[exact].float() + 1e-7
    codec.save(tmp_path / "mixed")
    storage.save_file(tensors, tmp_path / "mixed" / storage.WEIGHTS)
    storage.save_decoder(tmp_path / "new", tmp_path / "mixed", load_codec(tmp_path / "mixed", device="cpu").model, {})
    found = load_file(tmp_path / "new" / storage.DECODER)
    assert torch.equal(found[exact], tensors[exact])
    assert found["text_decoder/decoder.layers.0.ffn.inner_proj.weight"].dtype == torch.float16


def test_the_decoder_learns_beside_the_very_encoder_that_is_saved(start, tmp_path, monkeypatch):
    """Nothing in training moves it, protection included: the decoder would be fitted to vectors that nobody has."""
    saved = []
    monkeypatch.setattr(storage, "save_decoder", lambda folder, origin, model, card: saved.append(model))
    train_codec(settings_for(tmp_path, f"start={start}", "freeze=encoder", "limit.steps=9"))
    before = load_codec(start, device="cpu").model.encoder.state_dict()
    assert all(torch.equal(before[name], value) for name, value in saved[0].encoder.state_dict().items())


def test_robust_training_reads_noised_vectors_and_is_validated_on_both(start, tmp_path):
    losses, records = [], []
    for robust in (0.001, 0.999):
        folder = tmp_path / str(robust)
        folder.mkdir()
        terms = (f"terms.robust={robust}", "terms.noise=0", "terms.unknown=0", "freeze=encoder")
        made = train_codec(settings_for(folder, f"start={start}", *terms, "limit.steps=2", "optimizer.lr=1e-9"))
        rows = (folder / "run" / "metrics.csv").read_text().splitlines()
        losses.append(float(rows[1].split(",")[rows[0].split(",").index("train/loss")]))
        records.append(load_codec(made, device="cpu").card["training"]["validation"])
    assert losses[1] > 5 * losses[0]
    little, much = records
    assert much["loss"] == pytest.approx(little["loss"], rel=1e-3), "the clean one"
    assert much["noised_loss"] > 5 * much["loss"]
    assert little["noised_loss"] == pytest.approx(little["loss"], abs=0.01)
