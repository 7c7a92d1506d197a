"""Held to sonar-space's own loader, tokenizer, encoder and beam search: on small official files and on our weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from official import HEADS, LANGUAGES, TEXT
from safetensors.torch import load_file

from lcm.codec import load_codec
from lcm.codec.official import convert
from lcm.codec.search import beam_search, greedy

pytestmark = pytest.mark.needs("sonar", "fairseq2")

LONGEST = 512
SENTENCES = [*TEXT, "", "a", "The " * 60, TEXT[0] * 5]
GIVEN = json.loads((Path(__file__).parent / "expected" / "expected.json").read_text(encoding="utf-8"))
HERE = Path(__file__).parent
BEAMS = [1, 5]
JOBS = {
    **{
        f"{kind} {lang}": {
            "decoder": f"text_sonar_{kind}_decoder",
            "lang": lang,
            "sentences": SENTENCES,
            "beams": [1, 5],
        }
        for kind in ("basic", "finetuned")
        for lang in ("eng_Latn", "rus_Cyrl", "zul_Latn")
    },
    "mini": {
        "codec": "mini",
        "lang": "eng_Latn",
        "sentences": [row["sentence"] for row in GIVEN[:30]],
        "beams": [1, 5],
    },
}


@pytest.fixture(scope="module")
def codecs(files, converted_folder, tmp_path_factory):
    """Codecs converted from the official files."""
    finetuned = tmp_path_factory.mktemp("codecs") / "finetuned"
    convert(files.encoder, files.finetuned, files.vocabulary, LANGUAGES, finetuned, heads=HEADS)
    folders = {"basic": converted_folder, "finetuned": finetuned, "mini": "mini"}
    return {kind: load_codec(folder, device="cpu") for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def longest(codecs):
    """A sentence of exactly as many pieces as fit."""
    words = "The cat sat on the mat. " * 100
    return next(s for s in (words[:n] for n in range(len(words), 0, -1)) if codecs["basic"].pieces(s) == LONGEST)


@pytest.fixture(scope="module")
def official(files, longest, tmp_path_factory):
    """sonar-space's vectors, texts and pieces for each job."""
    folder = tmp_path_factory.mktemp("run")
    longest_job = {"decoder": "text_sonar_basic_decoder", "lang": "eng_Latn", "sentences": [longest, "a"], "beams": []}
    (folder / "jobs.json").write_text(json.dumps({**JOBS, "longest": longest_job}))
    environment = {**os.environ, "FAIRSEQ2_USER_ASSET_DIR": str(files.cards), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "official_run.py"), str(folder / "jobs.json"), str(folder / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "out.safetensors"), json.loads((folder / "out.json").read_text())


def close(a, b):
    """Equal to 1e-5 of the largest magnitude."""
    return (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("job", JOBS)
def test_vectors_are_sonar_spaces(codecs, official, job):
    vectors = codecs[job.split()[0]].encode(JOBS[job]["sentences"], JOBS[job]["lang"])
    assert close(vectors, official[0][job])


@pytest.mark.parametrize("beam", [1, 5])
@pytest.mark.parametrize("job", JOBS)
def test_pieces_and_texts_are_sonar_spaces(codecs, official, job, beam):
    codec, theirs = codecs[job.split()[0]], official[1][job][str(beam)]
    vectors = official[0][job]
    start = torch.tensor([[codec.tokenizer.end, codec.tokenizer.language(JOBS[job]["lang"])]]).expand(len(vectors), -1)
    rules = (codec.decoder, vectors, start, codec.rules)
    pieces = greedy(*rules) if beam == 1 else beam_search(*rules, beam)
    assert pieces == [row["pieces"] for row in theirs]
    assert codec.decode(vectors, JOBS[job]["lang"], beam=beam) == [row["text"] for row in theirs]


def test_the_outputs_compared_have_many_lengths_up_to_the_limit(official, codecs):
    lengths = {
        len(row["pieces"]) for job in JOBS if job != "mini" for rows in official[1][job].values() for row in rows
    }
    assert len(lengths) > 12
    assert 0 in lengths
    assert max(lengths) == codecs["basic"].rules.limit == 191


def test_the_longest_sentence_that_fits_is_encoded_whole(codecs, official, longest, caplog):
    vectors = codecs["basic"].encode([longest, "a"], "eng_Latn")
    assert not caplog.records
    assert close(vectors, official[0]["longest"])
    codecs["basic"].encode([longest + " cat"])
    assert "1 of 1 sentences were cut to 512 pieces" in caplog.text


def test_mixed_languages_equal_each_language_alone(codecs, official):
    codec, langs = codecs["basic"], ["eng_Latn", "rus_Cyrl", "zul_Latn"]
    vectors = codec.encode([SENTENCES[0]] * 3, langs)
    assert close(vectors, torch.stack([official[0][f"basic {lang}"][0] for lang in langs]))
    assert codec.decode(vectors, langs) == [official[1][f"basic {lang}"]["1"][0]["text"] for lang in langs]


@pytest.mark.parametrize("name", ["sonar", "sonar-finetuned"])
def test_the_codec_named_sonar_comes_from_the_asset_store(files, codecs, tmp_path, name):
    (tmp_path / "in.txt").write_text("\n".join(TEXT))
    environment = {**os.environ, "FAIRSEQ2_USER_ASSET_DIR": str(files.cards), "LCM_CACHE": str(tmp_path / "cache")}
    program = "import sys, lcm.codec.official as s; from lcm.cli import main; s.HEADS = 4; sys.exit(main(sys.argv[1:]))"
    words = ["encode", "--input", "in.txt", "--output", "out.npy", "--codec", name, "--lang", "fra_Latn"]
    for missing in (False, True):  # the second time, from our own cache alone
        if missing:
            environment["FAIRSEQ2_USER_ASSET_DIR"] = str(tmp_path)
        done = subprocess.run(
            [sys.executable, "-c", program, *words], env=environment, cwd=tmp_path, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        import numpy as np

        kind = "basic" if name == "sonar" else "finetuned"
        assert close(torch.from_numpy(np.load(tmp_path / "out.npy")), codecs[kind].encode(TEXT, "fra_Latn"))
        (tmp_path / "out.npy").unlink()


def test_our_list_of_languages_is_the_cards():
    import sonar
    import yaml

    for card in ("basic_encoder", "basic_decoder", "finetuned_decoder"):
        text = (Path(sonar.__file__).parent / "cards" / f"text_sonar_{card}.yaml").read_text()
        assert next(iter(yaml.safe_load_all(text)))["tokenizer_config"]["_set_"]["langs"] == LANGUAGES
