"""A codec is a folder: saving and loading keep it, and a broken folder is reported with its fault."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lcm.codec import load_codec, storage
from lcm.codec.architecture import SonarText
from lcm.codec.codec import PACKAGED
from lcm.errors import UserError

SENTENCES = ["Peace.", "The cat sat on the mat.", "He was born in London."]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the packaged codec."""
    return Path(shutil.copytree(PACKAGED["mini"], tmp_path / "codec"))


def edit_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "codec.safetensors")
    change(tensors)
    save_file(tensors, folder / "codec.safetensors")


def test_a_saved_codec_is_the_same_codec(mini, tmp_path):
    mini.save(tmp_path / "new" / "codec")
    again = load_codec(tmp_path / "new" / "codec", device="cpu")
    vectors = mini.encode(SENTENCES)
    assert torch.equal(again.encode(SENTENCES), vectors)
    assert again.decode(vectors) == mini.decode(vectors)
    assert (again.dim, again.languages, again.max_pieces) == (512, ("eng_Latn",), 61)
    assert again.stop_threshold == mini.stop_threshold == 0.95
    assert again.name == str(tmp_path / "new" / "codec")
    assert {p.name for p in (tmp_path / "new" / "codec").iterdir()} == {*storage.NEEDED, "card.json"}


def test_a_codec_that_has_lost_digits_is_not_saved(tmp_path):
    with pytest.raises(UserError, match=r"load it with dtype=torch.float32"):
        load_codec("mini", device="cpu", dtype=torch.bfloat16).save(tmp_path)


def test_saving_that_fails_leaves_what_was_there(folder, monkeypatch):
    codec = load_codec(folder, device="cpu")

    def full_disk(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(storage, "save_file", full_disk)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OSError, match="no space"):
        storage.save(folder, codec.model, b"another vocabulary", {}, {}, torch.float16)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "nothing new, and nothing left over"


