"""`lcm train` as a whole: its files, the best model, dry runs, mistakes."""

import csv
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from synthetic import tiny_config, write_data

from lcm.cli import main
from lcm.config import save_config
from lcm.data.datamodule import ConceptData
from lcm.errors import UserError
from lcm.models import load_model
from lcm.models.interface import ConceptModel
from lcm.training.checkpoint import open_checkpoint
from lcm.training.module import LCMModule
from lcm.training.run import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def metric(run, name):
    with Path(run, "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row[name]}


def test_training_lowers_the_loss_and_keeps_the_best_model(data, tmp_path):
    """The learning rate is far too high at the end, so the best model is an earlier one."""
    config = tiny_config(data, tmp_path / "run", "trainer.max_steps=30", "optimizer.lr=3e-3", "optimizer.final_lr=1.0")
    train(config)
    validation = metric(tmp_path / "run", "val/loss")
    assert list(validation) == [4, 8, 12, 16, 20, 24, 28, 30], "every fourth step, and the last one"
    best = min(validation, key=validation.get)
    assert validation[best] < validation[4]
    assert best < 30
    checkpoint = open_checkpoint(tmp_path / "run/checkpoints/best.ckpt")
    assert checkpoint["global_step"] == best
    assert checkpoint["metrics"]["val/loss"] == validation[best]
    model, _ = load_model(tmp_path / "run")
    assert torch.equal(model.post.weight, checkpoint["state_dict"]["model.post.weight"])
    last = open_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert last["global_step"] == 30
    assert last["metrics"]["val/loss"] == validation[30], "saved after the validation of its step, so that none is lost"
    assert last["callbacks"]["Checkpoints"]["best"] == pytest.approx(validation[best])


def test_the_model_gets_normalizer_and_end_of_text_of_its_data(data, tmp_path):
    config = tiny_config(data, tmp_path / "run", "trainer.max_steps=1")
    train(config)
    model, saved = load_model(tmp_path / "run")
    expected = ConceptData(config, predicts_first=False)
    expected.setup()
    assert model.normalizer.location.tolist() == [0.25] * 8
    assert model.normalizer.scale.tolist() == [2.0] * 8
    assert torch.equal(model.end_of_text, expected.end_of_text.float())
    assert saved.codec == expected.prepared.codec
    assert saved.data.path == (str(data),)


def test_without_validation_the_newest_model_is_the_best(tmp_path, capsys):
    data = write_data(tmp_path / "data", validation=0)
    train(tiny_config(data, tmp_path / "run", "trainer.max_steps=5"))
    assert "no validation split" in capsys.readouterr().err
    last = open_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert last["global_step"] == 5
    model, _ = load_model(tmp_path / "run")
    assert torch.equal(model.post.weight, last["state_dict"]["model.post.weight"])
    assert not (tmp_path / "run/checkpoints/best.ckpt").exists()


def test_the_seed_decides_the_weights(data, tmp_path):
    def weights(name, *overrides):
        train(tiny_config(data, tmp_path / name, "trainer.max_steps=2", *overrides))
        return load_model(tmp_path / name)[0].pre.weight

    assert torch.equal(weights("one"), weights("two"))
    assert not torch.equal(weights("one"), weights("three", "run.seed=8"))


def test_bf16_and_recomputation_train_too(data, tmp_path):
    train(tiny_config(data, tmp_path / "run", "trainer.precision=bf16", "trainer.checkpoint_activations=true"))
    validation = list(metric(tmp_path / "run", "val/loss").values())
    assert validation[-1] < validation[0]
    assert load_model(tmp_path / "run")[0].pre.weight.dtype == torch.float32


def test_a_model_of_another_width_than_the_codec_is_refused(data, tmp_path):
    with pytest.raises(UserError, match=r"model.dim=16, but the concepts of .* have 8 channels"):
        train(tiny_config(data, tmp_path / "run", "model.dim=16"))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_reports_the_run_and_writes_nothing(data, tmp_path, capsys):
    save_config(
        tiny_config(data, tmp_path / "run", "trainer.accumulate=2", "trainer.log_every=10"), tmp_path / "run.yaml"
    )
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--dry-run", "--trainer.max_steps", "50"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model      base, 28,168 parameters"
    config = tiny_config(data, tmp_path)
    plan = ConceptData(config, predicts_first=False)
    plan.setup()
    assert lines[1].startswith(f"data       {data}: ")
    assert lines[1].endswith(" targets an epoch")
    assert lines[2] == "processes  1, single: there is one process"
    assert lines[3] == f"run        50 steps into {tmp_path / 'run'}"
    assert lines[4].startswith("one step   loss ")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_of_a_model_too_large_for_memory_trains_no_step(data, tmp_path, capsys, monkeypatch):
    save_config(tiny_config(data, tmp_path / "run"), tmp_path / "run.yaml")
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ConceptModel, "train", lambda *_: pytest.fail("no step"))
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--dry-run"]) == 0
    assert "one step   not run" in capsys.readouterr().out


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    for setting in ("--config", "--dry-run", "--model.width", "--data.path", "--optimizer.lr", "--trainer.resume"):
        assert setting in out
    assert "Optimizer steps between validations" in out


