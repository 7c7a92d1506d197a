"""One decision about run.dir, from everything in it: whole checkpoints first, and never over an earlier run."""

import json
import shutil
import zipfile

import pytest
import torch
from synthetic import tiny_config, write_data

from lcm.errors import UserError
from lcm.models import MODEL, load_model
from lcm.training.checkpoint import export, latest, open_checkpoint
from lcm.training.ownership import OWNER
from lcm.training.run import assemble, check, train
from lcm.training.start import decide


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folders of data and of a run of 12 steps, with best.ckpt and step-00000009.ckpt beside last.ckpt."""
    folder = tmp_path_factory.mktemp("finished")
    data = write_data(folder / "data")
    train(tiny_config(data, folder / "run", "trainer.keep=2", "optimizer.final_lr=1.0", "trainer.loggers=csv"))
    return data, folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run's folder."""
    return shutil.copytree(finished[1], tmp_path / "run")


def config_of(finished, run, *settings):
    """A configuration as a run has it, with the codec of its data."""
    return assemble(tiny_config(finished[0], run, "optimizer.final_lr=1.0", *settings), on_meta=True)[0].config


def spoil(path, number):
    """Flip a bit in the middle of a member."""
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.file_size]
        member = members[number % len(members)]
        with archive.open(member) as file:
            offset = file._orig_compress_start + member.file_size // 2
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))
    return member.filename


@pytest.mark.parametrize("number", range(12))
def test_a_flipped_bit_in_any_part_of_a_checkpoint_is_noticed(number, run):
    last = latest(run)
    count = len([m for m in zipfile.ZipFile(last).infolist() if m.file_size])
    for each in range(number, count, 12):
        shutil.copy(last, damaged := run / "damaged.ckpt")
        name = spoil(damaged, each)
        with pytest.raises(UserError, match=rf"damaged.ckpt: damaged: {name} differs from its checksum; copy it again"):
            open_checkpoint(damaged, whole=True)


def test_a_damaged_checkpoint_is_neither_resumed_nor_exported(finished, run, tmp_path, capsys):
    """200 kB of zeros, as a broken disk leaves them: the newest whole one is taken instead, and that is said."""
    with latest(run).open("r+b") as file:
        file.seek(100_000)
        file.write(bytes(200_000))
    with pytest.raises(UserError, match="damaged"):
        export(latest(run), tmp_path / "out")
    start = decide(config_of(finished, run, "trainer.max_steps=14"), 1)
    assert start.checkpoint.name == "step-00000012.ckpt" or start.step < 12
    assert "last.ckpt: damaged: last/data/" in start.notes[0] or "differs from its checksum" in start.notes[0]
    assert start.notes[0].endswith("resuming from the newest that is whole")


