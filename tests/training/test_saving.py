"""A run killed while it saves has a good checkpoint, the previous or the new one; disks fill up without harm."""

import errno
import os
import random
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from ranks import Run, full, start_together
from synthetic import tiny_config, write_data

from lcm.errors import UserError
from lcm.models import MODEL, build_model, load_model, save_model
from lcm.training import checkpoint
from lcm.training.checkpoint import AtomicCheckpointIO, check_disk_space, latest, open_checkpoint
from lcm.training.module import LCMModule
from lcm.training.ownership import OWNER
from lcm.training.run import train

NUMBERS = 400_000
"""Enough for a save to take a few milliseconds."""


def state(step):
    """A checkpoint whose every number is its step."""
    return {"global_step": step, "config": {}, "state_dict": {"a": torch.full((NUMBERS,), float(step))}}


def saving(run, background, first, ready):
    """Save one step after the other, until killed. ready: a descriptor that gets a byte before each save."""
    io, path = AtomicCheckpointIO(background), run / "checkpoints/last.ckpt"
    for step in range(first, 100_000):
        os.write(ready, b"!")
        io.save_checkpoint(state(step), path)


@pytest.mark.parametrize("background", [False, True])
def test_a_run_killed_at_fifty_random_moments_of_saving_has_a_good_checkpoint(background, tmp_path):
    """In forked processes, because importing torch takes longer than the test."""
    generator, step = random.Random(int(background)), 0
    io, start = AtomicCheckpointIO(background), time.monotonic()
    io.save_checkpoint(state(0), tmp_path / "checkpoints/last.ckpt")
    io.wait()
    saving_takes = time.monotonic() - start
    partial = 0
    for _ in range(50):
        heard, ready = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                saving(tmp_path, background, step + 1, ready)
            finally:
                os._exit(1)
        for _ in range(generator.randint(1, 3)):  # on a slow machine as on a quick one
            os.read(heard, 1)
        time.sleep(generator.uniform(0, 1) * saving_takes)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        os.close(heard)
        os.close(ready)
        partial += (tmp_path / "checkpoints/last.ckpt.tmp").exists()
        found = open_checkpoint(latest(tmp_path))
        assert found["global_step"] >= step
        step = found["global_step"]
        assert torch.equal(found["state_dict"]["a"], torch.full((NUMBERS,), float(step)))
    assert step > 20, "it did save"
    assert partial > 5, "and was killed while it wrote"


