"""Official SONAR files → a codec: what is read, what is refused, where it is kept, and what it costs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from official import HEADS, LANGUAGES, TEXT, state, to_fairseq
from safetensors.torch import load_file, save_file

from lcm.codec import load_codec, official, storage
from lcm.codec.official import convert, read_checkpoint
from lcm.errors import UserError

sys.path.append(str(Path(__file__).parents[2] / "data_prep"))
import convert_sonar

SENTENCES = [*TEXT, "", "a"]


@pytest.fixture(scope="module")
def folder(converted_folder):
    return converted_folder


def converted(files, folder, **other):
    given = {"encoder": files.encoder, "decoder": files.decoder, "vocabulary": files.vocabulary, "languages": LANGUAGES}
    convert(**{**given, **other}, folder=folder, heads=HEADS)
    return folder


def test_every_language_has_the_token_after_those_before_it(folder):
    codec = load_codec(folder, device="cpu")
    assert codec.languages == tuple(LANGUAGES)
    assert len(codec.languages) == 202
    pieces = codec.tokenizer._model.get_piece_size()
    assert [codec.tokenizer.language(code) for code in LANGUAGES] == list(range(1 + pieces, 1 + pieces + 202))
    assert len({tuple(v.tolist()) for v in codec.encode(["a"] * 202, LANGUAGES)}) == 202
    with pytest.raises(UserError, match=r"lang='fre_Latn': this codec knows f.*\(202 in all\)"):
        codec.encode(["a"], "fre_Latn")


def test_pieces_are_those_of_the_file_behind_the_padding(folder):
    codec = load_codec(folder, device="cpu")
    plain = codec.tokenizer._model.encode(TEXT[0])
    assert codec.tokenizer.encode([TEXT[0]]) == [[piece + 1 for piece in plain]]
    language = codec.tokenizer.language("fra_Latn")
    assert codec.tokenizer.decode([language, *(piece + 1 for piece in plain), 0, 3, language]) == TEXT[0]
    assert codec.tokenizer.banned == [0]
    assert codec.rules.limit == 64 + 128 - 1


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("module", [False, True])
def test_fairseq_and_fairseq2_names_give_the_same_weights(tmp_path, part, module):
    tensors = state(part, 40, seed=5)
    torch.save({"model": tensors}, tmp_path / "new.pt")
    torch.save({"state_dict": to_fairseq(tensors, part, module)}, tmp_path / "old.pt")
    new, old = read_checkpoint(tmp_path / "new.pt", part), read_checkpoint(tmp_path / "old.pt", part)
    assert set(new) == set(old)
    assert all(torch.equal(new[name], old[name]) for name in new)
    assert not any("encoder_decoder_attn.q_proj" in name or "final_proj" in name for name in new)


def test_old_files_that_cannot_be_mapped_are_read_too(files, folder, tmp_path):
    torch.save(torch.load(files.encoder), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    again = converted(files, tmp_path / "again", encoder=tmp_path / "old.pt")
    assert storage.fingerprint(again) == storage.fingerprint(folder)


def test_the_fingerprint_is_the_encoders_alone(files, folder, tmp_path):
    other = converted(files, tmp_path / "finetuned", decoder=files.finetuned)
    assert storage.fingerprint(other) == storage.fingerprint(folder)
    vectors = load_codec(folder, device="cpu").encode(SENTENCES)
    assert torch.equal(load_codec(other, device="cpu").encode(SENTENCES), vectors)
    assert load_codec(other, device="cpu").decode(vectors) != load_codec(folder, device="cpu").decode(vectors)
    changed = state("encoder", storage.read_json(folder / "config.json")["model"]["vocab"], seed=9)
    torch.save({"model": changed}, tmp_path / "changed.pt")
    another = converted(files, tmp_path / "another", encoder=tmp_path / "changed.pt")
    assert storage.fingerprint(another) != storage.fingerprint(folder)


def test_checksums_are_those_of_the_files_and_tell_damage(files, tmp_path):
    folder = converted(files, tmp_path / "codec")
    known = storage.read_json(folder / "checksums.json")
    assert set(known) == {"encoder.safetensors", "decoder.safetensors", "spm.model", "config.json"}
    assert all(record["sha256"] == storage.sha256(folder / name) for name, record in known.items())
    assert storage.damaged_files(folder) == []
    assert known["encoder.safetensors"]["encoder"] == storage.encoder_digest(folder / "encoder.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "encoder_digest", None)
        before = storage.fingerprint(folder)  # without reading what may be gigabytes
    content = bytearray((folder / "encoder.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "encoder.safetensors").write_bytes(content)
    assert storage.damaged_files(folder) == ["encoder.safetensors"]
    save_file({"text_encoder/x": torch.zeros(3)}, folder / "encoder.safetensors")
    assert storage.fingerprint(folder) != before, "another size: what is stored must not count"


def test_encoding_never_loads_the_decoder(folder):
    codec = load_codec(folder, device="cpu")
    codec.encode(["a"])
    assert all(p.is_meta for p in codec._model.decoder.parameters())
    assert not any(p.is_meta for p in codec._model.encoder.parameters())
    codec.decode(torch.zeros(1, 64))
    assert not any(p.is_meta for p in codec._model.decoder.parameters())


def test_weights_in_their_own_precision_stay_in_the_file(folder):
    """Their memory is the file's, shared with every other process; in bfloat16 they are copies."""
    mapped = load_codec(folder, device="cpu").encoder.layers[0].ffn.inner_proj.weight
    copied = load_codec(folder, device="cpu", dtype=torch.bfloat16).encoder.layers[0].ffn.inner_proj.weight

    def file_of(tensor):
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            if start <= tensor.data_ptr() < end:
                return line.split()[-1]
        return None

    assert file_of(mapped) == str(folder / "encoder.safetensors")
    assert file_of(copied) != str(folder / "encoder.safetensors")
    assert copied.dtype == torch.bfloat16


