"""Every model family is trained, killed, resumed, loaded and sampled by the same code."""

import pytest
import torch
import yaml
from family_runs import config_of, train_and_break, write_quantizer
from same_run import assert_same_run
from synthetic import DIM, write_data

from lcm.batch import Batch
from lcm.config import load_config
from lcm.errors import UserError
from lcm.models import load_model
from lcm.models.interface import Sampling
from lcm.settings import read_yaml
from lcm.training.checkpoint import export, latest, open_checkpoint
from lcm.training.run import train

KINDS = ["two_tower", "one_tower", "quant_c", "quant_d"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def quantizer(data, tmp_path_factory):
    return write_quantizer(data, tmp_path_factory.mktemp("quantizer") / "quantizer.safetensors")


def steps_of(kind):
    return Sampling() if kind.startswith("quant") else Sampling(steps=4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_run_resumes_bit_for_bit_and_its_folder_loads(kind, data, quantizer, tmp_path):
    straight, resumed = (config_of(kind, data, tmp_path / name, quantizer) for name in ("straight", "resumed"))
    train(straight)
    train_and_break(resumed, step=7)
    train(resumed)
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")

    model, config = load_model(tmp_path / "resumed")
    assert config.model.kind == kind
    context = model.eval().prefill([torch.randn(3, DIM), torch.randn(1, DIM)])
    assert model.next(context, steps_of(kind)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_needs_no_other_file_and_predicts_the_same(kind, data, quantizer, tmp_path):
    train(config_of(kind, data, tmp_path / "run", quantizer))
    (first, _), (second, _) = load_model(tmp_path / "run"), load_model(tmp_path / "run")
    emb, doc = torch.randn(1, 4, DIM), torch.zeros(1, 4, dtype=torch.long)
    batch = Batch(emb, doc, torch.arange(4)[None], doc == 0, torch.tensor([5]), torch.tensor(4))
    one, two = (model.eval().predict(batch, steps_of(kind)) for model in (first, second))
    assert torch.equal(one, two)
    assert one.norm(dim=-1).min() > 0


def test_a_run_from_when_idle_settings_were_ignored_loads_exports_and_resumes(data, quantizer, tmp_path):
    idle = {"max_snr": 5.0, "beta_a": 0.5}
    config = config_of("two_tower", data, tmp_path / "run", quantizer)
    train(config)
    path, last = tmp_path / "run/config.yaml", latest(tmp_path / "run")
    values, checkpoint = read_yaml(path), open_checkpoint(last)
    values["model"]["diffusion"] |= idle
    path.write_text(yaml.safe_dump(values))
    checkpoint["config"]["model"]["diffusion"] |= idle
    torch.save(checkpoint, tmp_path / "old.ckpt")
    (tmp_path / "old.ckpt").replace(last)
    assert load_model(tmp_path / "run")[1].model == config.model
    export(last, tmp_path / "exported")
    more = config.trainer.model_copy(update={"max_steps": config.trainer.max_steps + 1})
    train(config.model_copy(update={"trainer": more}))
    with pytest.raises(UserError, match=r"model.diffusion.max_snr=5.0: goes with model.diffusion.weight=snr"):
        load_config(path, ["model.diffusion.max_snr=5.0"])


def test_a_quantizer_of_other_sizes_or_other_data_is_refused(data, quantizer, tmp_path):
    with pytest.raises(UserError, match=r"model\.quantizer=.*3 codebooks of 5 units.*model\.units=6"):
        train(config_of("quant_d", data, tmp_path / "run", quantizer, units=6))
    with pytest.raises(UserError, match=r"model\.quantizer=nowhere: no such file; expected the file"):
        train(config_of("quant_d", data, tmp_path / "run", "nowhere"))
    with pytest.raises(UserError, match=r"model\.quantizer=: is empty; expected the file"):
        train(config_of("quant_d", data, tmp_path / "run", ""))