def test_a_model_folder_loads_after_a_kill_at_random_moments(tmp_path):
    config = tiny_config(tmp_path, tmp_path)
    torch.manual_seed(0)
    model = build_model(config.model)
    save_model(tmp_path, model.state_dict(), config)
    generator = random.Random(0)
    for _ in range(20):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    save_model(tmp_path, model.state_dict(), config)
            finally:
                os._exit(1)
        time.sleep(generator.uniform(0.001, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert load_model(tmp_path)[1] == config


def test_the_background_writer_writes_the_state_at_the_time_of_the_save(tmp_path):
    io, weights = AtomicCheckpointIO(background=True), torch.zeros(NUMBERS)
    for step in range(20):
        weights.fill_(step)
        io.save_checkpoint({"global_step": step, "state_dict": {"a": weights}, "config": {}}, tmp_path / "last.ckpt")
        weights.fill_(-1)
    io.wait()
    found = open_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(found["state_dict"]["a"], torch.full((NUMBERS,), 19.0))


def test_a_full_disk_is_reported_by_the_next_save_or_at_the_end(tmp_path, monkeypatch):
    io = AtomicCheckpointIO(background=True)
    io.save_checkpoint(state(1), tmp_path / "last.ckpt")
    io.wait()
    monkeypatch.setattr(torch, "save", full)
    io.save_checkpoint(state(2), tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"cannot be written .*No space left on device"):
        io.wait()
    io.wait()
    assert open_checkpoint(tmp_path / "last.ckpt")["global_step"] == 1


def test_a_run_whose_disk_fills_up_ends_in_one_line_and_resumes_once_there_is_space(tmp_path, monkeypatch):
    config = tiny_config(write_data(tmp_path / "data"), tmp_path / "run")
    original, saved = torch.save, []

    def save(content, path):
        saved.append(path)
        if len(saved) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(content, path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(UserError, match="cannot be written"):
        train(config)
    before = open_checkpoint(latest(tmp_path / "run"))["global_step"]
    assert 0 < before < 12
    train(config)
    assert open_checkpoint(latest(tmp_path / "run"))["global_step"] == 12


def test_a_full_disk_ends_all_ranks(tmp_path):
    """Only rank 0 writes. Rank 1 ends by itself, because its peer is gone."""
    settings = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.max_steps=100000"]
    config = tiny_config(write_data(tmp_path / "data"), tmp_path / "run", *settings)
    processes = start_together({"run": Run(config, spoils=(0, 0, "disk"))}, tmp_path / "logs", 2)
    try:
        assert all(process.wait(120) for process in processes)
    finally:
        for process in processes:
            process.kill()
    assert "No space left on device" in (tmp_path / "logs/0.log").read_text()


def test_a_disk_that_is_too_small_is_reported_before_training(tmp_path, monkeypatch):
    config = tiny_config(write_data(tmp_path / "data"), tmp_path / "run")
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(UserError, match=r"run.dir=.*: 0.001 GB are free, and the checkpoints will take 0.001\d* GB"):
        train(config)
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_a_folder_that_cannot_be_written_is_reported_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run.dir=.*: cannot be written \(Not a directory\); choose another"):
        check_disk_space(tmp_path / "file/run", 10, 1)


@pytest.mark.parametrize("name", [OWNER, MODEL, "config.yaml", "metrics.csv", "README.md", "checkpoints/last.ckpt"])
def test_a_folder_in_the_place_of_a_file_is_reported_before_training(name, tmp_path):
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"run.dir=.*: .*run/{name} is a folder; expected a file, so move it away"):
        check_disk_space(tmp_path / "run", 10, 1)


def test_a_file_or_a_link_to_nothing_in_the_place_of_a_folder_is_reported_before_training(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/checkpoints").touch()
    with pytest.raises(UserError, match=r"run.dir=.*: .*a/checkpoints is a file; expected a folder"):
        check_disk_space(tmp_path / "a", 10, 1)
    (tmp_path / "b").symlink_to("/nowhere")
    with pytest.raises(UserError, match=r"run.dir=.*: .*b is a link to /nowhere, which is not there; mend it"):
        check_disk_space(tmp_path / "b", 10, 1)


def test_the_newest_checkpoints_are_kept(tmp_path):
    """Each holds the state of its step; the newest is not written twice."""
    config = tiny_config(
        write_data(tmp_path / "data"), tmp_path / "run", "trainer.keep=2", "trainer.checkpoint_every=2"
    )
    train(config)
    folder = tmp_path / "run/checkpoints"
    kept = sorted(folder.glob("step-*.ckpt"))
    assert [path.name for path in kept] == ["step-00000010.ckpt", "step-00000012.ckpt"]
    assert [open_checkpoint(path)["global_step"] for path in kept] == [10, 12]
    assert kept[1].samefile(folder / "last.ckpt")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_breaks_finishes_writing_whatever_its_strategy_does(error, tmp_path, monkeypatch, capfd):
    """The strategy's own teardown does not wait here, as FSDP's does not. After Ctrl-C a line says how to resume."""
    write, step = checkpoint._write, LCMModule.training_step

    def slowly(*arguments):
        time.sleep(0.5)
        write(*arguments)

    def broken(self, batch, batch_idx):
        if self.global_step == 2:
            raise error("power cut")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(checkpoint, "_write", slowly)
    monkeypatch.setattr(LCMModule, "training_step", broken)
    monkeypatch.setattr(SingleDeviceStrategy, "teardown", lambda self: None)
    with pytest.raises(error):
        train(tiny_config(write_data(tmp_path / "data"), tmp_path / "run", "trainer.checkpoint_every=2"))
    printed = capfd.readouterr()
    assert ("the same command resumes from" in printed.out + printed.err) == (error is KeyboardInterrupt)
    assert open_checkpoint(latest(tmp_path / "run"))["global_step"] == 2
