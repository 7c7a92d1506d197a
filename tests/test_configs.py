"""Every shipped configuration loads, builds and says how to run it."""

from pathlib import Path

import pytest
import torch

from lcm.config import load_config
from lcm.models import build_model

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def parameters(path):
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(load_config(path).model).parameters())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_builds(path):
    assert parameters(path) > 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_opens_with_its_command_machines_hours_and_expectation(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for promised in ("command", "machines", "hours", "expect"):
        assert any(line.removeprefix("#").strip().startswith(promised) for line in header), promised
    command = next(line for line in header if "command" in line)
    assert f"lcm train --config configs/{path.name}" in command


def test_the_large_config_is_the_papers():
    config = load_config(FOLDER / "base_1.6b.yaml")
    assert parameters(FOLDER / "base_1.6b.yaml") == 1_649_185_792
    assert config.data.rows * config.data.slots * 32 == 229_376, "concepts a step on 32 GPUs"
    assert config.trainer.max_steps == 250_000


@pytest.mark.parametrize("name", ["base_toy", "base_demo"])
def test_small_configs_fit_the_embedded_codec_and_stay_small(name):
    assert parameters(FOLDER / f"{name}.yaml") < 10_000_000
    assert load_config(FOLDER / f"{name}.yaml").model.dim == 512
