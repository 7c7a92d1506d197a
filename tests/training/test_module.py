"""LCMModule: gradients that do not depend on accumulation and ranks, reports, divergence."""

import math
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from synthetic import pack
from tiny_training import LENGTHS, fit, micro_batches, module_with, stub_trainer, weights
from torch import nn

from lcm.config import Config
from lcm.models import build_model
from lcm.training.engine import FSDP
from lcm.training.module import LCMModule

# ---- gradients ----


class WithSGD(LCMModule):
    """One plain step, so that a wrongly scaled gradient shows; Adam would hide it."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters(), lr=0.1)


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_one_sgd_update_does_not_depend_on_the_accumulation(accumulate):
    """Through a real Trainer; row 5 is empty, so one of the eight micro-batches has no target."""
    results = []
    for count in (1, accumulate):
        module = module_with(f"trainer.accumulate={count}", "optimizer.lr=0.01")
        module.__class__ = WithSGD
        kept, data = fit(module, micro_batches(count)[0])
        assert data.advanced == count, "the data's position moves with every micro-batch"
        results.append((weights(module), dict(kept)[1]))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-6, rtol=1e-5)
    for name in ("train/loss", "train/gradient_norm"):
        assert results[0][1][name] == pytest.approx(results[1][1][name], rel=1e-5)


def gradients(accumulate, ranks):
    """Gradients of DDP under Lightning: the mean over ranks of the sum over micro-batches of loss / accumulate."""
    module = module_with()
    for rank, batches in enumerate(micro_batches(accumulate, ranks)):
        module.trainer = stub_trainer(accumulate, ranks, rank)
        for i, batch in enumerate(batches):
            (module.training_step(batch, i) / accumulate / ranks).backward()
    return {name: p.grad for name, p in module.model.named_parameters()}


@pytest.mark.parametrize(("strategy", "kept"), [(DDPStrategy(), True), (FSDP(2, timedelta(1)), False)])
def test_autocast_caches_weights_only_where_a_rank_holds_all_of_them(strategy, kept):
    module = module_with("trainer.precision=bf16")
    module.trainer = stub_trainer(1, 2, 0)
    module.trainer.strategy = strategy
    module.configure_model()
    with module._autocast():
        assert torch.is_autocast_cache_enabled() == kept


@pytest.mark.parametrize("has_instructions", [True, False])
def test_precision_auto_takes_bf16_where_the_cpu_has_instructions_for_it(has_instructions, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    for precision, bf16 in (("auto", has_instructions), ("bf16", True), ("fp32", False)):
        module = module_with(f"trainer.precision={precision}")
        module.trainer = stub_trainer()
        with module._autocast():
            assert torch.is_autocast_enabled("cpu") == bf16


@pytest.mark.parametrize(("accumulate", "ranks"), [(1, 2), (4, 1), (2, 2), (1, 8), (2, 4)])
def test_the_gradient_does_not_depend_on_accumulation_and_ranks(accumulate, ranks):
    torch.testing.assert_close(gradients(accumulate, ranks), gradients(1, 1), atol=1e-6, rtol=1e-5)


def test_the_loss_is_the_mean_over_targets_of_the_summed_square():
    module, batch = module_with(), micro_batches(1)[0][0]
    module.trainer = stub_trainer()
    nn.init.zeros_(module.model.post.weight)
    nn.init.zeros_(module.model.post.bias)
    targets = batch.emb[batch.targets(predicts_first=False)]
    assert module.training_step(batch, 0).item() == pytest.approx(targets.square().sum().item() / len(targets))


def test_a_step_without_any_target_changes_nothing():
    module = module_with()
    module.trainer = stub_trainer()
    loss = module.training_step(pack([[1, 1], []], slots=4, step_targets=0), 0)
    loss.backward()
    assert loss.item() == 0
    assert all(not p.grad.any() for p in module.parameters())


def test_dropout_is_seeded_by_seed_step_micro_batch_and_rank():
    batch = pack(LENGTHS, slots=8)

    def loss(seed=1, step=0, micro_batch=0, rank=0):
        module = module_with("model.dropout=0.5", f"run.seed={seed}")
        module.trainer = stub_trainer(accumulate=4, rank=rank, step=step)
        torch.manual_seed(99)
        return module.training_step(batch, 4 * step + micro_batch).item()

    same = {loss(), loss()}
    assert len(same) == 1
    assert len({loss(seed=2), loss(step=1), loss(micro_batch=1), loss(rank=1), *same}) == 5


def test_gradients_are_clipped_by_their_norm_over_all_parameters():
    """With SGD at learning rate 1 the update is the clipped gradient."""
    moved = {}
    for clip in (0, 0.5):
        module = module_with(f"optimizer.clip={clip}", "optimizer.lr=1")
        module.__class__ = WithSGD
        before = weights(module)
        kept, _ = fit(module, micro_batches(1)[0])
        steps = [after - before[name] for name, after in weights(module).items()]
        moved[clip] = math.sqrt(sum(float(s.square().sum()) for s in steps))
        reported = dict(kept)[1]["train/gradient_norm"]
    assert moved[0.5] == pytest.approx(0.5, rel=1e-4)
    assert moved[0] == pytest.approx(reported, rel=1e-4)
    assert reported > 0.5, "the norm before clipping"


# ---- reports ----


def test_a_report_has_the_mean_loss_and_the_speed():
    """The loss is per target of the whole step; the speed counts concepts, with contexts and without padding."""
    module = module_with("trainer.accumulate=4", "trainer.max_steps=2", "trainer.log_every=2")
    batches = micro_batches(4)[0]
    counted = []
    module._restart_clock = lambda: counted.append(int(module._concepts))
    kept, data = fit(module, [*batches, *batches])
    assert [step for step, _ in kept] == [2], "in optimizer steps that are done"
    assert counted == [0, 2 * sum(map(sum, LENGTHS))]
    assert data.advanced == 8
    assert kept[0][1].keys() == {"train/loss", "train/gradient_norm", "train/lr", "train/concepts_per_second"}, (
        "no MFU on a CPU, whose peak is unknown"
    )


def test_validation_is_a_mean_over_targets():
    """Batches with 1 and 10 targets: no batch counts more than its targets."""
    module = module_with("trainer.validate_every=1")
    batches = [pack([[2]], slots=12, seed=1), pack([[11]], slots=12, seed=2), pack([[]], slots=12)]
    kept, _ = fit(module, micro_batches(1)[0], batches)
    with torch.no_grad():
        losses = [module.model.eval().loss(batch) for batch in batches]
    step, metrics = kept[-1]
    assert step == 1
    assert metrics["val/loss"] == pytest.approx(torch.cat([one.per_target for one in losses]).mean().item(), rel=1e-5)
    assert metrics["val/l2"] == pytest.approx(torch.cat([one.meters["l2"] for one in losses]).mean().item(), rel=1e-5)


def test_validation_has_no_dropout():
    module = module_with(
        "model.dropout=0.5", "trainer.validate_every=1", "optimizer.lr=1e-9", "optimizer.final_lr=1e-9"
    )
    batch = micro_batches(1)[0][0]
    kept, _ = fit(module, [batch], [batch])
    with torch.no_grad():
        expected = module.model.eval().loss(batch).per_target.mean().item()
    assert kept[-1][1]["val/loss"] == pytest.approx(expected, rel=1e-4)


def test_divergence_is_explained_in_one_line():
    module = module_with("trainer.skips=0")
    batch = micro_batches(1)[0][0]
    batch.emb[0, 1] = math.inf
    before = weights(module)
    fit(module, [batch])
    assert re.match(r"the gradient is (nan|inf) at step 1: .* lower optimizer.lr=0.1", module.stop_reason)
    torch.testing.assert_close(weights(module), before, rtol=0, atol=0)


def test_flops_of_a_concept():
    """6 per parameter and 12 · layers · width · slots (Chowdhery et al. 2022)."""
    with torch.device("meta"):
        model = build_model(Config.parse({"model": {"kind": "base"}}, [], where="test").model)
    assert model.training_flops(slots=128) == 6 * 1_649_185_792 + 12 * 32 * 2048 * 128


# ---- options ----


def test_a_checkpoint_is_recounted_when_the_accumulation_has_changed():
    counts = {"ready": 10, "started": 10, "processed": 10, "completed": 9}
    progress = {"total": dict(counts), "current": dict(counts), "is_last_batch": True}
    checkpoint = {"global_step": 5, "metrics": {}, "loops": {"fit_loop": {"epoch_loop.batch_progress": progress}}}
    module = module_with()
    module.trainer = stub_trainer(accumulate=3)
    module.on_load_checkpoint(checkpoint)
    expected = {"ready": 15, "started": 15, "processed": 15, "completed": 14}
    assert progress == {"total": expected, "current": expected, "is_last_batch": False}


def test_recomputed_activations_change_no_weight():
    results = []
    for recompute in ("false", "true"):
        module = module_with("model.dropout=0.3", f"trainer.checkpoint_activations={recompute}", "optimizer.lr=0.01")
        assert module.model.transformer.recompute is (recompute == "true")
        fit(module, micro_batches(1)[0])
        results.append(weights(module))
    torch.testing.assert_close(*results, atol=0, rtol=0)


def test_bf16_comes_close_to_fp32():
    module = module_with()
    module.trainer = stub_trainer()
    batch = micro_batches(1)[0][0]
    exact = module.training_step(batch, 0).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert module.training_step(batch, 0).item() == pytest.approx(exact, rel=0.02)


@pytest.mark.slow
def test_compiled_blocks_change_neither_names_nor_losses():
    """In another process, because the shape checks of the tests cannot be compiled.

    Up to the compiler's last stage, which tests/training/test_strategies.py runs: it would take most of a minute.
    """
    script = """
import torch
original = torch.compile
torch.compile = lambda *args, **settings: original(*args, **{**settings, "backend": "aot_eager"})
from tiny_training import micro_batches, module_with, stub_trainer
results = []
for compile in ("false", "true"):
    module = module_with(f"trainer.compile={compile}")
    module.trainer = stub_trainer()
    loss = module.training_step(micro_batches(1)[0][0], 0)
    loss.backward()
    results.append([loss, list(module.state_dict()), [p.grad for p in module.parameters()]])
assert results[0][1] == results[1][1]
assert module.model.transformer.blocks[0]._compiled_call_impl is not None
torch.testing.assert_close(results[0][0], results[1][0])
torch.testing.assert_close(results[0][2], results[1][2], atol=1e-5, rtol=1e-4)
"""
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
