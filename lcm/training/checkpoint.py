"""Training checkpoints: written whole or not at all, found again to resume from, exported to a model's folder.

    runs/NAME/checkpoints/last.ckpt, best.ckpt     Lightning's: weights, optimizer, position; what a run resumes from
    lcm export --checkpoint runs/NAME              → model.safetensors, config.yaml, README.md (a model card)

Opening a checkpoint runs no pickled code unless a person allows it.
"""

import argparse
import json
import os
import pickle
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lcm.config import Config
from lcm.errors import UserError, in_one_line, without_secrets
from lcm.files import atomic_path
from lcm.models import MODEL, build_from_tensors, forget_idle, save_model
from lcm.options import Option, add_options, check_fields, existing_file, options_from, writable_folder
from lcm.training.ownership import OWNER, Owner

LAST, BEST, CARD = "last.ckpt", "best.ckpt", "README.md"
FILES = (OWNER, MODEL, "config.yaml", "metrics.csv", CARD, f"checkpoints/{LAST}", f"checkpoints/{BEST}")
"""Files that a run writes into its folder."""
MODEL_CARD = """# {name}

A concept model: it reads sentences as vectors and predicts the vector of the next one.

    lcm generate --model . --text 'The sea was calm.'

| | |
|---|---|
{table}

`config.yaml` holds every setting of the training run.
"""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Streams a checkpoint to a temporary file on the same disk, and renames it when it is complete.

    background: copy the tensors and write them during the next steps, one file at a time; the next save, or `wait`,
    raises the error of a write that failed
    owner: the hold on the folder; it is checked before each file and told of its step afterwards
    """

    def __init__(self, background: bool = False, owner: Owner | None = None) -> None:
        super().__init__()
        self._owner = owner
        self._writer = ThreadPoolExecutor(1) if background else None
        self._pending: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises UserError where the disk refuses it; an older file of that name stays as it was."""
        assert storage_options is None
        self.wait()
        if self._writer is None:
            self._write(checkpoint, Path(path))
            return
        copied = tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), checkpoint)
        self._pending = self._writer.submit(self._write, copied, Path(path))

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        if self._owner is not None:
            self._owner.check()
        _write(checkpoint, path)
        if self._owner is not None:
            self._owner.wrote(checkpoint["global_step"])

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Map the file: its tensors stay on disk until they are used, and the ranks of a node share one copy."""
        return dict(torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only))

    def wait(self) -> None:
        """Wait until everything is written. Raises the error of a write that failed."""
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
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be written ({reason}); what was saved before is still there") from error


def keep_copy(path: Path, step: int, keep: int) -> None:
    """Link a checkpoint as step-00000100.ckpt, and remove all but the newest `keep` of these."""
    copy = path.with_name(f"step-{step:08}.ckpt")
    copy.unlink(missing_ok=True)
    try:
        os.link(path, copy)
    except OSError:  # a file system without hard links
        with atomic_path(copy) as partial:
            shutil.copyfile(path, partial)
    # By time, not by step: a run may have resumed from an earlier step than that of files already here.
    for old in sorted(path.parent.glob("step-*.ckpt"), key=lambda copy: copy.stat().st_mtime_ns)[:-keep]:
        old.unlink()


def checkpoint_bytes(parameters: int, keep: int) -> int:
    """The most bytes that a run's folder holds at once. keep: `trainer.keep`.

    Weights and two moments in last.ckpt, in best.ckpt, in the temporary file that replaces one of them, and in each
    further checkpoint that is kept; and the model twice, while it is being replaced.
    """
    return 12 * parameters * (3 + max(keep - 1, 0)) + 8 * parameters


def check_disk_space(folder: Path, parameters: int, keep: int) -> None:
    """Raises UserError where the run's folder cannot be written, or its disk is too small for the checkpoints."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    checkpoints = folder / "checkpoints"
    for each in (folder, checkpoints):
        if each.is_symlink() and not each.exists():
            raise UserError(f"run.dir={folder}: {each} is a link to {each.readlink()}, which is not there; mend it")
    if checkpoints.exists() and not checkpoints.is_dir():
        raise UserError(f"run.dir={folder}: {checkpoints} is a file; expected a folder, so move it away")
    for name in FILES:
        if (folder / name).is_dir():
            raise UserError(f"run.dir={folder}: {folder / name} is a folder; expected a file, so move it away")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"run.dir={folder}: cannot be written ({error.strerror}); choose another") from error
    # Checkpoints of an earlier part of the run have their space already.
    files = [path.stat() for path in folder.rglob("*.ckpt") if path.exists()]  # a link may lead nowhere
    present = sum({file.st_ino: file.st_size for file in files}.values())
    needed = checkpoint_bytes(parameters, keep) - present
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"run.dir={folder}: {free / 1e9:.3g} GB are free, and the checkpoints will take {needed / 1e9:.3g} GB; "
            "choose another, or lower trainer.keep"
        )