def test_mistakes_on_the_command_line_are_one_line(data, tmp_path, capsys):
    save_config(tiny_config(data, tmp_path / "run"), tmp_path / "run.yaml")
    for words, message in [
        (["--config", str(tmp_path / "none.yaml")], "no such file"),
        (["--config", str(tmp_path / "run.yaml"), "--trainer.max_step", "3"], "did you mean 'trainer.max_steps'?"),
        (["--config", str(tmp_path / "run.yaml"), "--data.path", str(tmp_path)], "no data set there"),
    ]:
        assert main(["train", *words]) == 1
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_an_interrupt_says_how_to_resume(data, tmp_path, capsys, monkeypatch):
    save_config(tiny_config(data, tmp_path / "run"), tmp_path / "run.yaml")

    def interrupted(self, batch, batch_idx):
        if self.global_step == 5:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    original = LCMModule.training_step
    monkeypatch.setattr(LCMModule, "training_step", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning has switched it off
    err = capsys.readouterr().err.splitlines()
    assert err[-2] == f"{tmp_path}/run: the same command resumes from {tmp_path}/run/checkpoints/last.ckpt"
    assert err[-1] == "lcm train: interrupted"
    assert open_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 3


def test_divergence_is_one_line_and_leaves_the_last_good_checkpoint(data, tmp_path, capsys, monkeypatch):
    save_config(tiny_config(data, tmp_path / "run", "trainer.log_every=100"), tmp_path / "run.yaml")

    def diverging(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        return loss * float("nan") if self.global_step >= 4 else loss

    original = LCMModule.training_step
    monkeypatch.setattr(LCMModule, "training_step", diverging)
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 1
    assert "training has diverged; lower optimizer.lr=0.01" in capsys.readouterr().err
    checkpoint = open_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert checkpoint["global_step"] == 10, "three skipped steps are allowed; the next save notices the fourth"
    assert checkpoint["state_dict"]["model.post.weight"].isfinite().all()


def with_validation(values, monkeypatch):
    """Let the validations of a run find these losses, one after the other."""
    left = iter(values)

    def on_validation_epoch_end(self):
        value = next(left)
        if value is not None:
            self.log_dict({"val/loss": value}, logger=False)

    monkeypatch.setattr(LCMModule, "on_validation_epoch_end", on_validation_epoch_end)


@pytest.mark.parametrize(
    ("losses", "step", "told"),
    [
        ([math.nan], 4, "val/loss is nan after step 4, .* there is no model yet; .* resumes from"),
        ([2.0, math.inf], 8, "val/loss is inf after step 8, .* the best model so far is of val/loss 2; "),
        ([2.0, 1.0, math.nan], 12, "val/loss is nan after step 12, .* the best model so far is of val/loss 1; "),
        ([None], 4, "the validation split has nothing to predict, so after step 4 no model can be chosen"),
    ],
)
def test_a_validation_without_a_finite_loss_ends_the_run_with_a_line(losses, step, told, data, tmp_path, monkeypatch):
    """Exit status 0 means that there is a good model. What was trained is kept."""
    with_validation(losses, monkeypatch)
    with pytest.raises(UserError, match=told):
        train(tiny_config(data, tmp_path / "run"))
    assert open_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == step
    assert (tmp_path / "run/model.safetensors").exists() == (len(losses) > 1)
    monkeypatch.undo()
    if step < 12:
        train(tiny_config(data, tmp_path / "run"))
        assert load_model(tmp_path / "run")


def test_a_model_that_is_not_finite_is_not_written(data, tmp_path, monkeypatch):
    with_validation([3.0, 2.0, 1.0], monkeypatch)
    original = LCMModule.validation_step

    def validation_step(self, batch, batch_idx):
        original(self, batch, batch_idx)
        if self.global_step == 8:
            self.model.post.weight.data.fill_(math.nan)

    monkeypatch.setattr(LCMModule, "validation_step", validation_step)
    with pytest.raises(UserError, match=r"post.weight is not finite after step 8: training has diverged"):
        train(tiny_config(data, tmp_path / "run"))
    assert load_model(tmp_path / "run")[0].post.weight.isfinite().all()


def test_sampling_settings_of_another_family_are_refused_before_training(data, tmp_path):
    with pytest.raises(UserError, match=r"section sampling of the configuration: --top-k=3: means nothing"):
        train(tiny_config(data, tmp_path / "run", "sampling.top_k=3"))
    assert not list((tmp_path / "run").glob("**/*.ckpt"))
