"""Training continues from a converted SONAR codec: its ids, its limits, its two embedding tables."""

import json

import pytest
import torch
from official import TEXT
from safetensors.torch import load_file

from lcm.codec import load_codec, storage
from lcm.codec_lab.settings import CodecTraining
from lcm.codec_lab.start import make_start
from lcm.codec_lab.training import train_codec


def test_the_start_reads_and_writes_pieces_as_the_codec_does(converted_folder):
    codec = load_codec(converted_folder, device="cpu")
    start = make_start(CodecTraining(start=str(converted_folder), limit={"steps": 1}), [], ["fra_Latn"])
    assert start.tokenizer.encode(TEXT) == codec.tokenizer.encode(TEXT)
    assert start.tokenizer.banned == codec.tokenizer.banned == [0]
    assert start.tokenizer.languages == codec.tokenizer.languages
    first = codec.tokenizer.encode(["cat sat"])[0][0]
    assert start.starts_word[first]
    assert not start.starts_word[[0, 1, 2, 3]].any(), "padding and signs begin no word"
    assert not start.starts_word[codec.tokenizer.language("fra_Latn")]


def test_a_run_of_one_step_leaves_a_codec_that_reads_alike(converted_folder, tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(TEXT * 3))
    (tmp_path / "held.txt").write_text("A cat sat on a mat.\n")
    data = {"text": [str(tmp_path / "text.txt")], "held_out": [str(tmp_path / "held.txt")]}
    settings = {"start": str(converted_folder), "data": data, "limit": {"steps": 1}, "run": {"dir": str(tmp_path)}}
    settings["optimizer"] = {"lr": 1e-12}
    folder = train_codec(CodecTraining(**settings))
    before, after = load_codec(converted_folder, device="cpu"), load_codec(folder, device="cpu")
    assert (after.max_pieces, after.rules) == (before.max_pieces, before.rules)
    vectors = before.encode(TEXT, "fra_Latn")
    assert torch.cosine_similarity(after.encode(TEXT, "fra_Latn"), vectors).min() > 0.999, "weights are saved in fp16"


@pytest.mark.parametrize("recipe", [{"robust": 0.5}, {"codebooks": 2, "units": 8}], ids=["robust", "quantized"])
def test_a_new_decoder_leaves_the_encoder_its_digits_and_its_fingerprint(converted_folder, tmp_path, recipe):
    (tmp_path / "text.txt").write_text("\n\n".join(TEXT))
    (tmp_path / "held.txt").write_text("A cat sat on a mat.\n")
    data = {"text": [str(tmp_path / "text.txt")], "held_out": [str(tmp_path / "held.txt")]}
    settings = {"start": str(converted_folder), "freeze": "encoder", "data": data, "run": {"dir": str(tmp_path)}}
    settings |= {"terms": {**recipe, "noise": 0}, "optimizer": {"lr": 1e-2}, "limit": {"steps": 3}}
    folder = train_codec(CodecTraining(**settings))
    before, after = load_codec(converted_folder, device="cpu"), load_codec(folder, device="cpu")
    vectors = before.encode(TEXT, "fra_Latn")
    assert torch.equal(after.encode(TEXT, "fra_Latn"), vectors)
    assert after.decode(vectors) != before.decode(vectors)
    for name in ("encoder.safetensors", "spm.model", "config.json"):
        assert (folder / name).read_bytes() == (converted_folder / name).read_bytes(), name
    records = [json.loads((path / "checksums.json").read_text()) for path in (folder, converted_folder)]
    assert records[0]["encoder.safetensors"] == records[1]["encoder.safetensors"]
    assert after.fingerprint == before.fingerprint == storage.fingerprint(folder)
    assert after.stop_threshold == before.stop_threshold == 0.9
    assert after.decoder.embed is not after.encoder.embed
    assert not torch.equal(after.decoder.embed.weight, before.decoder.embed.weight), "SONAR's own table learns"
    dtypes = {value.dtype for value in load_file(folder / "decoder.safetensors").values()}
    assert dtypes == {torch.float32}
