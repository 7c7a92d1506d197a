"""Every family is trained, killed, resumed, exported and sampled by the same code."""

import pytest
import torch
from synthetic import DIM, tiny_config, write_data
from test_resume import assert_same_run

from lcm.batch import Batch
from lcm.checkpoint import load_model
from lcm.config import Config, OneTowerConfig, QuantConfig, TwoTowerConfig
from lcm.errors import UserError
from lcm.manifest import open_dataset
from lcm.models.concept_model import Sampling
from lcm.module import LCMModule
from lcm.normalizer import Normalizer
from lcm.quantizer import QuantizerRecord, ResidualQuantizer, save_quantizer
from lcm.train import train

SIZES = {"dim": DIM, "width": 16, "heads": 2, "dropout": 0.2}
KINDS = ["two_tower", "one_tower", "quant_c", "quant_d"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def quantizer(data, tmp_path_factory):
    """Random codebooks that belong to the data."""
    manifest = open_dataset(data)
    normalizer, quantizer = Normalizer(DIM), ResidualQuantizer(3, 5, DIM)
    normalizer.set(torch.tensor(manifest.normalizer.location), torch.tensor(manifest.normalizer.scale))
    quantizer.set(torch.randn(3, 5, DIM, generator=torch.Generator().manual_seed(0)))
    path = tmp_path_factory.mktemp("quantizer") / "quantizer.safetensors"
    save_quantizer(path, quantizer, QuantizerRecord("mini", manifest.codec.fingerprint, "normalised", normalizer))
    return path


def config_of(kind, data, run, quantizer, **changes) -> Config:
    match kind:
        case "two_tower":
            model = TwoTowerConfig(kind=kind, context_layers=1, denoiser_layers=2, **SIZES)
        case "one_tower":
            model = OneTowerConfig(kind=kind, layers=2, max_positions=12, step_width=8, **SIZES)
        case _:
            given = {"codebooks": 3, "units": 5, "quantizer": str(quantizer), **changes}
            model = QuantConfig(kind=kind, layers=2, max_positions=12, step_width=8, **given, **SIZES)
    return tiny_config(data, run).model_copy(update={"model": model})


def steps_of(kind):
    return Sampling() if kind.startswith("quant") else Sampling(steps=4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_broke_goes_on_bit_for_bit_and_its_folder_opens(kind, data, quantizer, tmp_path, monkeypatch):
    straight, resumed = (config_of(kind, data, tmp_path / name, quantizer) for name in ("straight", "resumed"))
    train(straight)
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

    model, config = load_model(tmp_path / "resumed")
    assert config.model.kind == kind
    context = model.eval().prefill([torch.randn(3, DIM), torch.randn(1, DIM)])
    assert model.next(context, steps_of(kind)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_disk_needs_no_other_file_and_says_the_same(kind, data, quantizer, tmp_path):
    train(config_of(kind, data, tmp_path / "run", quantizer))
    (first, _), (second, _) = load_model(tmp_path / "run"), load_model(tmp_path / "run")
    emb, doc = torch.randn(1, 4, DIM), torch.zeros(1, 4, dtype=torch.long)
    batch = Batch(emb, doc, torch.arange(4)[None], doc == 0, torch.tensor([5]), torch.tensor(4))
    one, two = (model.eval().predict(batch, steps_of(kind)) for model in (first, second))
    assert torch.equal(one, two)
    assert one.norm(dim=-1).min() > 0


def test_a_quantizer_of_other_sizes_or_other_data_is_refused(data, quantizer, tmp_path):
    with pytest.raises(UserError, match=r"model\.quantizer=.*3 codebooks of 5 units.*model\.units=6"):
        train(config_of("quant_d", data, tmp_path / "run", quantizer, units=6))
    with pytest.raises(UserError, match=r"model\.quantizer=nowhere: no such file; expected the file"):
        train(config_of("quant_d", data, tmp_path / "run", "nowhere"))
    with pytest.raises(UserError, match=r"model\.quantizer=: is empty; expected the file"):
        train(config_of("quant_d", data, tmp_path / "run", ""))
