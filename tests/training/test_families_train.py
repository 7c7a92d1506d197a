"""Every model family is trained, killed, resumed, loaded and sampled by the same code."""

import pytest
import torch
from family_runs import config_of, train_and_break, write_quantizer
from same_run import assert_same_run
from synthetic import DIM, write_data

from lcm.batch import Batch
from lcm.errors import UserError
from lcm.models import load_model
from lcm.models.interface import Sampling
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


def test_a_quantizer_of_other_sizes_or_other_data_is_refused(data, quantizer, tmp_path):
    with pytest.raises(UserError, match=r"model\.quantizer=.*3 codebooks of 5 units.*model\.units=6"):
        train(config_of("quant_d", data, tmp_path / "run", quantizer, units=6))
    with pytest.raises(UserError, match=r"model\.quantizer=nowhere: no such file; expected the file"):
        train(config_of("quant_d", data, tmp_path / "run", "nowhere"))
    with pytest.raises(UserError, match=r"model\.quantizer=: is empty; expected the file"):
        train(config_of("quant_d", data, tmp_path / "run", ""))
