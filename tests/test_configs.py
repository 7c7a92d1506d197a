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
    assert any(f"lcm train --config configs/{path.name}" in line for line in header)


@pytest.mark.parametrize("kind", ["base", "one_tower", "two_tower", "quant_c", "quant_d"])
def test_the_large_configs_are_the_papers(kind):
    config = load_config(FOLDER / f"{kind}_1.6b.yaml")
    rows = config.data.rows * config.trainer.accumulate
    assert rows * config.data.slots * 32 == 229_376, "concepts a step on 32 GPUs"
    assert config.trainer.max_steps == 250_000
    assert 1.5e9 < parameters(FOLDER / f"{kind}_1.6b.yaml") < 1.7e9
    assert f"{parameters(FOLDER / f'{kind}_1.6b.yaml'):,}" in (FOLDER / f"{kind}_1.6b.yaml").read_text()


@pytest.mark.parametrize("kind", ["base", "one_tower", "two_tower", "quant_c", "quant_d"])
def test_fine_tuning_goes_on_from_the_large_config_with_the_papers_rate(kind):
    tuned, large = load_config(FOLDER / f"finetune_{kind}.yaml"), load_config(FOLDER / f"{kind}_1.6b.yaml")
    assert tuned.trainer.start == large.run.dir
    assert tuned.model == large.model.model_copy(update={"quantizer": ""} if "quant" in kind else {})
    assert tuned.data.rows * tuned.trainer.accumulate * tuned.data.slots == 7_168, "concepts a GPU and step"
    optimizer = tuned.optimizer
    assert (optimizer.lr, optimizer.start_lr, optimizer.final_lr, optimizer.warmup_steps) == (3e-5, 1e-6, 1e-6, 3000)
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay, optimizer.clip) == ((0.9, 0.98), 1e-6, 0.01, 25.0)


def test_the_7b_config_is_the_papers():
    config = load_config(FOLDER / "two_tower_7b.yaml")
    assert config.data.rows * config.data.slots * 256 == 1_048_576, "concepts a step on 256 GPUs"
    assert parameters(FOLDER / "two_tower_7b.yaml") == 6_930_781_696 - 14 * 2 * (4096**2 + 4096)


def test_the_toy_configs_have_comparable_sizes():
    counts = [parameters(path) for path in FOLDER.glob("*_toy.yaml")]
    assert len(counts) == 5
    assert min(counts) >= 5_000_000
    assert max(counts) <= 1.03 * min(counts)


@pytest.mark.parametrize("name", [path.stem for path in FOLDER.glob("*_toy.yaml")])
def test_small_configs_fit_the_embedded_codec_and_stay_small(name):
    assert parameters(FOLDER / f"{name}.yaml") < 10_000_000
    assert load_config(FOLDER / f"{name}.yaml").model.dim == 512
