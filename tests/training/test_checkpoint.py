"""Models and checkpoints on disk are complete or absent, exact, and run no pickled code unasked."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from synthetic import DIM, pack, tiny_config, write_data

from lcm.cli import main
from lcm.config import Config, save_config
from lcm.errors import UserError
from lcm.models import build_model, load_model, save_model
from lcm.models.interface import Sampling
from lcm.training.checkpoint import AtomicCheckpointIO, export, latest, open_checkpoint
from lcm.training.run import train


@pytest.fixture
def config():
    values = {"model": {"kind": "base", "dim": DIM, "width": 16, "heads": 2, "layers": 1}}
    return Config.parse(values, [], where="test")


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    model = build_model(config.model)
    model.normalizer.set(torch.randn(DIM), torch.rand(DIM))
    model.end_of_text.copy_(torch.randn(DIM))
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of twelve steps."""
    folder = tmp_path_factory.mktemp("run")
    return train(tiny_config(write_data(folder / "data"), folder / "mine", "trainer.loggers=tensorboard"))


def leftovers(folder):
    return [path.name for path in folder.rglob("*.tmp")]


# ---- the model's folder ----


def test_what_is_loaded_is_what_was_saved(model, config, tmp_path):
    save_model(tmp_path / "new/folder", model.state_dict(), config)
    loaded, loaded_config = load_model(tmp_path / "new/folder")
    assert loaded_config == config
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    batch = pack([[3, 2]], slots=6)
    expected = model.eval().predict(batch, Sampling())
    assert torch.equal(loaded.predict(batch, Sampling()), expected)
    assert all(p.requires_grad for p in loaded.parameters()), "it can be trained on"
    assert not leftovers(tmp_path)


def test_the_file_holds_parameters_and_buffers_under_their_own_names(model, config, tmp_path):
    save_model(tmp_path, model.state_dict(), config)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == set(model.state_dict())
    assert {"end_of_text", "normalizer.location", "normalizer.scale", "pre.weight"} < names


def test_a_crash_while_saving_leaves_the_old_model(model, config, tmp_path, monkeypatch):
    save_model(tmp_path, model.state_dict(), config)
    before = (tmp_path / "model.safetensors").read_bytes()

    def half(tensors, path, _):
        path.write_bytes(before[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr("lcm.models.save_file", half)
    model.end_of_text.zero_()
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path, model.state_dict(), config)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    load_model(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), r"no model.safetensors there; expected a folder written by"),
        (lambda f: (f / "config.yaml").unlink(), r"the model's configuration=.*config.yaml: no such file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"nonsense"), "not a readable safetensors file"),
        (lambda f: truncate(f / "model.safetensors"), "not a readable safetensors file"),
        (
            lambda f: zeros(f / "model.safetensors"),
            "model.safetensors: damaged: its tensors differ from",
        ),
        (lambda f: not_finite(f / "model.safetensors"), "model.safetensors: post.weight is not finite; copy it again"),
        (lambda f: other_config(f, "model.width=32"), r"post.weight is \(8, 16\), but .* has \(8, 32\)"),
        (lambda f: other_config(f, "model.layers=2"), r"blocks.1.attention.* is missing, but .* has"),
        (lambda f: other_config(f, "model.layers=0"), "model.layers"),
    ],
    ids=["no model", "no config", "garbage", "truncated", "zeros", "NaN", "width", "layers", "broken config"],
)
def test_a_folder_that_cannot_be_loaded_is_refused_in_one_line(spoil, message, model, config, tmp_path):
    save_model(tmp_path, model.state_dict(), config)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def zeros(path):
    with path.open("r+b") as file:
        file.seek(-200, os.SEEK_END)
        file.write(bytes(100))


def not_finite(path):
    """A file of another program, without a checksum."""
    tensors = load_file(path)
    tensors["post.weight"][0, 0] = torch.nan
    save_file(tensors, path)


def other_config(folder, override):
    text = (folder / "config.yaml").read_text()
    name, value = override.split(".")[1].split("=")
    lines = [f"  {name}: {value}" if line.startswith(f"  {name}:") else line for line in text.splitlines()]
    (folder / "config.yaml").write_text("\n".join(lines))


def test_a_file_with_too_many_tensors_belongs_to_another_model(model, config, tmp_path):
    save_model(tmp_path, model.state_dict(), config)
    save_config(Config.parse(config.model_dump(mode="json"), ["model.dim=4"], where="test"), tmp_path / "config.yaml")
    with pytest.raises(UserError, match="the file belongs to another model"):
        load_model(tmp_path)


# ---- Lightning's checkpoints ----


def test_a_crash_while_writing_a_checkpoint_leaves_the_old_one(tmp_path, monkeypatch):
    path, io = tmp_path / "deep/last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, path)
    original = torch.save

    def half(checkpoint, file):
        original(checkpoint, file)
        truncate(file)
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match=r"No space left on device.*what was saved before is still there"):
        io.save_checkpoint({"step": 2}, path)
    assert io.load_checkpoint(path, weights_only=True) == {"step": 1}
    monkeypatch.undo()
    io.save_checkpoint({"step": 3}, str(path))
    assert io.load_checkpoint(path, weights_only=True) == {"step": 3}
    assert not leftovers(tmp_path)


