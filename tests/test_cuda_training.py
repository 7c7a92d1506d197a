"""`lcm train` on a GPU: it learns what the CPU learns, and goes on bit for bit where torch promises determinism."""

import csv
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning
import pytest
import torch
from on_cuda import SEARCHED, TESTS, needs_cuda
from synthetic import DIM, tiny_config, write_data

from lcm.checkpoint import latest, open_checkpoint
from lcm.config import BaseLCMConfig, OneTowerConfig, QuantConfig, TwoTowerConfig, save_config
from lcm.manifest import open_dataset
from lcm.module import LCMModule
from lcm.normalizer import Normalizer
from lcm.quantizer import QuantizerRecord, ResidualQuantizer, save_quantizer
from lcm.train import train

pytestmark = needs_cuda


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def config_of(kind, data, run, *overrides):
    """tests/synthetic.py's run, of any family."""
    sizes = {"dim": DIM, "width": 16, "heads": 2, "dropout": 0.2}
    interleaved = {"layers": 2, "max_positions": 12, "step_width": 8}
    match kind:
        case "base":
            model = BaseLCMConfig(kind=kind, layers=2, **sizes)
        case "two_tower":
            model = TwoTowerConfig(kind=kind, context_layers=1, denoiser_layers=2, **sizes)
        case "one_tower":
            model = OneTowerConfig(kind=kind, **interleaved, **sizes)
        case _:
            codebooks = {"codebooks": 3, "units": 5, "quantizer": str(fitted(data))}
            model = QuantConfig(kind=kind, **codebooks, **interleaved, **sizes)
    return tiny_config(data, run, *overrides).model_copy(update={"model": model})


def fitted(data):
    """Random codebooks that belong to the data."""
    manifest, path = open_dataset(data), data / "quantizer.safetensors"
    normalizer, quantizer = Normalizer(DIM), ResidualQuantizer(3, 5, DIM)
    normalizer.set(torch.tensor(manifest.normalizer.location), torch.tensor(manifest.normalizer.scale))
    quantizer.set(torch.randn(3, 5, DIM, generator=torch.Generator().manual_seed(0)))
    save_quantizer(path, quantizer, QuantizerRecord("mini", manifest.codec.fingerprint, "normalised", normalizer))
    return path


def logged(run):
    """All metrics but those of the speed."""
    with Path(run, "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if "second" not in k and "mfu" not in k} for row in csv.DictReader(file)]


def assert_same_run(straight, resumed):
    for name in ("last.ckpt", "best.ckpt"):
        one, two = (open_checkpoint(run / "checkpoints" / name) for run in (straight, resumed))
        for part in ("global_step", "state_dict", "optimizer_states", "ConceptData"):
            torch.testing.assert_close(one[part], two[part], rtol=0, atol=0)
    assert (straight / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    assert logged(straight) == logged(resumed)


@pytest.mark.parametrize("kind", ["base", "two_tower", "one_tower", "quant_c", "quant_d"])
def test_a_run_that_broke_goes_on_bit_for_bit(kind, data, tmp_path, deterministic, monkeypatch, capsys):
    """With dropout, in bf16, under torch.use_deterministic_algorithms."""
    names = ("straight", "resumed")
    straight, resumed = (config_of(kind, data, tmp_path / name, "trainer.precision=bf16") for name in names)
    train(straight)
    assert "on cuda" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        original = LCMModule.training_step

        def broken(self, batch, batch_idx):
            if self.global_step == 7:
                raise ConnectionError("the machine is gone")
            return original(self, batch, batch_idx)

        patch.setattr(LCMModule, "training_step", broken)
        with pytest.raises(ConnectionError):
            train(resumed)
    train(resumed)
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_a_killed_run_goes_on_bit_for_bit(data, tmp_path, deterministic):
    """Through a real SIGKILL in the middle of a step, with reader threads and pinned memory; in bf16."""
    settings = ["trainer.precision=bf16", "trainer.accumulate=3", "data.workers=2"]
    straight, resumed = (config_of("two_tower", data, tmp_path / name, *settings) for name in ("straight", "resumed"))
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
