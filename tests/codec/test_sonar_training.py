"""Training goes on from a converted SONAR codec: its ids, its limits, its two tables of embeddings."""

import torch
from official import TEXT

from lcm.codec import load_codec
from lcm.codec_training.settings import parse_settings
from lcm.codec_training.start import make_start
from lcm.codec_training.training import train_codec


def test_the_start_reads_and_writes_pieces_as_the_codec_does(converted_folder):
    codec = load_codec(converted_folder, device="cpu")
    start = make_start(parse_settings({"start": str(converted_folder), "limit": {"steps": 1}}), [], ["fra_Latn"])
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
    folder = train_codec(parse_settings(settings))
    before, after = load_codec(converted_folder, device="cpu"), load_codec(folder, device="cpu")
    assert (after.max_pieces, after.rules) == (before.max_pieces, before.rules)
    vectors = before.encode(TEXT, "fra_Latn")
    assert torch.cosine_similarity(after.encode(TEXT, "fra_Latn"), vectors).min() > 0.999, "weights are saved in fp16"