def test_a_run_folder_holds_model_card_best_and_last_checkpoint(run):
    names = {path.name for path in run.iterdir()}
    assert {"model.safetensors", "config.yaml", "README.md", "checkpoints"} < names
    best = open_checkpoint(run / "checkpoints/best.ckpt")
    assert f"| val/loss | {best['metrics']['val/loss']:.6g} |" in (run / "README.md").read_text(), "of the best model"
    assert any(name.startswith("events.out") for name in names)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert latest(run) == run / "checkpoints/last.ckpt"
    assert latest(run / "elsewhere") is None
    assert load_model(run)[1].codec.name == "synthetic", "the configuration says what it was trained on"


def test_checkpoints_hold_plain_data_only(run):
    checkpoint = open_checkpoint(latest(run))
    assert checkpoint["global_step"] == 12
    assert checkpoint["config"]["model"]["width"] == 16
    assert checkpoint["metrics"]["val/loss"] > 0
    assert type(checkpoint["versions"]["torch"]) is str


class Bomb:
    """Unpickling it runs code."""

    def __reduce__(self):
        return (open, (str(Bomb.path), "w"))


def test_code_hidden_in_a_checkpoint_runs_only_when_trusted(run, tmp_path):
    Bomb.path = tmp_path / "exploded"
    checkpoint = {**torch.load(latest(run), weights_only=True), "extra": Bomb()}
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"could run code .* add --trust-checkpoint"):
        export(tmp_path / "evil.ckpt", tmp_path / "out")
    assert not Bomb.path.exists()
    assert not (tmp_path / "out").exists()
    export(tmp_path / "evil.ckpt", tmp_path / "out", trust=True)
    assert Bomb.path.exists(), "the test's code does run when it is trusted"
    load_model(tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("truncated", "not a complete checkpoint"),
        ("text", "not a complete"),
        ("another", "not a checkpoint of lcm train"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(content, message, run, tmp_path):
    path = tmp_path / "some.ckpt"
    path.write_bytes(latest(run).read_bytes())
    if content == "truncated":
        truncate(path)
    if content == "text":
        path.write_text("not a checkpoint")
    if content == "another":
        torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=message) as caught:
        export(path, tmp_path / "out")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        export(tmp_path / "none.ckpt", tmp_path / "out")


@pytest.mark.parametrize(
    ("part", "value"),
    [("global_step", None), ("metrics", [1]), ("versions", 3), ("state_dict", [1]), ("config", 5), (None, None)],
)
def test_a_checkpoint_with_a_part_of_another_type_is_no_fault_of_lcm(part, value, run, tmp_path):
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    if part is None:
        part, checkpoint["state_dict"] = "'model.end_of_text' of its state_dict", {"model.end_of_text": None}
    else:
        checkpoint[part] = value
    torch.save(checkpoint, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=rf"x\.ckpt: not a checkpoint of lcm train: (its )?{part}"):
        export(tmp_path / "x.ckpt", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_export_is_the_model_of_the_checkpoint_and_its_card(run, tmp_path, capsys):
    assert main(["export", "--checkpoint", str(run / "checkpoints/best.ckpt"), "--output", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert (tmp_path / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()
    card = (tmp_path / "README.md").read_text()
    best = open_checkpoint(run / "checkpoints/best.ckpt")
    for promised in ["base, 28,168 parameters", "synthetic (8 channels", "of 12", f"{best['metrics']['val/loss']:.6g}"]:
        assert promised in card
    assert f"lcm {best['versions']['lcm']}" in card


def test_export_of_a_runs_folder_takes_its_last_checkpoint(run, tmp_path):
    assert main(["export", "--checkpoint", str(run), "--output", str(tmp_path)]) == 0
    weights = {n.removeprefix("model."): t for n, t in open_checkpoint(latest(run))["state_dict"].items()}
    torch.testing.assert_close(dict(load_model(tmp_path)[0].state_dict()), weights, rtol=0, atol=0)
    assert main(["export", "--checkpoint", str(tmp_path / "empty"), "--output", str(tmp_path)]) == 1


def test_an_export_in_half_precision_takes_half_the_space_and_loads_in_fp32(run, tmp_path):
    """Parameters are rounded to fp16; buffers, such as the table of a schedule, stay exact."""
    for name, flags in (("whole", []), ("half", ["--half"])):
        assert main(["export", "--checkpoint", str(run), "--output", str(tmp_path / name), *flags]) == 0
    stored = load_file(tmp_path / "half" / "model.safetensors")
    (whole, _), (half, _) = load_model(tmp_path / "whole"), load_model(tmp_path / "half")
    parameters, exact = dict(whole.named_parameters()), dict(whole.named_buffers())
    for name, parameter in half.named_parameters():
        assert stored[name].dtype == torch.float16
        assert torch.equal(parameter, parameters[name].half().float())
    for name, buffer in half.named_buffers():
        assert buffer.dtype == exact[name].dtype
        assert torch.equal(buffer, exact[name])
