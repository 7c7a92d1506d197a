"""The learning rate as a function of the step, and which weights decay."""

import pytest
from tiny_training import fit, micro_batches, module_with

from lcm.config import OptimizerConfig
from lcm.training.engine import build_optimizer, learning_rate


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 1e-7), (5_000, 2.0005e-4), (10_000, 4e-4), (130_000, 2.0500e-4), (200_000, 5.0297e-5), (249_999, 1e-5)],
)
def test_learning_rates_of_the_pretraining_recipe(step, expected):
    assert learning_rate(step, OptimizerConfig(), 250_000) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("step", "expected"), [(1_500, 1.55e-5), (3_000, 3e-5), (11_500, 1.5501e-5)])
def test_learning_rates_of_the_finetuning_recipe(step, expected):
    config = OptimizerConfig(lr=3e-5, start_lr=1e-6, final_lr=1e-6, warmup_steps=3_000)
    assert learning_rate(step, config, 20_000) == pytest.approx(expected, rel=1e-4)


def test_every_step_takes_its_own_learning_rate():
    module = module_with("trainer.max_steps=4", "optimizer.warmup_steps=2", "optimizer.lr=0.01")
    kept, _ = fit(module, micro_batches(4)[0])
    expected = [learning_rate(step, module.config.optimizer, 4) for step in range(4)]
    assert [metrics["train/lr"] for _, metrics in kept] == expected
    assert len(set(expected)) == 4


def test_only_matrices_decay():
    module = module_with()
    decayed, kept = build_optimizer(module.model, OptimizerConfig(weight_decay=0.3)).param_groups
    names = {id(p): name for name, p in module.model.named_parameters()}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert all("bias" in names[id(p)] or "norm" in names[id(p)] for p in kept["params"])
    assert all(names[id(p)].endswith("weight") and "norm" not in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(names)
