"""All ranks skip a step that cannot be trained, and count it; too many in a row end the run."""

import csv
from dataclasses import replace

import pytest
import torch
from ranks import Run, train_together
from synthetic import tiny_config, write_data

from lcm.errors import UserError
from lcm.models.base import BaseLCM
from lcm.training.checkpoint import latest, open_checkpoint
from lcm.training.run import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def spoil(monkeypatch, spoiled, how):
    """Apply `how` to the loss in these training steps."""
    original, calls = BaseLCM.loss, []

    def loss(self, batch):
        if self.training:
            calls.append(None)
        losses = original(self, batch)
        return how(losses) if self.training and len(calls) - 1 in spoiled else losses

    monkeypatch.setattr(BaseLCM, "loss", loss)


def nan(losses):
    return replace(losses, per_target=losses.per_target * float("nan"))


def out_of_memory(losses):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def reports(run):
    """The rows of metrics.csv that report training."""
    with (run / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.parametrize("how", [nan, out_of_memory])
def test_a_skipped_step_changes_neither_weights_nor_moments_and_is_counted(how, data, tmp_path, monkeypatch, capsys):
    settings = ["trainer.max_steps=6", "trainer.checkpoint_every=1", "trainer.keep=6", "trainer.validate_every=100"]
    spoil(monkeypatch, {3}, how)
    train(tiny_config(data, tmp_path / "run", *settings))
    before, after, next_one = (open_checkpoint(tmp_path / f"run/checkpoints/step-{step:08}.ckpt") for step in (3, 4, 5))
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(_without_rates(after[part]), _without_rates(before[part]), rtol=0, atol=0)
    assert not torch.equal(next_one["state_dict"]["model.post.weight"], after["state_dict"]["model.post.weight"])
    assert after["ConceptData"]["steps"] == 4, "its rows are not trained again in this epoch"
    assert [row["train/skipped"] for row in reports(tmp_path / "run")][-2:] == ["1.0", "1.0"]
    assert ("out of memory at step 3: lower data.rows=2" in capsys.readouterr().err) == (how is out_of_memory)


def _without_rates(state):
    """The optimizer state without its learning rate, which follows the step."""
    if isinstance(state, list):
        return [{"state": optimizer["state"]} for optimizer in state]
    return state


def test_the_count_of_skipped_steps_survives_a_resume(data, tmp_path, monkeypatch):
    spoil(monkeypatch, {2, 8}, nan)
    train(tiny_config(data, tmp_path / "run", "trainer.max_steps=6"))
    train(tiny_config(data, tmp_path / "run"))
    assert reports(tmp_path / "run")[-1]["train/skipped"] == "2.0"


def test_a_step_skipped_after_the_last_report_counts_after_a_resume(data, tmp_path, monkeypatch):
    spoil(monkeypatch, {5}, nan)
    train(tiny_config(data, tmp_path / "run", "trainer.max_steps=6", "trainer.log_every=4"))
    assert not any(row.get("train/skipped") for row in reports(tmp_path / "run"))
    train(tiny_config(data, tmp_path / "run", "trainer.log_every=4"))
    assert reports(tmp_path / "run")[-1]["train/skipped"] == "1.0"


def test_too_many_skipped_steps_in_a_row_end_the_run_with_a_good_checkpoint(data, tmp_path, monkeypatch):
    spoil(monkeypatch, {1, 3, 4, *range(6, 12)}, nan)
    with pytest.raises(UserError, match=r"the gradient is nan at step 9: training has diverged; lower optimizer.lr"):
        train(tiny_config(data, tmp_path / "run", "trainer.skips=2", "trainer.validate_every=100"))
    found = open_checkpoint(latest(tmp_path / "run"))
    assert found["global_step"] == 10, "it is known at the report of step 9, and saved after the next one"
    assert all(tensor.isfinite().all() for tensor in found["state_dict"].values())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_ranks_skip_a_step_that_is_nan_on_one(strategy, data, tmp_path):
    """The loss of rank 1 is NaN in step 3."""
    config = tiny_config(data, tmp_path / "run", "trainer.devices=2", f"trainer.strategy={strategy}")
    train_together({"run": Run(config, spoils=(1, 3, "nan"))}, tmp_path / "logs", 2)
    found = reports(tmp_path / "run")
    assert [row["train/skipped"] for row in found] == ["", "", "", *["1.0"] * 9]
    assert [row["train/gradient_norm"] == "nan" for row in found] == [False, False, False, True] + [False] * 8


def test_ddp_skips_a_step_for_which_one_rank_has_no_memory(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", "trainer.devices=2", "trainer.strategy=ddp")
    logs = train_together({"run": Run(config, spoils=(1, 3, "memory"))}, tmp_path / "logs", 2)
    assert "rank 1 is out of memory at step 3: lower data.rows=2" in logs[1]
    assert reports(tmp_path / "run")[-1]["train/skipped"] == "1.0"


def test_fsdp_ends_with_one_line_when_a_rank_is_out_of_memory(data, tmp_path):
    """Ranks exchange weights within a step, so the others cannot be told to skip it."""
    config = tiny_config(data, tmp_path / "run", "trainer.devices=2", "trainer.strategy=fsdp")
    with pytest.raises(AssertionError, match=r"UserError: rank 1 is out of memory at step 3: lower data\.rows=2"):
        train_together({"run": Run(config, spoils=(1, 3, "memory"))}, tmp_path / "logs", 2)
    assert open_checkpoint(latest(tmp_path / "run"))["global_step"] == 3
