"""Validations that write: nothing of the training changes, and the best model is the one that writes best."""

import csv
import json

import pytest
import torch
from fakes import FakeCodec, write_dataset
from family_runs import config_of, train_and_break
from ranks import Run, train_together
from same_run import assert_same_checkpoint, assert_same_run, losses
from synthetic import tiny_config

from lcm.codec import load_codec
from lcm.config import TrainerConfig
from lcm.errors import UserError
from lcm.evaluation import HeldOut
from lcm.jobs import runs as jobs_runs
from lcm.models import load_model
from lcm.prepare import PrepareOptions, prepare
from lcm.tales import Errand, tales
from lcm.training.checkpoint import open_checkpoint
from lcm.training.run import check, train

CODEC = FakeCodec()
"""Knows the sentences that it has encoded."""
EVERY = ("trainer.validate_every=2", "trainer.write_every=2", "trainer.write_rows=2")
SCORES = [0.1, 0.5, 0.3, 0.5, 0.4, 0.9]
"""Scores of the models of `scored`, validation after validation; the second is the best of the first five."""


def stories(count, seed):
    return [tale.story for tale in tales(Errand, count, seed=seed)]


def pairs(count, seed):
    return [(tale.story, list(tale.gist)) for tale in tales(Errand, count, seed=seed)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Stories and gists, in vectors of a made-up codec."""
    folder = tmp_path_factory.mktemp("data")
    splits = {"train": [*stories(12, 1), *pairs(8, 2)], "validation": [*stories(5, 3), *pairs(5, 4)]}
    write_dataset(folder / "both", CODEC, splits)
    write_dataset(folder / "stories", CODEC, {"train": stories(9, 1), "validation": stories(4, 3)})
    write_dataset(folder / "prose", CODEC, {"train": [["It rains.", "It pours."]] * 9, "validation": [["No."] * 4]})
    write_dataset(folder / "train", CODEC, {"train": stories(9, 1)})
    return folder


@pytest.fixture(autouse=True)
def codec(monkeypatch):
    monkeypatch.setattr("lcm.evaluation.watching.load_codec", lambda name, device: CODEC)


def run_of(data, run, *settings, **changes):
    changes = {"dim": CODEC.dim, **changes}
    return config_of("base", data / "both", run, "", "data.slots=32", *settings, **changes)


@pytest.fixture
def scored(monkeypatch):
    """Scores that a test chooses; the models are written for all the same."""
    said = iter(SCORES)
    monkeypatch.setattr(HeldOut, "scores", lambda *_: {"summaries.rougeL": next(said), "truth.gist": 0.0})


def test_training_is_the_same_to_the_last_bit_with_and_without_texts(data, tmp_path):
    """Weights, moments, position and losses, with dropout on."""
    plain = run_of(data, tmp_path / "plain", "trainer.validate_every=2")
    writes = run_of(data, tmp_path / "writes", *EVERY, "trainer.write_every=6")
    for config in (plain, writes):
        train(config)
    for name in ("last.ckpt", "best.ckpt"):
        assert_same_checkpoint(*(tmp_path / run / "checkpoints" / name for run in ("plain", "writes")))

    def without_texts(run):
        rows = [{name: v for name, v in row.items() if "." not in name} for row in losses(run)]
        return [row for row in rows if any(value for name, value in row.items() if name != "step")]

    assert without_texts(tmp_path / "plain") == without_texts(tmp_path / "writes")


def test_a_killed_run_resumes_with_the_same_scores(data, tmp_path):
    settings = (*EVERY, "trainer.write_every=4", "trainer.watch=truth.consistent", "trainer.checkpoint_every=3")
    straight, killed = (run_of(data, tmp_path / name, *settings) for name in ("straight", "killed"))
    train(straight)
    train_and_break(killed, 7)
    train(killed)
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


def test_scores_are_those_of_the_model_as_it_is_saved(data, tmp_path):
    config = run_of(data, tmp_path / "run", *EVERY, "trainer.watch=summaries.rougeL", "trainer.max_steps=2")
    train(config)
    model, saved = load_model(tmp_path / "run")
    held_out = HeldOut.open(saved)
    assert (len(held_out.pairs), len(held_out.stories)) == (2, 2)
    again = held_out.scores(model.state_dict(), torch.device("cpu"))
    assert set(again) == {name for name in TrainerConfig.model_fields["watch"].annotation.__args__ if "." in name}
    metrics = open_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["metrics"]
    assert {f"val/{name}": value for name, value in again.items()}.items() <= metrics.items()
    assert [pair.id for pair in HeldOut.open(saved).pairs] == [pair.id for pair in held_out.pairs]


def test_the_model_that_writes_best_is_kept(data, tmp_path, scored):
    train(run_of(data, tmp_path / "run", *EVERY, "trainer.watch=summaries.rougeL", "trainer.max_steps=10"))
    assert open_checkpoint(tmp_path / "run/checkpoints/best.ckpt")["global_step"] == 4
    with (tmp_path / "run/metrics.csv").open() as file:
        found = [float(row["val/summaries.rougeL"]) for row in csv.DictReader(file) if row["val/summaries.rougeL"]]
    assert found == SCORES[:5]


def test_texts_are_written_at_some_validations_only_and_at_the_last(data, tmp_path, scored):
    rare = ("trainer.validate_every=2", "trainer.write_every=4", "trainer.watch=summaries.rougeL")
    train(run_of(data, tmp_path / "run", *rare, "trainer.max_steps=10"))
    with (tmp_path / "run/metrics.csv").open() as file:
        found = [int(row["step"]) for row in csv.DictReader(file) if row["val/summaries.rougeL"]]
    assert found == [4, 8, 10]
    assert open_checkpoint(tmp_path / "run/checkpoints/best.ckpt")["global_step"] == 8


def test_a_run_without_a_new_best_ends_early_and_does_not_go_on(data, tmp_path, scored, capsys):
    config = run_of(data, tmp_path / "runs/one", *EVERY, "trainer.watch=summaries.rougeL", "trainer.early_stop=2")
    train(config)
    assert "ended early, after step 8: no new best summaries.rougeL in 2 scores" in capsys.readouterr().err
    assert open_checkpoint(tmp_path / "runs/one/checkpoints/last.ckpt")["global_step"] == 8
    assert open_checkpoint(tmp_path / "runs/one/checkpoints/best.ckpt")["global_step"] == 4
    assert jobs_runs.run(jobs_runs.argparse.Namespace(folder=str(tmp_path / "runs"), json=True)) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["state"], row["step"]) == ("finished", 8)
    train(config)
    assert "ended early, after step 8: no new best summaries.rougeL in 2 scores; trainer.early_stop=0 trains on" in (
        capsys.readouterr().err
    )
    assert open_checkpoint(tmp_path / "runs/one/checkpoints/last.ckpt")["global_step"] == 8
    train(config.model_copy(update={"trainer": config.trainer.model_copy(update={"early_stop": 0, "max_steps": 12})}))
    assert open_checkpoint(tmp_path / "runs/one/checkpoints/last.ckpt")["global_step"] == 12
    assert open_checkpoint(tmp_path / "runs/one/checkpoints/best.ckpt")["global_step"] == 12


def test_the_loss_may_end_a_run_early_too(data, tmp_path):
    """A run whose rate is so high that its loss rises."""
    wild = ("optimizer.lr=3", "optimizer.warmup_steps=0", "optimizer.clip=0", "trainer.early_stop=1")
    train(run_of(data, tmp_path / "run", "trainer.validate_every=1", *wild))
    assert open_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] < 12


def test_another_score_begins_anew(data, tmp_path, scored):
    """A best ROUGE so far says nothing about a loss, of which less is better."""
    train(run_of(data, tmp_path / "run", *EVERY, "trainer.watch=summaries.rougeL", "trainer.max_steps=4"))
    train(run_of(data, tmp_path / "run", "trainer.validate_every=2", "trainer.max_steps=6"))
    assert open_checkpoint(tmp_path / "run/checkpoints/best.ckpt")["global_step"] == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("trainer.watch=truth.gist",), r"watch=truth.gist needs texts: set write_every, as in 4"),
        (("trainer.write_every=6",), r"write_every=6 is no multiple of validate_every=4"),
        (("trainer.watch=summaries.rougel", "trainer.write_every=4"), r"trainer.watch='summaries.rougel'.*rougeL"),
    ],
)
def test_what_cannot_be_watched_is_refused_by_the_configuration(settings, message, data, tmp_path):
    with pytest.raises(UserError, match=message):
        tiny_config(data / "both", tmp_path / "run", "trainer.validate_every=4", *settings)


@pytest.mark.parametrize(
    ("name", "watch", "message"),
    [
        ("stories", "summaries.rougeL", r"trainer.watch=summaries.rougeL: the validation split has no pairs that fit"),
        ("stories", "truth.gist", r"trainer.watch=truth.gist: the validation split has no stories with gists"),
        ("prose", "truth.consistent", r"trainer.watch=truth.consistent: the validation split has no stories of"),
        ("prose", "val/loss", r"trainer.write_every=2: the validation split has neither pairs nor stories"),
        ("train", "val/loss", r"trainer.write_every=2: the data has no validation split to write for"),
    ],
)
def test_what_is_missing_is_said_before_training(name, watch, message, data, tmp_path):
    config = run_of(data, tmp_path / "run", *EVERY, f"trainer.watch={watch}", f"data.path={data / name}")
    for begin in (check, train):
        with pytest.raises(UserError, match=message):
            begin(config)
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_ranks_choose_the_same_model(strategy, tmp_path):
    """With the codec of the package, which rank 0 loads."""
    rows = [
        {"id": str(i), "document": " ".join(story), "summary": gist[0], "split": "validation" if i < 4 else "train"}
        for i, (story, gist) in enumerate(pairs(12, 2))
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(
        PrepareOptions(input=(str(tmp_path / "pairs.jsonl"),), output=str(tmp_path / "both"), pairs=True, workers=1)
    )
    settings = (*EVERY, "trainer.watch=summaries.rougeL", f"trainer.strategy={strategy}", "trainer.max_steps=4")
    config = run_of(tmp_path, tmp_path / "run", *settings, "trainer.devices=2", "data.rows=2", dim=512)
    train_together({"run": Run(config)}, tmp_path / "logs", 2)
    checkpoint = open_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert 0 <= checkpoint["metrics"]["val/summaries.rougeL"] <= 1
    model, saved = load_model(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lcm.evaluation.watching.load_codec", load_codec)
        again = HeldOut.open(saved).scores(model.state_dict(), torch.device("cpu"))
    best = open_checkpoint(tmp_path / "run/checkpoints/best.ckpt")["metrics"]["val/summaries.rougeL"]
    assert again["summaries.rougeL"] == pytest.approx(best, abs=0.02)
