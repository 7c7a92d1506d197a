"""Tiny training runs of every model family, and one that breaks."""

import pytest
import torch
from synthetic import DIM, tiny_config

from lcm.config import BaseLCMConfig, Config, OneTowerConfig, QuantConfig, TwoTowerConfig
from lcm.data.manifest import open_dataset
from lcm.models.interface import Normalizer
from lcm.models.quantizer import QuantizerRecord, ResidualQuantizer, save_quantizer
from lcm.training.module import LCMModule
from lcm.training.run import train

SIZES = {"dim": DIM, "width": 16, "heads": 2, "dropout": 0.2}
INTERLEAVED = {"layers": 2, "max_positions": 12, "step_width": 8, **SIZES}


def write_quantizer(data, path):
    """Write a quantizer with random codebooks for the data."""
    manifest = open_dataset(data)
    normalizer, quantizer = Normalizer(DIM), ResidualQuantizer(3, 5, DIM)
    normalizer.set(torch.tensor(manifest.normalizer.location), torch.tensor(manifest.normalizer.scale))
    quantizer.set(torch.randn(3, 5, DIM, generator=torch.Generator().manual_seed(0)))
    save_quantizer(path, quantizer, QuantizerRecord("mini", manifest.codec.fingerprint, "normalised", normalizer))
    return path


def config_of(kind, data, run, quantizer, *overrides, **changes) -> Config:
    """overrides: settings outside the model, as on the command line; changes: settings of the model."""
    match kind:
        case "base":
            model = BaseLCMConfig(**{"kind": kind, "layers": 2, **SIZES, **changes})
        case "two_tower":
            model = TwoTowerConfig(**{"kind": kind, "context_layers": 1, "denoiser_layers": 2, **SIZES, **changes})
        case "one_tower":
            model = OneTowerConfig(**{"kind": kind, **INTERLEAVED, **changes})
        case _:
            given = {"codebooks": 3, "units": 5, "quantizer": str(quantizer)}
            model = QuantConfig(**{"kind": kind, **given, **INTERLEAVED, **changes})
    return tiny_config(data, run, *overrides).model_copy(update={"model": model})


def train_and_break(config, step):
    """Train until an error in this step."""
    original = LCMModule.training_step

    def broken(self, batch, batch_idx):
        if self.global_step == step:
            raise ConnectionError("the machine is gone")
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LCMModule, "training_step", broken)
        with pytest.raises(ConnectionError):
            train(config)