def test_half_precision_keeps_the_meaning(folder, files, tmp_path):
    exact = load_codec(folder, device="cpu").encode(SENTENCES)
    convert(
        files.encoder, files.decoder, files.vocabulary, LANGUAGES, tmp_path / "half", heads=HEADS, dtype=torch.float16
    )
    assert load_file(tmp_path / "half" / "encoder.safetensors")["text_encoder/layer_norm.weight"].dtype == torch.float16
    for codec in (load_codec(tmp_path / "half", device="cpu"), load_codec(folder, device="cpu", dtype=torch.float16)):
        found = codec.encode(SENTENCES)
        assert found.dtype == torch.float32
        assert not torch.equal(found, exact)
        assert torch.cosine_similarity(found, exact).min() > 0.999


def refused(files, tmp_path, message, **other):
    with pytest.raises(UserError, match=message) as caught:
        converted(files, tmp_path / "refused", **other)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "refused").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".refused")], "left something behind"


def test_files_that_do_not_belong_are_refused_and_nothing_is_left(files, tmp_path):
    refused(files, tmp_path, "not a SONAR text encoder.* is it the other one", encoder=files.decoder)
    refused(files, tmp_path, "not a SONAR text decoder.* is it the other one", decoder=files.encoder)
    refused(files, tmp_path, "201 languages make .* they do not belong together", languages=LANGUAGES[:-1])
    refused(files, tmp_path, "not a SentencePiece vocabulary", vocabulary=files.encoder)
    refused(files, tmp_path, "not a checkpoint that torch can read", encoder=files.vocabulary)
    (tmp_path / "empty.pt").touch()
    refused(files, tmp_path, "empty.pt: not a checkpoint that torch can read", encoder=tmp_path / "empty.pt")
    torch.save({"model": state("decoder", 50, seed=1)}, tmp_path / "other.pt")
    refused(files, tmp_path, "50 pieces and 64 dimensions, but the encoder has", decoder=tmp_path / "other.pt")
    untied = torch.load(files.decoder)
    untied["model"]["final_proj.weight"] = untied["model"]["final_proj.weight"] + 1
    torch.save(untied, tmp_path / "untied.pt")
    refused(files, tmp_path, "output embedding differs", decoder=tmp_path / "untied.pt")


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("owned"),))


def test_a_pickle_is_never_executed(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"x": Malicious()}}, tmp_path / "bad.pt")
    refused(files, tmp_path, "not a checkpoint that torch can read safely", encoder=tmp_path / "bad.pt")
    assert not (tmp_path / "owned").exists()


def test_a_conversion_that_is_cut_short_leaves_nothing(files, tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError(28, "no space left")

    monkeypatch.setattr(official.storage, "checksum", full_disk)
    with pytest.raises(OSError, match="no space"):
        converted(files, tmp_path / "codec")
    assert list(tmp_path.iterdir()) == []


def test_a_faster_process_wins_and_a_strangers_folder_stays(files, folder, tmp_path):
    first = converted(files, tmp_path / "codec")
    before = (first / "encoder.safetensors").stat().st_ino
    converted(files, tmp_path / "codec")
    assert (first / "encoder.safetensors").stat().st_ino == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists, and is not a codec"):
        converted(files, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_the_script_makes_the_same_codec(files, folder, tmp_path, capsys, monkeypatch):
    words = ["--encoder", files.encoder, "--decoder", files.decoder, "--vocabulary", files.vocabulary, "--heads", HEADS]
    assert convert_sonar.main([*map(str, words), "--output", str(tmp_path / "codec")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'codec'}\n"
    assert storage.fingerprint(tmp_path / "codec") == storage.fingerprint(folder)
    assert json.loads((tmp_path / "codec" / "card.json").read_text())["converted_from_sha256"].keys() == {
        "sonar_text_encoder.pt", "sonar_text_decoder.pt", "sentencepiece.source.256000.model",
    }  # fmt: skip
    assert convert_sonar.main([*map(str, words), "--output", str(tmp_path / "x"), "--encoder", "nowhere.pt"]) == 1
    assert "convert_sonar: --encoder" in capsys.readouterr().err
    monkeypatch.setattr(convert_sonar, "convert", interrupted)
    assert convert_sonar.main([*map(str, words), "--output", str(tmp_path / "x")]) == 130
    assert capsys.readouterr().err == "convert_sonar: interrupted\n"
