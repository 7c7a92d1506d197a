"""A trained model on disk: model.safetensors + config.yaml. And how to get there from a training checkpoint.

    runs/NAME/model.safetensors, config.yaml       the best model so far: all that generate and evaluate open
    runs/NAME/checkpoints/last.ckpt, best.ckpt     Lightning's: weights, optimizer, position; what a run resumes from

Every file is complete or absent, whenever the process dies. No pickle is opened unless a person says so.
"""

import argparse
import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcm.config import Config, load_config, parse_config, save_config
from lcm.errors import UserError, existing_file
from lcm.models import ConceptModel, build_model

MODEL, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"
LAST, BEST = "last.ckpt", "best.ckpt"


def save_model(folder: str | Path, model: ConceptModel, config: Config) -> None:
    """Write the model (parameters and buffers) and its configuration into `folder`, each file atomically."""
    save_state(folder, model.state_dict(), config)


def save_state(folder: str | Path, state: Mapping[str, Tensor], config: Config) -> None:
    """`save_model`, from the model's `state_dict()`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, partial := folder / f"{CONFIG}.tmp")
    _publish(partial)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, partial := folder / f"{MODEL}.tmp")
    _publish(partial)


def load_model(folder: str | Path) -> tuple[ConceptModel, Config]:
    """The model of `save_model`, on the CPU and in evaluation mode, and its configuration.

    Opens nothing but safetensors and YAML. Raises UserError where a file is missing, broken or of another model.
    """
    path = Path(folder, MODEL)
    if not path.is_file():
        raise UserError(f"{folder}: no {MODEL} there; expected a folder written by lcm train or lcm export")
    config = load_config(existing_file(Path(folder, CONFIG), "the model's configuration"))
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); copy or export it again") from error
    return _assembled(config, tensors, path), config


def _assembled(config: Config, tensors: dict[str, Tensor], path: Path) -> ConceptModel:
    """The model of `config` around these tensors, without initialising it first."""
    with torch.device("meta"):
        model = build_model(config.model)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{path}: {name} is {found.get(name, 'missing')}, but the model of its configuration has "
                f"{expected.get(name, 'no such tensor')}; the file belongs to another model"
            )
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _publish(partial: Path) -> None:
    """`name.tmp` becomes `name`: on the disk first, then under its name, then in the folder."""
    _flush(partial)
    os.replace(partial, partial.with_suffix(""))
    _flush(partial.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint, streamed to a temporary file on the same disk and renamed when it is complete."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        assert storage_options is None
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.tmp")
        torch.save(checkpoint, partial)
        _publish(partial)


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


def export(checkpoint_path: str | Path, output: str | Path, trust: bool = False) -> Path:
    """A training checkpoint as a folder that `load_model` opens, with a model card. Returns the folder."""
    checkpoint = open_checkpoint(checkpoint_path, trust)
    config = parse_config(checkpoint["config"], [], where=str(checkpoint_path))
    tensors = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
    model = _assembled(config, tensors, Path(checkpoint_path))
    output = Path(output)
    save_model(output, model, config)
    partial = output / f"{CARD}.tmp"
    partial.write_text(_card(model, config, checkpoint), encoding="utf-8")
    _publish(partial)
    return output


def _card(model: ConceptModel, config: Config, checkpoint: dict[str, Any]) -> str:
    """What a person who finds the folder wants to know."""
    codec = config.codec
    size = sum(p.numel() for p in model.parameters())
    concepts = f"{codec.name} ({codec.dim} channels, {codec.lang}, {codec.fingerprint})" if codec else "not recorded"
    rows = [
        ("model", f"{config.model.kind}, {size:,} parameters"),
        ("data", ", ".join(config.data.path)),
        ("codec", concepts),
        ("optimizer steps", f"{checkpoint['global_step']:,} of {config.trainer.max_steps:,}"),
        *((name, f"{value:.6g}") for name, value in sorted(checkpoint["metrics"].items()) if "/" in name),
        ("written by", ", ".join(f"{name} {number}" for name, number in checkpoint["versions"].items())),
    ]
    return "\n".join(
        [
            f"# {Path(config.run.dir).name}",
            "",
            "A concept model: it reads sentences as vectors and predicts the vector of the next one.",
            "",
            "    lcm generate --model . --text 'The sea was calm.'",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
            "",
            "`config.yaml` holds every setting of the training run.",
            "",
        ]
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lcm export`."""
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help="a .ckpt file, or the folder of a run")
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="open a checkpoint that holds more than tensors; it can run any code, so only where you know its origin",
    )


def run(args: argparse.Namespace) -> int:
    """`lcm export`: the folder's name and the number of steps, as JSON, on stdout."""
    path = Path(args.checkpoint)
    if path.is_dir():
        path = latest(path) or path / "checkpoints" / LAST
    output = export(path, args.output, trust=args.trust_checkpoint)
    print(json.dumps({"checkpoint": str(path), "output": str(output)}))
    return 0
