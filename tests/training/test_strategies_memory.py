"""No rank ever holds all of a sharded model."""

import pytest
import torch
from family_runs import config_of
from ranks import EVERY_STRATEGY, Run, train_together
from synthetic import write_data

from lcm.config import load_config
from lcm.models import build_model
from lcm.training.engine import SHARDED
from lcm.training.run import count_parameters

SHARDING = [case for case in EVERY_STRATEGY if case.values[1] in SHARDED]


def numbers(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_seven_billion_parameters_are_built_block_by_block():
    """The part that is not sharded yet is never more than a block and the few parameters outside all blocks."""
    pieces, config = [], load_config("configs/two_tower_7b.yaml").model
    with torch.device("meta"):
        model = build_model(config, lambda block: pieces.append(numbers(block)))
    everything = numbers(model)
    assert everything > 6.4e9
    assert max(pieces) < 0.06 * everything
    assert everything - sum(pieces) < 0.03 * everything


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "strategy"), SHARDING)
def test_building_takes_a_shard_and_a_block(engine, strategy, tmp_path):
    data = write_data(tmp_path / "data")
    settings = ["trainer.devices=2", f"trainer.strategy={strategy}", "trainer.max_steps=1", "data.rows=1"]
    config = config_of("base", data, tmp_path / "run", None, *settings, layers=16, width=384)
    train_together({"run": Run(config, measures=True)}, tmp_path / "logs", 2)
    everything = 4 * count_parameters(config)
    assert everything > 100e6
    shard_and_block = everything / 2 + 2 * everything / 16
    for rank in (0, 1):
        taken = int((tmp_path / f"run.{rank}").read_text())
        assert 0.45 * everything < taken < shard_and_block + 15e6, (taken, everything)
