"""A compiled encoder: the vectors of the plain one, compiled once for batches of every shape."""

import os
import subprocess
import sys

import pytest

from lcm.cli import main

EVERY_SHAPE = """
import random, sys
from torch._dynamo.utils import counters
from lcm.codec import load_codec

folder = sys.argv[1]
eager, compiled = (load_codec(folder, device="cpu", compile_encoder=c) for c in (False, True))
dice, words = random.Random(0), "the cat sat on a mat and he was born in London".split()
longest = ["mat " * 600] * 3
compiled.encode(["The cat sat on the mat. " * 40] * 30)
for rows in (1, 2, 3, 5, 8, 9, 17, 24, 60, *([1] * 6), *([7] * 6)):
    sentences = [" ".join(dice.choices(words, k=dice.randint(0, 50))) for _ in range(rows)]
    for batch in (sentences, ["The cat sat."] * rows, longest[:rows]):
        exact, found = eager.encode(batch), compiled.encode(batch)
        assert (found - exact).abs().max() <= 1e-5 * exact.abs().max(), (rows, batch[0])
assert compiled.encoder._compiled_call_impl is not None
print(counters["stats"]["unique_graphs"])
"""
SHORT_FIRST = """
import sys
from lcm.codec import load_codec

compiled = load_codec(sys.argv[1], device="cpu", compile_encoder=True)
compiled.encode(["a"])
"""
HASH = """
vectors = compiled.encode(["The cat sat on the mat.", "He was born in London.", "a"])
print(hash(tuple(vectors.flatten().tolist())))
"""


def printed(program, *words, **environment):
    """In another process, because the shape checks of the tests cannot be compiled."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def every_shape(converted_folder, tmp_path_factory):
    """The output of EVERY_SHAPE, and the hash of three vectors after it."""
    cache = str(tmp_path_factory.mktemp("cache"))
    return printed(EVERY_SHAPE + HASH, converted_folder, TORCHINDUCTOR_CACHE_DIR=cache).splitlines()


@pytest.mark.slow
def test_many_shapes_are_compiled_once_and_change_no_vector(every_shape):
    """Two graphs: the padding mask asks for what is in the batch, and cuts the encoder in two."""
    assert every_shape[0] == "2"


@pytest.mark.slow
def test_the_bits_do_not_depend_on_what_was_encoded_first(every_shape, converted_folder, tmp_path):
    """Thirty long sentences there, one letter here; each compiled anew."""
    cache = str(tmp_path / "cache")
    assert printed(SHORT_FIRST + HASH, converted_folder, TORCHINDUCTOR_CACHE_DIR=cache) == every_shape[1]


@pytest.mark.slow
def test_without_a_compiler_the_error_is_one_line(converted_folder, tmp_path):
    (tmp_path / "in.txt").write_text("A cat.\n")
    paths = ["--input", tmp_path / "in.txt", "--output", tmp_path / "out.npy", "--codec", converted_folder]
    words = [sys.executable, "-m", "lcm.cli", "encode", "--compile", *map(str, paths)]
    environment = {**os.environ, "CXX": "/no/such", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("lcm encode: the encoder cannot be compiled here (InvalidCxxCompiler")
    assert line.endswith("lcm doctor looks for a compiler")
    assert "Traceback" not in done.stderr


def test_the_encode_command_compiles_with_its_option(monkeypatch, tmp_path, mini):
    asked = []
    monkeypatch.setattr("lcm.codec.command.load_codec", lambda name, **options: asked.append(options) or mini)
    (tmp_path / "in.txt").write_text("A cat.\n")
    words = ["encode", "--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.npy")]
    assert main(words) == main([*words, "--compile"]) == 0
    assert asked == [{"compile_encoder": False}, {"compile_encoder": True}]


def test_batches_of_a_compiled_encoder_have_padding_two_rows_and_widths_in_eights(monkeypatch, mini):
    """Any other batch would be compiled for anew; and the rows that are added are not in the result."""
    sentences = ["a", "The cat sat on the mat.", "He was born in London and studied at Cambridge."]
    batches = (sentences, sentences[:1], sentences[1:2] * 4, [sentences[2] * 9] * 2)
    plain = [mini.encode(batch) for batch in batches]
    shapes, forward = [], mini.encoder.forward

    def seen(pieces, lengths):
        shapes.append((*pieces.shape, lengths.min().item()))
        return forward(pieces, lengths)

    monkeypatch.setattr(mini, "compile_encoder", True)
    monkeypatch.setattr(mini.encoder, "forward", seen)
    for batch, exact in zip(batches, plain, strict=True):
        found = mini.encode(batch)
        assert found.shape == exact.shape
        assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()
    assert len(shapes) == len(batches)
    assert all(rows >= 2 and width % 8 == 0 and shortest < width for rows, width, shortest in shapes), shapes