def test_two_tables_of_embeddings_survive_too(toy, tmp_path):
    sizes = replace(toy.sizes, shared_embedding=False)
    model, again = SonarText(sizes), SonarText(sizes)
    storage.save(tmp_path, model, b"", {}, {}, torch.float32)
    names = set(load_file(tmp_path / "codec.safetensors"))
    assert {"text_encoder/encoder_frontend.embed.weight", "text_decoder/decoder_frontend.embed.weight"} <= names
    for part in storage.PARTS:
        storage.load_part(again, part, tmp_path, torch.float32, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_fingerprint_follows_what_makes_the_vectors(mini, folder):
    assert load_codec(folder, device="cpu").fingerprint == mini.fingerprint
    (folder / "card.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=3))
    assert storage.fingerprint(folder) == mini.fingerprint, "the same values, in another layout"
    (folder / "config.json").write_text(json.dumps({**config, "max_pieces": 60}))
    assert storage.fingerprint(folder) != mini.fingerprint
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "spm.model").write_bytes((folder / "spm.model").read_bytes() + b" ")
    assert storage.fingerprint(folder) != mini.fingerprint


def test_the_fingerprint_follows_every_bit_of_the_encoder_and_none_of_the_decoder(toy, tmp_path):
    storage.save(tmp_path, toy, b"", {}, {}, torch.float16)
    whole, before = load_file(tmp_path / "codec.safetensors"), storage.fingerprint(tmp_path)
    encoders = {name for name in whole if name.startswith("text_encoder/")} | {storage.SHARED}

    def changed(tensors):
        save_file(tensors, tmp_path / "codec.safetensors")
        return storage.fingerprint(tmp_path) != before

    assert not changed(whole)
    for name, value in whole.items():
        nudged = value.clone()
        nudged.view(torch.int16).view(-1)[-1] ^= 1
        assert changed({**whole, name: nudged}) == (name in encoders), name
    name, other = "text_encoder/layer_norm.weight", "text_encoder/layer_norm.bias"
    assert changed({**whole, name: whole[name].view(torch.bfloat16)}), "another precision"
    assert changed({**whole, name: whole[name][None]}), "another shape"
    assert changed({**whole, name: whole[other], other: whole[name]}), "other names"


def test_one_file_and_two_of_the_same_codec_share_the_fingerprint(mini, folder, tmp_path):
    storage.save_decoder(tmp_path / "two", folder, mini.model, {"why": "a test"})
    assert storage.fingerprint(tmp_path / "two") == mini.fingerprint
    two = load_codec(tmp_path / "two", device="cpu")
    assert two.card == {**mini.card, "why": "a test"}
    decoded = two.decode(mini.encode(SENTENCES))
    assert decoded == mini.decode(mini.encode(SENTENCES))
    assert torch.equal(two.encode(SENTENCES), mini.encode(SENTENCES))
    mini.save(tmp_path / "one")
    assert storage.fingerprint(tmp_path / "one") == mini.fingerprint, "its weights are fp16 already"


def test_the_decoder_alone_of_two_files_finds_the_shared_table(mini, folder, tmp_path):
    storage.save_decoder(tmp_path, folder, mini.model, {})
    alone = load_codec(tmp_path, device="cpu")
    assert alone.decode(mini.encode(SENTENCES)) == mini.decode(mini.encode(SENTENCES))
    assert torch.equal(alone.encode(SENTENCES), mini.encode(SENTENCES))
    tensors = load_file(tmp_path / "encoder.safetensors")
    save_file({n: v for n, v in tensors.items() if n != storage.SHARED}, tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match=r"encoder.safetensors: 1 missing tensors, the first is shared_embed.weight"):
        load_codec(tmp_path, device="cpu")


def test_without_a_card_the_stop_threshold_is_the_default(folder):
    (folder / "card.json").write_text('{"stop_threshold": 0.8}')
    assert load_codec(folder, device="cpu").stop_threshold == 0.8
    (folder / "card.json").unlink()
    assert load_codec(folder, device="cpu").stop_threshold == 0.95


def test_dead_weights_may_be_there_or_not(folder, mini):
    layers = mini.config["model"]["dec_layers"]
    dead = {
        f"text_decoder/decoder.layers.{layer}.{part}{kind}": torch.ones((mini.dim,) * axes)
        for layer in range(layers)
        for part in storage.DEAD
        for kind, axes in (("weight", 1 if "norm" in part else 2), ("bias", 1))
    }
    edit_weights(folder, lambda tensors: tensors.update(dead))
    assert torch.equal(load_codec(folder, device="cpu").encode(SENTENCES), mini.encode(SENTENCES))
    assert not any(part in name for name in load_file(PACKAGED["mini"] / "codec.safetensors") for part in storage.DEAD)


def test_every_other_difference_in_the_weights_is_refused(folder):
    good = (folder / "codec.safetensors").read_bytes()
    name = "text_encoder/encoder.layers.1.ffn.inner_proj.bias"

    def refused(change, message):
        (folder / "codec.safetensors").write_bytes(good)
        edit_weights(folder, change)
        with pytest.raises(UserError, match=message):
            load_codec(folder, device="cpu")

    refused(lambda tensors: tensors.pop(name), f"1 missing tensors, the first is {name}")
    extra = "text_encoder/encoder.layers.2.ffn.inner_proj.bias"
    refused(lambda tensors: tensors.update({extra: torch.zeros(2)}), f"1 unexpected tensors, the first is {extra}")
    extra = "text_encoder/encoder.layers.0.self_attn.q_proj.weights"
    refused(lambda tensors: tensors.update({extra: torch.zeros(2)}), "1 unexpected")
    refused(
        lambda tensors: tensors.update({name: torch.zeros(7)}), r"has shape \(7,\), expected \(896,\) by config.json"
    )


def test_a_broken_file_is_named(folder):
    for name, message in (
        ("codec.safetensors", "not a whole safetensors file"),
        ("spm.model", "not a SentencePiece vocabulary"),
        ("config.json", "not valid JSON"),
    ):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match=rf"{name}: {message}"):
            load_codec(folder, device="cpu")
        (folder / name).write_bytes(content)


def test_a_decoded_sentence_never_leaves_the_table_of_positions(folder):
    config = json.loads((folder / "config.json").read_text())
    for most, limit in ((20, 20), (100_000, 512 - 2)):
        (folder / "config.json").write_text(json.dumps({**config, "max_generated": most}))
        assert load_codec(folder, device="cpu").rules.limit == limit


def test_a_configuration_without_a_size_is_named(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["model"]["enc_ffn"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config.json: 'enc_ffn' is missing"):
        load_codec(folder, device="cpu")


def test_a_missing_file_is_named_with_the_place_it_was_looked_for(folder):
    (folder / "spm.model").unlink()
    with pytest.raises(UserError) as caught:
        load_codec(folder)
    assert f"no spm.model in {folder}" in str(caught.value)
    assert "'mini'" in str(caught.value)


def test_for_an_unknown_name_the_known_ones_and_the_files_of_a_codec_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_codec("minni")
    message = str(caught.value)
    assert message.startswith("codec 'minni': no codec.safetensors, spm.model, config.json in ")
    assert str(tmp_path / "minni") in message
    assert "expected 'mini', 'sonar', 'sonar-finetuned', or a folder" in message
    assert "\n" not in message


def test_the_package_needs_no_network_and_no_pickle():
    assert {p.name for p in PACKAGED["mini"].iterdir()} == {*storage.NEEDED, "card.json", "README.md", "LICENSE.md"}
