"""A codec on disk: codec.safetensors, spm.model, config.json, and card.json where its stop threshold was measured."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcm.codec.architecture import Sizes, SonarText
from lcm.errors import UserError

WEIGHTS, VOCABULARY, CONFIG, CARD = "codec.safetensors", "spm.model", "config.json", "card.json"
NEEDED = (WEIGHTS, VOCABULARY, CONFIG)
DEAD = ("encoder_decoder_attn.q_proj.", "encoder_decoder_attn.k_proj.", "encoder_decoder_attn_layer_norm.")
"""Parts of the names of weights that do nothing (see `MemoryAttention`): a file may hold them or not."""


def missing_files(folder: Path) -> list[str]:
    return [name for name in NEEDED if not (folder / name).is_file()]


def fingerprint(folder: Path) -> str:
    """16 hex digits of the sha256 over the three files: two codecs that share it make the same vectors."""
    digest = hashlib.sha256()
    for name in NEEDED:
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected an object with the codec's sizes, found {type(values).__name__}")
    return values


def read_sizes(config: Mapping[str, Any]) -> Sizes:
    """The sizes in config.json. Raises KeyError for one that is missing."""
    model = config["model"]
    return Sizes(
        vocabulary=model["vocab"],
        dim=model["d"],
        encoder_layers=model["enc_layers"],
        decoder_layers=model["dec_layers"],
        encoder_heads=model["enc_heads"],
        decoder_heads=model["dec_heads"],
        encoder_ffn=model["enc_ffn"],
        decoder_ffn=model["dec_ffn"],
        positions=model.get("positions", Sizes.positions),
        position_offset=config.get("position_offset", Sizes.position_offset),
        shared_embedding=model.get("shared_embedding", Sizes.shared_embedding),
    )


def stored_name(name: str, shared_embedding: bool) -> str:
    """The name in the file, which is sonar-space's own, of a parameter of `SonarText`."""
    side, _, rest = name.partition(".")
    if rest == "embed.weight":
        return "shared_embed.weight" if shared_embedding else f"text_{side}/{side}_frontend.embed.weight"
    inside = rest if name.startswith("encoder.layer_norm") else name
    return f"text_{side}/{inside}"


def load_weights(model: SonarText, path: Path) -> None:
    """Fill `model` in fp32. Raises UserError for a file that is broken, or that holds more, less or other sizes."""
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy it again") from error
    expected = {name: stored_name(name, model.sizes.shared_embedding) for name in model.state_dict()}
    missing = sorted(set(expected.values()) - set(stored))
    unexpected = sorted(name for name in set(stored) - set(expected.values()) if not any(dead in name for dead in DEAD))
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            raise UserError(f"{path}: {len(names)} {what} tensors, the first is {names[0]}; does config.json fit it?")
    for name, parameter in model.state_dict().items():
        found, wanted = tuple(stored[expected[name]].shape), tuple(parameter.shape)
        if found != wanted:
            raise UserError(f"{path}: {expected[name]} has shape {found}, but config.json asks for {wanted}")
    model.load_state_dict({name: stored[expected[name]].float() for name in expected}, assign=True)


def save(
    folder: Path,
    model: SonarText,
    vocabulary: bytes,
    config: Mapping[str, Any],
    card: Mapping[str, Any],
    dtype: torch.dtype,
) -> None:
    """Write the four files; `vocabulary` is what spm.model holds. What was there stays whole until all are written."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {
        stored_name(name, model.sizes.shared_embedding): value.detach().to("cpu", dtype).contiguous()
        for name, value in model.state_dict().items()
    }
    partial = {name: folder / f"{name}.partial" for name in (VOCABULARY, CONFIG, CARD, WEIGHTS)}
    partial[VOCABULARY].write_bytes(vocabulary)
    partial[CONFIG].write_text(json.dumps(config, indent=1), encoding="utf-8")
    partial[CARD].write_text(json.dumps(card, indent=1), encoding="utf-8")
    save_file(tensors, partial[WEIGHTS], metadata={"format": "pt"})
    for name, path in partial.items():
        os.replace(path, folder / name)
