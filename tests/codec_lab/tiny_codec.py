"""A made-up language, documents in it, and the smallest codec that the analytic start has room for."""

import json
import random
from pathlib import Path

import torch

from lcm.codec.architecture import Sizes, SonarText
from lcm.codec_lab.sentences import PublicEncoder
from lcm.codec_lab.settings import CodecTraining

SUBJECTS = ("fox", "boat", "king", "river", "child", "stone")
VERBS = ("sees", "finds", "loves", "makes", "takes")
COLOURS = ("red", "old", "small", "quiet")
SIZES = Sizes(
    vocabulary=200,
    dim=128,
    encoder_layers=2,
    decoder_layers=2,
    encoder_heads=4,
    decoder_heads=4,
    encoder_ffn=240,
    decoder_ffn=400,
)
MAX_PIECES = 14


def sentence(dice):
    return f"A {dice.choice(COLOURS)} {dice.choice(SUBJECTS)} {dice.choice(VERBS)}."


def write_corpus(path, documents=40, seed=0):
    """Documents of three sentences; the fourth of every five is for validation."""
    dice = random.Random(seed)
    rows = [
        {
            "id": f"d{i}",
            "text": " ".join(sentence(dice) for _ in range(3)),
            "split": "validation" if i % 5 == 3 else "train",
        }
        for i in range(documents)
    ]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [row["text"] for row in rows]


def settings_for(folder, *overrides):
    """A run on `folder`/corpus.jsonl into `folder`/run."""
    corpus = folder / "corpus.jsonl"
    if not corpus.is_file():
        write_corpus(corpus)
    values = {
        "model": {
            "vocabulary": 200,
            "reserved": 168,
            "dim": 128,
            "heads": 4,
            "encoder_ffn": 240,
            "decoder_ffn": 400,
            "max_pieces": MAX_PIECES,
        },
        "data": {"text": [str(corpus)], "tokens": 200, "validation_sentences": 12},
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "limit": {"steps": 6},
        "trainer": {"accelerator": "cpu", "validate_every": 3, "checkpoint_every": 3, "log_every": 1},
        "run": {"dir": str(folder / "run")},
    }
    return CodecTraining.parse(values, overrides, where="settings")


def model_with(seed=0):
    torch.manual_seed(seed)
    return SonarText(SIZES)


class FakeTeacher(PublicEncoder):
    """Sentences are alike where they share words. Counts the sentences that it encodes."""

    encoded = 0

    def __init__(self):
        pass

    def encode(self, sentences):
        FakeTeacher.encoded += len(sentences)
        words = [*SUBJECTS, *VERBS, *COLOURS]
        counts = torch.tensor([[float(word in text) for word in words] + [0.1] for text in sentences])
        return torch.nn.functional.normalize(counts, dim=1)


def fake_teacher(folder=None):
    return FakeTeacher()