def latest(run_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run, last.ckpt, or None where it has none yet."""
    path = Path(run_dir, "checkpoints", LAST)
    return path if path.is_file() else None


def open_checkpoint(path: str | Path, trust: bool = False, whole: bool = False) -> dict[str, Any]:
    """The contents of a training checkpoint; its tensors stay on disk until they are used.

    whole: also read every tensor, which takes as long as reading the file: against the checksum that is stored with it,
           and for weights that are finite
    Raises UserError where the file is no such checkpoint or damaged, or where opening it could run code and `trust` is
    False.
    """
    _check_archive(existing_file(path, "--checkpoint"), whole)
    broken = f"{path}: not a complete checkpoint; copy it again, or take an older one"
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds more than tensors and numbers, so opening it could run code that is hidden in it; "
            "if you know where it comes from, add --trust-checkpoint"
        ) from error
    except (RuntimeError, ValueError, LookupError, EOFError) as error:
        raise UserError(broken) from error
    _check_parts(checkpoint, {"state_dict": dict, "config": dict}, path)
    if strange := [
        n for n, t in checkpoint["state_dict"].items() if not (isinstance(n, str) and isinstance(t, Tensor))
    ]:
        raise UserError(f"{path}: not a checkpoint of lcm train: {strange[0]!r} of its state_dict is no tensor")
    forget_idle(checkpoint["config"])
    if whole and (bad := [name for name, tensor in checkpoint["state_dict"].items() if not tensor.isfinite().all()]):
        raise UserError(f"{path}: {bad[0]} is not finite: training had diverged; take an older checkpoint")
    return checkpoint


def _check_parts(checkpoint: Any, parts: Mapping[str, type], path: str | Path) -> None:
    """Raises UserError where one of these parts is missing, or of another type."""
    for name, kind in parts.items():
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(name), kind):
            raise UserError(f"{path}: not a checkpoint of lcm train: its {name} is missing, or of another type")


def _check_archive(path: Path, whole: bool) -> None:
    """Raises UserError where the archive is cut off, or a member differs from its checksum. whole: tensors too"""
    damaged = f"{path}: not a complete checkpoint"
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if whole or "/data/" not in member.filename:
                    damaged = f"{path}: damaged: {member.filename} differs from its checksum"
                    with archive.open(member) as file:
                        while file.read(2**20):
                            pass
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{damaged}; copy it again, or take an older one") from error


@in_one_line()
def export(checkpoint_path: str | Path, output: str | Path, trust: bool = False, half: bool = False) -> Path:
    """Write a training checkpoint as a folder that `load_model` opens, with a model card. Returns the folder.

    half: store the parameters in fp16, and the buffers as they are
    """
    checkpoint = open_checkpoint(checkpoint_path, trust, whole=True)
    _check_parts(checkpoint, {"global_step": int, "metrics": dict, "versions": dict}, checkpoint_path)
    config = Config.parse(checkpoint["config"], [], where=str(checkpoint_path))
    tensors = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
    model = build_from_tensors(config, tensors, Path(checkpoint_path))
    output = Path(output)
    state = model.state_dict()
    if half:
        state |= {name: parameter.half() for name, parameter in model.named_parameters()}
    save_model(output, state, config)
    write_card(output, sum(p.numel() for p in model.parameters()), config, checkpoint)
    return output


def write_card(folder: Path, parameters: int, config: Config, checkpoint: dict[str, Any]) -> None:
    """Write README.md beside a model, from the checkpoint that holds its weights."""
    codec = config.codec
    concepts = f"{codec.name} ({codec.dim} channels, {codec.lang}, {codec.fingerprint})" if codec else "not recorded"
    rows = [
        ("model", f"{config.model.kind}, {parameters:,} parameters"),
        ("data", without_secrets(", ".join(config.data.folders))),
        *([("fine-tuned from", config.trainer.start)] if config.trainer.start else []),
        ("codec", concepts),
        ("optimizer steps", f"{checkpoint['global_step']:,} of {config.trainer.max_steps:,}"),
        *((name, f"{value:.6g}") for name, value in sorted(checkpoint["metrics"].items()) if "/" in name),
        ("written by", ", ".join(f"{name} {number}" for name, number in checkpoint["versions"].items())),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    with atomic_path(folder / CARD) as partial:
        partial.write_text(MODEL_CARD.format(name=Path(config.run.dir).name, table=table), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    checkpoint: Annotated[str, Option("PATH", place=True, read=True)]
    """A .ckpt file, or the folder of a run."""
    output: Annotated[str, Option("DIR", place=True)]
    """The folder to write."""
    half: bool = False
    """Store the parameters in fp16, in half the space."""
    trust_checkpoint: bool = False
    """Open a checkpoint that holds more than tensors; it can run any code, so only where you know its origin."""

    def __post_init__(self) -> None:
        check_fields(self)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ExportOptions)


def run(args: argparse.Namespace) -> int:
    """`lcm export`: prints the checkpoint and the folder, as JSON, on stdout."""
    options = options_from(args, ExportOptions)
    path, output = Path(options.checkpoint), writable_folder(options.output)
    if path.is_dir():
        path = latest(path) or path / "checkpoints" / LAST
    export(path, output, trust=options.trust_checkpoint, half=options.half)
    print(json.dumps({"checkpoint": str(path), "output": options.output}))
    return 0
