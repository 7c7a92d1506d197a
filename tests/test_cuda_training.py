"""`lcm train` on a GPU: it learns what the CPU learns, and goes on bit for bit where torch promises determinism."""

import os
import subprocess
import sys
from functools import partial

import lightning
import pytest
import torch
from family_runs import config_of, train_and_break, write_quantizer
from on_cuda import SEARCHED, TESTS, needs_cuda
from same_run import assert_same_run
from synthetic import tiny_config, write_data

from lcm.config import save_config
from lcm.training.checkpoint import latest, open_checkpoint
from lcm.training.run import train

pytestmark = needs_cuda


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def quantizer(data):
    return write_quantizer(data, data / "quantizer.safetensors")


@pytest.mark.parametrize("kind", ["base", "two_tower", "one_tower", "quant_c", "quant_d"])
def test_a_run_that_broke_goes_on_bit_for_bit(kind, data, quantizer, tmp_path, deterministic, capsys):
    """With dropout, in bf16, under torch.use_deterministic_algorithms."""
    names = ("straight", "resumed")
    straight, resumed = (config_of(kind, data, tmp_path / name, quantizer, "trainer.precision=bf16") for name in names)
    train(straight)
    assert "on cuda" in capsys.readouterr().err
    train_and_break(resumed, step=7)
    train(resumed)
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_a_killed_run_goes_on_bit_for_bit(data, tmp_path, deterministic):
    """Through a real SIGKILL in the middle of a step, with reader threads and pinned memory; in bf16."""
    settings = ["trainer.precision=bf16", "trainer.accumulate=3", "data.workers=2"]
    straight, resumed = (
        config_of("two_tower", data, tmp_path / name, None, *settings) for name in ("straight", "resumed")
    )
    save_config(resumed, tmp_path / "killed.yaml")
    script = """
import runpy, sys, torch
torch.use_deterministic_algorithms(True)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    killed = subprocess.run(
        [sys.executable, "-c", script, str(TESTS / "synthetic.py"), str(tmp_path / "killed.yaml"), "7", "1"],
        env={**os.environ, "PYTHONPATH": SEARCHED},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    assert open_checkpoint(latest(tmp_path / "resumed"))["global_step"] == 6
    train(resumed)
    train(straight)
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


@pytest.mark.filterwarnings("ignore:GPU available but not used")
def test_training_on_a_gpu_is_training_on_the_cpu(data, tmp_path, monkeypatch):
    """Twelve steps in fp32 without dropout: the same weights to 1e-3 of the largest."""
    states = []
    for name in ("gpu", "cpu"):
        if name == "cpu":
            monkeypatch.setattr("lightning.Trainer", partial(lightning.Trainer, accelerator="cpu"))
        train(tiny_config(data, tmp_path / name, "model.dropout=0", "optimizer.lr=1e-3"))
        states.append(open_checkpoint(latest(tmp_path / name))["state_dict"])
    for tensor, found in zip(states[1].values(), states[0].values(), strict=True):
        torch.testing.assert_close(found, tensor, rtol=0, atol=1e-3 * max(float(tensor.abs().max()), 1e-2))
