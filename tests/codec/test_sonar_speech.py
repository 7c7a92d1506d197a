"""SONAR's speech encoder: sonar-space's own loader and pipeline on a small official checkpoint, through lcm prepare."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lcm.codec.sonar_space import SonarSpeech, speech_card
from lcm.data.shards import read_documents
from lcm.errors import UserError

TESTS = Path(__file__).parents[1]
LENGTHS = (0.7, 1.5, 1.1)
WRITE = """
import sys
from pathlib import Path
import soundfile, torch
from fairseq2 import init_fairseq2
init_fairseq2()
from tiny_speech import write_tiny_speech
write_tiny_speech(Path(sys.argv[1]), dim=4)
"""
OFFICIAL = """
import json, sys
import soundfile
from sonar.inference_pipelines.speech import SpeechToEmbeddingModelPipeline
pipeline = SpeechToEmbeddingModelPipeline(encoder="sonar_speech_encoder_eng")
json.dump(pipeline.predict(sys.argv[2:], batch_size=1).tolist(), open(sys.argv[1], "w"))
"""


def run(*command, cards):
    environment = {
        **os.environ,
        "FAIRSEQ2_USER_ASSET_DIR": str(cards),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(TESTS),
    }
    return subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.needs("sonar", "fairseq2")
def test_a_file_becomes_the_vector_that_sonar_space_gives_it(tmp_path):
    generator = np.random.default_rng(0)
    files = [tmp_path / f"{i}.wav" for i in range(len(LENGTHS))]
    for path, seconds in zip(files, LENGTHS, strict=True):
        soundfile.write(path, generator.uniform(-0.5, 0.5, round(seconds * 16_000)), 16_000)
    cards = tmp_path / "cards"
    cards.mkdir()
    for command in (("-c", WRITE, tmp_path), ("-c", OFFICIAL, tmp_path / "official.json", *files)):
        done = run(*command, cards=cards)
        assert done.returncode == 0, done.stderr
    rows = [{"id": f"d{i}", "wav": path.name, "split": "train", "lang": "eng_Latn"} for i, path in enumerate(files)]
    rows.append({**rows[0], "id": "d9", "wav": "gone.wav"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--input", tmp_path / "rows.jsonl", "--output", tmp_path / "data", "--audio-column", "wav"]
    made = run(TESTS / "stub_codec.py", *arguments, "--workers", 1, cards=cards)
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1].startswith(f"{tmp_path / 'data'}: 3 documents (3 train")
    assert "1 no such audio file" in made.stderr
    documents = list(read_documents(tmp_path / "data", "train"))
    ours = np.stack([document.vectors[0] for document in documents]).astype(np.float64)
    official = np.array(json.loads((tmp_path / "official.json").read_text()))
    assert np.abs(ours - official).max() < 2e-3 * np.abs(official).max()  # half precision
    assert np.abs(official[0] - official[1]).max() > 0.02 * np.abs(official).max()
    again = run(
        TESTS / "stub_codec.py", *arguments[:-2], "--audio-column", "wav", "--speech-encoder", "no", cards=cards
    )
    assert "--speech-encoder not given, now no" in again.stderr


def test_without_sonar_space_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fairseq2", None)
    with pytest.raises(UserError, match=r"pip install 'lcm-train\[sonar\]'"):
        SonarSpeech()


@pytest.mark.parametrize(("lang", "card"), [("fra_Latn", "fra"), ("zho_Hans", "cmn"), ("yue_Hant", "yue")])
def test_a_language_has_the_card_of_its_first_letters(lang, card):
    assert speech_card(lang) == f"sonar_speech_encoder_{card}"
