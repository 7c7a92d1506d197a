"""The concept models: `build_model` builds one, `ConceptModel` is the interface of them all.

Read interface, then base, the simplest model, then two_tower and diffusion, which hold a diffusion model's objective.
samplers has its schedules and samplers; layers, transformer and denoiser are its networks. one_tower and quantized run
the two streams of interleaved. Nothing here reads data sets, trains, or knows text.

A trained model on disk is model.safetensors and config.yaml, all that generation and evaluation open; no pickle. Each
file is complete or absent, whenever the process dies. CONTRIBUTING.md lists what a new family needs.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lcm.config import (
    BaseLCMConfig,
    Config,
    DiffusionConfig,
    ModelConfig,
    OneTowerConfig,
    QuantConfig,
    TwoTowerConfig,
    save_config,
)
from lcm.errors import UserError
from lcm.files import atomic_path
from lcm.models.base import BaseLCM
from lcm.models.interface import ConceptModel, Normalizer, Prompts, resolve_sampling
from lcm.models.one_tower import OneTowerLCM
from lcm.models.quantized import QuantLCMc, QuantLCMd
from lcm.models.transformer import BlockHook, no_hook
from lcm.models.two_tower import TwoTowerLCM
from lcm.options import existing_file
from lcm.sampling import Sampling
from lcm.settings import read_yaml

__all__ = [
    "MODEL",
    "BlockHook",
    "ConceptModel",
    "Normalizer",
    "Prompts",
    "Sampling",
    "build_from_tensors",
    "build_model",
    "check_sampling",
    "forget_idle",
    "fragility",
    "load_model",
    "quantizer",
    "quantizer_fitting",
    "resolve_sampling",
    "save_model",
]

MODEL, CONFIG = "model.safetensors", "config.yaml"
CHECKSUM = "crc32"
"""Name of the checksum among the metadata of model.safetensors; older versions left none."""
PACKAGED = Path(__file__).parent / "assets"
"""Folders of the models that are part of the package, such as `tales`."""


def build_model(config: ModelConfig, on_block: BlockHook = no_hook) -> ConceptModel:
    """Build and initialize a model. Until they are set, its normalizer is the identity, its end-of-text vector zero.

    Under `torch.device("meta")` it has shapes and counts, but takes no memory.

    on_block: called with each block as soon as it is built, to shard it; must not draw random numbers
    """
    match config:
        case BaseLCMConfig():
            return BaseLCM(config, on_block)
        case TwoTowerConfig():
            return TwoTowerLCM(config, on_block)
        case OneTowerConfig():
            return OneTowerLCM(config, on_block)
        case QuantConfig(kind="quant_c"):
            return QuantLCMc(config, on_block)
        case QuantConfig():
            return QuantLCMd(config, on_block)


def save_model(folder: str | Path, state: Mapping[str, Tensor], config: Config) -> None:
    """Write a model's `state_dict()` and its configuration into `folder`, each file atomically.

    Tensors may be stored in a lower precision than the model's; `load_model` restores it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / CONFIG) as partial:
        save_config(config, partial)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_path(folder / MODEL) as partial:
        save_file(tensors, partial, {CHECKSUM: _checksum(tensors)})


def load_model(folder: str | Path) -> tuple[ConceptModel, Config]:
    """Read the model of `save_model`, on the CPU and in evaluation mode, and its configuration.

    folder: a path, or the name of a model in `PACKAGED`, unless the working directory has a model of this name
    Raises UserError if a file is missing, broken or of another model.
    """
    if not Path(folder, MODEL).is_file() and str(folder) in {each.name for each in PACKAGED.iterdir()}:
        folder = PACKAGED / folder
    path = Path(folder, MODEL)
    if not path.is_file():
        packaged = ", ".join(sorted(each.name for each in PACKAGED.iterdir()))
        raise UserError(
            f"{folder}: no {MODEL} there; expected a folder written by lcm train or lcm export, or one of {packaged}"
        )
    where = existing_file(Path(folder, CONFIG), "the model's configuration")
    config = Config.parse(forget_idle(read_yaml(where)), [], where=str(where))
    model = build_from_tensors(config, _read_whole(path), path)
    check_sampling(config, model)
    return model, config


def forget_idle(values: dict[str, Any]) -> dict[str, Any]:
    """Reset the idle settings of a model that was saved when they were ignored. Returns `values`, which it changes."""
    model = values.get("model")
    if isinstance(model, dict) and isinstance(model.get("diffusion"), dict):
        DiffusionConfig.forget_idle(model["diffusion"])
    return values


def _read_whole(path: Path) -> dict[str, Tensor]:
    """The tensors of a model's file. Raises UserError where it is cut off, damaged inside, or holds NaN or infinity."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            stored = (file.metadata() or {}).get(CHECKSUM)
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); copy or export it again") from error
    if stored not in (None, _checksum(tensors)):
        raise UserError(f"{path}: damaged: its tensors differ from their checksum; copy or export it again")
    if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise UserError(f"{path}: {bad[0]} is not finite; copy it again, or export an older checkpoint")
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of names and bytes, in hexadecimal: as fast as reading, and enough against a bad disk or copy."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode("utf-8"), crc)
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def check_sampling(config: Config, model: ConceptModel) -> None:
    """Raises UserError where the section `sampling` has a setting that the model's family does not have."""
    try:
        resolve_sampling(config.sampling, model.defaults)
    except UserError as error:
        raise UserError(f"section sampling of the configuration: {error}") from error


def build_from_tensors(config: Config, tensors: dict[str, Tensor], path: Path) -> ConceptModel:
    """Build the model of `config` around these tensors, without initializing it. Raises UserError for a misfit."""
    with torch.device("meta"):
        model = build_model(config.model)
    own = model.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            raise UserError(
                f"{path}: {name} is {shapes.get(name, 'missing')}, but the model of its configuration has "
                f"{expected.get(name, 'no such tensor')}; the file belongs to another model"
            )
    model.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}, assign=True)
    return model.eval()
