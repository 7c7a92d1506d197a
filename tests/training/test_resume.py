"""A killed and resumed run equals an uninterrupted one: order of the data, losses, weights."""

import math
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from forked import Forked
from lightning.pytorch.callbacks import ModelCheckpoint
from same_run import assert_same_run, losses
from synthetic import record_batches, tiny_config, train_until_killed, write_data

from lcm.config import save_config
from lcm.errors import UserError
from lcm.models import load_model
from lcm.training.callbacks import Checkpoints
from lcm.training.checkpoint import latest, open_checkpoint
from lcm.training.module import LCMModule
from lcm.training.run import assemble, train
from lcm.training.start import decide
from lcm.training.writing import Writing

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """train(config) in this process; returns the lines of record_batches."""
    monkeypatch.setattr(LCMModule, "training_step", LCMModule.training_step)  # to be put back afterwards
    record_batches(path := tmp_path / "recorded")

    def run(config):
        path.write_text("")
        train(config)
        return path.read_text().splitlines()

    return run


def killed(config, path, step, micro_batch=0):
    """Train in another process, which is killed with SIGKILL before this micro-batch; returns its lines."""
    save_config(config, path)
    out, err = path.with_suffix(".out"), path.with_suffix(".err")
    process = Forked(train_until_killed, str(path), str(step), str(micro_batch), out=out, err=err)
    assert process.wait() == -9, err.read_text()
    return path.with_suffix(".batches").read_text().splitlines()


