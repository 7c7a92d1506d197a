"""A trained model on disk: model.safetensors + config.yaml. And how to get there from a training checkpoint.

    runs/NAME/model.safetensors, config.yaml       the best model so far: all that generate and evaluate open
    runs/NAME/checkpoints/last.ckpt, best.ckpt     Lightning's: weights, optimizer, position; what a run resumes from

Every file is complete or absent, whenever the process dies. No pickle is opened unless a person says so.
"""

import os
import pickle
import shutil
import tempfile
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lcm.config import Config
from lcm.errors import UserError, existing_file
from lcm.files import atomic_path

LAST, BEST = "last.ckpt", "best.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint, streamed to a temporary file on the same disk and renamed when it is complete.

    background: what is saved is copied, and written while training goes on; one file at a time. An error is raised by
    the next save, or by `wait`
    """

    def __init__(self, background: bool = False) -> None:
        super().__init__()
        self._writer = ThreadPoolExecutor(1) if background else None
        self._pending: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises UserError where the disk does not take it; the file of that name stays as it was."""
        assert storage_options is None
        self.wait()
        if self._writer is None:
            _write(checkpoint, Path(path))
            return
        copied = tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), checkpoint)
        self._pending = self._writer.submit(_write, copied, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Its tensors stay on disk until they are used, so that the processes of a machine share one copy."""
        return dict(torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only))

    def wait(self) -> None:
        """Until everything is written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def teardown(self) -> None:
        self.wait()


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            torch.save(checkpoint, partial)
    except (OSError, RuntimeError) as error:  # torch raises the second when a disk is full
        raise UserError(f"{path}: cannot be written ({error}); what was saved before is still there") from error


def keep_copy(path: Path, step: int, keep: int) -> None:
    """The newest `keep` checkpoints stay, as step-00000100.ckpt; the file is not written a second time."""
    copy = path.with_name(f"step-{step:08}.ckpt")
    copy.unlink(missing_ok=True)
    try:
        os.link(path, copy)
    except OSError:  # a file system without links
        with atomic_path(copy) as partial:
            shutil.copyfile(path, partial)
    # The newest by their time: a run may have gone on from an earlier step than others that are there.
    for old in sorted(path.parent.glob("step-*.ckpt"), key=lambda kept: kept.stat().st_mtime_ns)[:-keep]:
        old.unlink()


def room_of_checkpoints(parameters: int, keep: int) -> int:
    """The most bytes that a run's folder will hold at once. keep: `trainer.keep`.

    Weights and two moments in last.ckpt, best.ckpt, a copy of one that is being replaced, those that are kept; and the
    model itself, with its copy.
    """
    return 12 * parameters * (3 + max(keep - 1, 0)) + 8 * parameters


def check_room(folder: Path, parameters: int, keep: int) -> None:
    """Raises UserError where the run's folder cannot be written, or its disk is too small for what will be there."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"run.dir={folder}: cannot be written ({error.strerror}); choose another") from error
    # An earlier part of the run has its share already.
    there = sum({(stat := path.stat()).st_ino: stat.st_size for path in folder.rglob("*.ckpt")}.values())
    needed = room_of_checkpoints(parameters, keep) - there
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"run.dir={folder}: {free / 1e9:.3g} GB are free, and the checkpoints will take {needed / 1e9:.3g} GB; "
            "choose another, or lower trainer.keep"
        )


def latest(run_dir: str | Path) -> Path | None:
    """The checkpoint from which a run goes on, or None where it has none yet."""
    path = Path(run_dir, "checkpoints", LAST)
    return path if path.is_file() else None


def open_checkpoint(path: str | Path, trust: bool = False) -> dict[str, Any]:
    """A training checkpoint's contents, its tensors left on disk until they are used.

    Raises UserError where it is not one, or where opening it could run code and `trust` is not given.
    """
    broken = f"{path}: not a complete checkpoint; copy it again, or take an older one"
    if not zipfile.is_zipfile(existing_file(path, "--checkpoint")):
        raise UserError(broken)
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds more than tensors and numbers, so opening it could run code that is hidden in it; "
            "if you know where it comes from, add --trust-checkpoint"
        ) from error
    except RuntimeError as error:
        raise UserError(broken) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "config"} <= checkpoint.keys():
        raise UserError(f"{path}: not a checkpoint of lcm train: it has no state_dict and config")
    return checkpoint


def resume_from(config: Config) -> Path | None:
    """The checkpoint to go on from, by `trainer.resume`. An earlier run is never overwritten: that is a UserError."""
    found = latest(config.run.dir)
    if found and int(os.environ.get("SLURM_RESTART_COUNT") or 0):  # the same job again, whatever it began with
        return found
    match config.trainer.resume:
        case "auto":
            return found
        case "none" if found:
            raise UserError(
                f"trainer.resume=none, but {found} holds an earlier run; choose another run.dir, delete "
                f"{config.run.dir}, or leave trainer.resume out to go on from there"
            )
        case "none":
            return None
        case path:
            return existing_file(path, "trainer.resume")


def is_finished(path: Path, config: Config) -> bool:
    """Whether the checkpoint has all steps of the run. Raises UserError where it is of another model or codec."""
    checkpoint = open_checkpoint(path)
    old, new = _identity(checkpoint["config"]), _identity(config.model_dump(mode="json"))
    for name in sorted(new):
        if old.get(name) != new[name]:
            raise UserError(
                f"{name}={new[name]}, but {path} was trained with {old.get(name)}; "
                "set it back, or start another run with another run.dir"
            )
    return bool(checkpoint["global_step"] >= config.trainer.max_steps)


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """What may not change in the middle of a run, by name."""
    model = {f"model.{name}": value for name, value in config["model"].items()}
    return {**model, "codec.fingerprint": (config["codec"] or {}).get("fingerprint")}