@pytest.mark.parametrize("how", ["missing", "a dangling link", "cut off", "empty", "text", "NaN"])
def test_the_newest_whole_checkpoint_takes_the_place_of_a_last_one_that_cannot_be_used(how, finished, run):
    last = latest(run)
    content = last.read_bytes()
    if how == "NaN":
        checkpoint = open_checkpoint(last)
        checkpoint["state_dict"]["model.post.weight"] = torch.full_like(
            checkpoint["state_dict"]["model.post.weight"], torch.nan
        )
    last.unlink()
    match how:
        case "a dangling link":
            last.symlink_to("/nowhere/last.ckpt")
        case "cut off":
            last.write_bytes(content[: len(content) // 2])
        case "empty":
            last.touch()
        case "text":
            last.write_text("not a checkpoint")
        case "NaN":
            torch.save(checkpoint, last)
    (run / "checkpoints/step-00000012.ckpt").unlink()
    start = decide(config_of(finished, run), 1)
    assert (start.checkpoint.name, start.step) == ("step-00000009.ckpt", 9)
    check(tiny_config(finished[0], run, "optimizer.final_lr=1.0"))
    (line,) = start.notes
    assert str(last) in line
    assert {"missing": "is missing", "a dangling link": "/nowhere/last.ckpt", "NaN": "not finite"}.get(how, "") in line


def test_a_run_without_any_whole_checkpoint_is_not_started_over(finished, run):
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"run.dir=.* holds an earlier run, but none of its checkpoints can be used"):
        decide(config_of(finished, run), 1)


def test_a_run_that_has_lost_its_checkpoints_is_not_started_over(finished, run):
    shutil.rmtree(run / "checkpoints")
    for resume in ("auto", "none"):
        with pytest.raises(UserError, match=r"holds model.safetensors of an earlier run, but no checkpoint"):
            train(tiny_config(finished[0], run, f"trainer.resume={resume}"))
    (run / MODEL).unlink()
    with pytest.raises(UserError, match=r"holds the notes of a run that had saved step 12, but no checkpoint"):
        check(tiny_config(finished[0], run))
    (run / OWNER).unlink()
    assert decide(config_of(finished, run), 1) == (None, 0, (), 0), "a run that was killed before its first checkpoint"


def test_a_run_that_began_with_another_run_s_checkpoint_goes_on_with_its_own(finished, run, tmp_path):
    base = finished[1] / "checkpoints/best.ckpt"
    start = decide(config_of(finished, run, f"trainer.resume={base}", "trainer.max_steps=20"), 1)
    assert (start.checkpoint, start.step) == (latest(run), 12)
    assert start.notes[0].startswith(f"trainer.resume={base} is where this run began; it is at step 12 by now")
    fresh = decide(config_of(finished, tmp_path / "fresh", f"trainer.resume={base}"), 1)
    assert fresh.checkpoint == base
    assert decide(config_of(finished, run, f"trainer.resume={latest(run)}"), 1).notes == ()


def test_a_checkpoint_of_something_else_is_refused(finished, tmp_path):
    torch.save({"state_dict": {}, "config": {}}, other := tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"not a checkpoint that lcm train can resume from: it has no global_step"):
        decide(config_of(finished, tmp_path / "run", f"trainer.resume={other}"), 1)


@pytest.mark.parametrize(
    ("settings", "ranks", "lines"),
    [
        ([], 1, []),
        (["data.workers=2", "trainer.keep=3", "trainer.checkpoint_every=9", "trainer.loggers=tensorboard"], 1, []),
        (["optimizer.lr=0.5"], 1, ["optimizer.lr=0.5 from step 12 on; until then it was 0.01"]),
        (["optimizer.betas=0.8,0.9"], 1, ["optimizer.betas=0.8,0.9 from step 12 on; until then it was 0.9,0.95"]),
        (["run.seed=9"], 1, ["run.seed=9 from step 12 on; until then it was 7"]),
        (["data.slots=10"], 1, ["data.slots=10 from step 12 on; until then it was 12"]),
        (["trainer.precision=bf16"], 1, ["trainer.precision=bf16 from step 12 on; until then it was fp32"]),
        ([], 2, ["a step has 4 rows from step 12 on (2 ranks x trainer.accumulate=1 x data.rows=2); "
                 "until then it had 2: data.rows=1 keeps it"]),
        (["data.rows=1"], 2, []),
        (["trainer.restarts=9"], 1, []),
        (["data.rows=1", "trainer.accumulate=2"], 1, []),
        (["data.rows=3"], 4, ["a step has 12 rows from step 12 on (4 ranks x trainer.accumulate=1 x data.rows=3); "
                              "until then it had 2: 4 do not divide it"]),
    ],
)  # fmt: skip
def test_each_change_that_changes_training_is_a_line(settings, ranks, lines, finished, run):
    assert list(decide(config_of(finished, run, *settings), ranks).notes) == lines


def test_a_check_tells_what_changes_too(finished, run, capsys):
    check(tiny_config(finished[0], run, "optimizer.final_lr=1.0", "optimizer.lr=0.5"))
    assert "optimizer.lr=0.5 from step 12 on" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["missing", "cut off"])
def test_a_finished_run_gets_its_model_again(how, finished, run, capsys):
    """A run that was killed between its last checkpoint and its model."""
    before = {name: tensor.clone() for name, tensor in load_model(run)[0].state_dict().items()}
    if how == "missing":
        (run / MODEL).unlink()
    else:
        (run / MODEL).write_bytes((run / MODEL).read_bytes()[:-10])
    train(tiny_config(finished[0], run, "optimizer.final_lr=1.0"))
    assert (
        f"{run / MODEL} was missing or damaged: written again from {run}/checkpoints/best.ckpt"
        in capsys.readouterr().err
    )
    torch.testing.assert_close(dict(load_model(run)[0].state_dict()), before, rtol=0, atol=0)


def test_a_finished_run_gets_its_card_again(finished, run):
    """A run that was killed, or whose disk was full, between its last checkpoint and its card."""
    before = (run / "README.md").read_text()
    (run / "README.md").unlink()
    train(tiny_config(finished[0], run, "optimizer.final_lr=1.0"))
    assert (run / "README.md").read_text() == before.replace(f"# {finished[1].name}", f"# {run.name}")


def test_a_finished_run_without_a_model_is_no_success(finished, run):
    (run / MODEL).unlink()
    (run / "checkpoints/best.ckpt").unlink()
    with pytest.raises(UserError, match=r"no model was chosen as the best, .*lcm export --checkpoint"):
        train(tiny_config(finished[0], run, "optimizer.final_lr=1.0"))


def test_the_record_of_a_run_says_what_was_saved(finished):
    record = json.loads((finished[1] / OWNER).read_text())
    assert (record["saved"], record["attempt"], record["ended"]) == (12, 1, True)