@pytest.mark.parametrize(
    ("kill_at", "settings"),
    [
        pytest.param((7, 1), ["trainer.accumulate=3"], id="in the middle of a step"),
        *(
            pytest.param(kill_at, settings, id=name, marks=pytest.mark.slow)
            for name, kill_at, settings in [
                ("after a validation without checkpoint", (5, 0), []),
                ("after validation and checkpoint at once", (9, 0), ["trainer.checkpoint_every=4", "data.workers=2"]),
                ("right after a checkpoint", (6, 0), ["trainer.accumulate=3", "data.workers=2"]),
                ("all of it", (10, 2), ["trainer.accumulate=3", "trainer.checkpoint_every=4"]),
            ]
        ),
    ],
)
def test_a_killed_run_resumes_bit_for_bit(kill_at, settings, data, tmp_path, recorded):
    """Through a real SIGKILL, with dropout, validation and checkpoints in between, every batch different."""
    resumed = tiny_config(data, tmp_path / "resumed", *settings)
    before = killed(resumed, tmp_path / "killed.yaml", *kill_at)
    every, accumulate = resumed.trainer.checkpoint_every, resumed.trainer.accumulate
    checkpoint = open_checkpoint(latest(tmp_path / "resumed"))["global_step"]
    assert checkpoint == kill_at[0] // every * every

    after = recorded(resumed)
    straight = recorded(tiny_config(data, tmp_path / "straight", *settings))
    assert len(set(straight)) == 12 * accumulate, "batches can be told apart"
    assert before == straight[: len(before)]
    assert after == straight[checkpoint * accumulate :]
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_stock_model_checkpoint_resumes_bit_for_bit(accumulate, data, tmp_path, recorded, monkeypatch):
    """Lightning's own callback saves before `on_train_batch_end`, and before the validation of the same step."""

    def stock(folder, trainer, writing):
        every = trainer.checkpoint_every
        return ModelCheckpoint(
            folder / "checkpoints", filename="{step}", every_n_train_steps=every, save_top_k=-1, monitor=None
        )

    monkeypatch.setattr("lcm.training.trainer.Checkpoints", stock)
    monkeypatch.setattr("lcm.training.run._check_model", lambda *_: None)  # it saves checkpoints alone
    settings = [f"trainer.accumulate={accumulate}", "trainer.validate_every=3"]
    straight = recorded(tiny_config(data, tmp_path / "straight", *settings))
    middle = tmp_path / "straight/checkpoints/step=6.ckpt"
    resumed = recorded(tiny_config(data, tmp_path / "resumed", *settings, f"trainer.resume={middle}"))
    assert resumed == straight[6 * accumulate :]
    one, two = (open_checkpoint(tmp_path / run / "checkpoints/step=12.ckpt") for run in ("straight", "resumed"))
    torch.testing.assert_close(one["state_dict"], two["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(one["optimizer_states"], two["optimizer_states"], rtol=0, atol=0)


def rows_of_steps(lines):
    """Rows by step, whatever the number of micro-batches."""
    steps = {}
    for line in lines:
        step, rows = line.split(" ")[0], line.split("[")[1].split("]")[0].split(", ")
        steps.setdefault(int(step), []).extend(rows)
    return steps


def broken_at(step):
    """A `training_step` that fails at this step."""
    original = LCMModule.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == step:
            raise RuntimeError("power cut")
        return original(self, batch, batch_idx)

    return training_step


def test_accumulation_and_workers_may_change_at_a_resume(data, tmp_path, recorded, monkeypatch):
    """2 rows three times a step until step 6, then 6 rows at once: the same rows, the same weights to 1e-5."""
    wide = ["model.dropout=0", "data.rows=6"]
    narrow = ["model.dropout=0", "data.rows=2", "trainer.accumulate=3", "data.workers=2"]
    straight = recorded(tiny_config(data, tmp_path / "straight", *wide))
    with monkeypatch.context() as patch:
        patch.setattr(LCMModule, "training_step", broken_at(6))
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny_config(data, tmp_path / "resumed", *narrow))
    resumed = recorded(tiny_config(data, tmp_path / "resumed", *wide))
    steps = rows_of_steps(straight)
    assert rows_of_steps(resumed) == {step: steps[step] for step in range(6, 12)}
    one, two = (open_checkpoint(latest(tmp_path / run)) for run in ("straight", "resumed"))
    torch.testing.assert_close(one["state_dict"], two["state_dict"], rtol=1e-4, atol=1e-5)
    validations = [[row for row in losses(tmp_path / run) if row["val/loss"]] for run in ("straight", "resumed")]
    assert [row["step"] for row in validations[1]] == [row["step"] for row in validations[0]] == ["4", "8", "12"]


def test_a_finished_run_says_so_and_resumes_with_more_steps(data, tmp_path, recorded, capsys):
    config = tiny_config(data, tmp_path / "run")
    assert len(recorded(config)) == 12
    model = (tmp_path / "run/model.safetensors").read_bytes()
    capsys.readouterr()
    assert recorded(config) == []
    assert "all 12 steps are done; raise trainer.max_steps" in capsys.readouterr().err
    assert (tmp_path / "run/model.safetensors").read_bytes() == model
    longer = tiny_config(data, tmp_path / "run", "trainer.max_steps=14")
    assert [line.split(" ")[0] for line in recorded(longer)] == ["12", "13"]
    assert [row["step"] for row in losses(tmp_path / "run")][-3:] == ["13", "14", "14"]


def test_an_earlier_run_is_never_overwritten(data, tmp_path, recorded):
    recorded(tiny_config(data, tmp_path / "run"))
    with pytest.raises(UserError, match=r"trainer.resume=none, but .*last.ckpt holds an earlier run; choose another"):
        train(tiny_config(data, tmp_path / "run", "trainer.resume=none"))
    with pytest.raises(UserError, match=r"model.width=32, but .*last.ckpt was trained with 16"):
        train(tiny_config(data, tmp_path / "run", "model.width=32"))
    with pytest.raises(UserError, match=r"trainer.resume=.*nothing.ckpt: no such file"):
        train(tiny_config(data, tmp_path / "run", f"trainer.resume={tmp_path}/nothing.ckpt"))


def test_a_run_can_start_from_another_runs_checkpoint(data, tmp_path, recorded):
    recorded(tiny_config(data, tmp_path / "first", "trainer.max_steps=6"))
    checkpoint = tmp_path / "first/checkpoints/last.ckpt"
    second = ["optimizer.lr=1e-9", "optimizer.final_lr=0", "optimizer.start_lr=0", "optimizer.warmup_steps=0"]
    lines = recorded(tiny_config(data, tmp_path / "second", *second, f"trainer.resume={checkpoint}"))
    assert [line.split(" ")[0] for line in lines] == ["6", "7", "8", "9", "10", "11"]
    config = load_model(tmp_path / "second")[1]
    assert config.run.dir == str(tmp_path / "second"), "it has a best model of its own, though it learns nothing"


@pytest.mark.slow
def test_two_ranks_train_what_one_does(data, tmp_path):
    """DDP on CPUs: the same rows per step, so the same losses and weights, to 1e-4."""
    settings = ["model.dropout=0", "trainer.validation_rows=8"]
    for name, devices, rows in (("one", 1, 4), ("two", 2, 2)):
        config = tiny_config(data, tmp_path / name, *settings, f"trainer.devices={devices}", f"data.rows={rows}")
        save_config(config, tmp_path / f"{name}.yaml")
        words = ["--config", str(tmp_path / f"{name}.yaml")]
        if devices == 1:
            out = forked.printed_by(forked.lcm(["train", *words], tmp_path / name), name)
        else:  # which Lightning starts anew with the same words
            command = [sys.executable, str(ROOT / "train.py"), *words]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert out.count(str(tmp_path / name)) == 1, "printed once, whatever the number of ranks (Gloo prints its own)"
    one, two = (open_checkpoint(latest(tmp_path / run)) for run in ("one", "two"))
    torch.testing.assert_close(one["state_dict"], two["state_dict"], rtol=1e-3, atol=1e-4)
    assert one["ConceptData"] == two["ConceptData"]
    for row, other in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert row["step"] == other["step"]
        for name in ("train/loss", "val/loss", "val/l2"):
            assert float(row[name] or 0) == pytest.approx(float(other[name] or 0), rel=1e-3)


def test_a_resumed_optimizer_follows_the_configuration(data, tmp_path, recorded):
    """Its settings come from the configuration, its moments from the checkpoint."""
    recorded(tiny_config(data, tmp_path / "run", "trainer.max_steps=6"))
    recorded(tiny_config(data, tmp_path / "run", "optimizer.weight_decay=0.3", "optimizer.eps=1e-6"))
    optimizer = open_checkpoint(latest(tmp_path / "run"))["optimizer_states"][0]
    assert [(g["weight_decay"], g["eps"]) for g in optimizer["param_groups"]] == [(0.3, 1e-6), (0.0, 1e-6)]
    assert {int(state["step"]) for state in optimizer["state"].values()} == {12}


@pytest.mark.parametrize("resume", ["auto", "none", "elsewhere.ckpt"])
def test_a_requeued_job_resumes_from_its_own_checkpoint(resume, data, tmp_path, monkeypatch):
    train(tiny_config(data, tmp_path / "run", "trainer.max_steps=3"))
    config = assemble(tiny_config(data, tmp_path / "run", f"trainer.resume={resume}"))[0].config
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert decide(config, 1)[:2] == (tmp_path / "run/checkpoints/last.ckpt", 3)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    if resume != "auto":
        with pytest.raises(UserError, match=r"trainer\.resume="):
            decide(config, 1)


def test_the_best_score_is_restored_only_beside_the_model_that_reached_it(data, tmp_path):
    """A run that starts from another run's checkpoint has no best model of its own yet."""
    folder = tmp_path / "run"
    callback = Checkpoints(folder, tiny_config(data, folder).trainer, Writing(0))
    callback.load_state_dict({"best": 1.5})
    assert callback.best == math.inf
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/best.ckpt").touch()
    callback.load_state_dict({"best": 1.5})
    assert callback.best == 1.5
    assert callback.state_dict() == {"best": 1.5, "watch": "val/loss"}
