"""A codec on disk: weights (one file, or one each for encoder and decoder), spm.model, config.json, perhaps card.json.

Weights are mapped into memory, not read: what is not used costs nothing, and processes share what is.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lcm.codec.architecture import Sizes, SonarText
from lcm.errors import UserError

WEIGHTS, ENCODER, DECODER = "codec.safetensors", "encoder.safetensors", "decoder.safetensors"
VOCABULARY, CONFIG, CARD, CHECKSUMS = "spm.model", "config.json", "card.json", "checksums.json"
NEEDED = (WEIGHTS, VOCABULARY, CONFIG)
DEAD = ("encoder_decoder_attn.q_proj.", "encoder_decoder_attn.k_proj.", "encoder_decoder_attn_layer_norm.")
"""Parts of the names of weights that do nothing (see `MemoryAttention`): a file may hold them or not."""
SHARED = "shared_embed.weight"

Part = Literal["encoder", "decoder"]
PARTS: tuple[Part, Part] = ("encoder", "decoder")


def weight_file(folder: Path, part: Part) -> Path:
    """Where the weights of the encoder or the decoder are."""
    own = folder / {"encoder": ENCODER, "decoder": DECODER}[part]
    return own if own.is_file() else folder / WEIGHTS


def missing_files(folder: Path) -> list[str]:
    """What `load_codec` would not find. Encoder and decoder may have a file each."""
    needed = [ENCODER, DECODER] if (folder / ENCODER).is_file() or (folder / DECODER).is_file() else [WEIGHTS]
    return [name for name in (*needed, VOCABULARY, CONFIG) if not (folder / name).is_file()]


def fingerprint(folder: Path) -> str:
    """16 hex digits over what makes the vectors: two codecs that share it encode alike.

    From the weights, the vocabulary and the configuration; of a codec with two files of weights only the encoder's.
    Where checksums.json has a file's sha256, and its size is still the same, the file is not read again.
    """
    known = read_json(folder / CHECKSUMS) if (folder / CHECKSUMS).is_file() else {}
    digest = hashlib.sha256()
    for path in (weight_file(folder, "encoder"), folder / VOCABULARY, folder / CONFIG):
        record: Mapping[str, Any] = known.get(path.name, {})
        unchanged = record.get("bytes") == path.stat().st_size
        digest.update(bytes.fromhex(record["sha256"] if unchanged else sha256(path)))
    return digest.hexdigest()[:16]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged_files(folder: Path) -> list[str]:
    """Files that are not what checksums.json says they were when written. Reads all of them."""
    known = read_json(folder / CHECKSUMS) if (folder / CHECKSUMS).is_file() else {}
    return [name for name, record in known.items() if sha256(folder / name) != record["sha256"]]


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
        return SHARED if shared_embedding else f"text_{side}/{side}_frontend.embed.weight"
    inside = rest if name.startswith("encoder.layer_norm") else name
    return f"text_{side}/{inside}"


def _stored_names(model: SonarText, part: Part) -> dict[str, str]:
    """Of each parameter of the encoder or the decoder."""
    names = getattr(model, part).state_dict()
    return {name: stored_name(f"{part}.{name}", model.sizes.shared_embedding) for name in names}


def check_weights(model: SonarText, folder: Path) -> None:
    """Compare names and sizes, which takes no reading. Raises UserError for a file that is broken, or does not fit."""
    parts: dict[Path, dict[str, torch.Size]] = {}
    for part in PARTS:
        shapes = {name: value.shape for name, value in getattr(model, part).state_dict().items()}
        expected = {stored: shapes[name] for name, stored in _stored_names(model, part).items()}
        parts.setdefault(weight_file(folder, part), {}).update(expected)
    for path, expected in parts.items():
        with opened(path) as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        missing = sorted(set(expected) - set(found))
        unexpected = sorted(name for name in set(found) - set(expected) if not any(dead in name for dead in DEAD))
        for what, names in (("missing", missing), ("unexpected", unexpected)):
            if names:
                raise UserError(
                    f"{path}: {len(names)} {what} tensors, the first is {names[0]}; does config.json fit it?"
                )
        for name, shape in expected.items():
            if found[name] != tuple(shape):
                raise UserError(f"{path}: {name} has shape {found[name]}, but config.json asks for {tuple(shape)}")


def load_part(model: SonarText, part: Part, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Fill the encoder or the decoder: matrices and their biases in `dtype`, norms in fp32.

    On the CPU, what has its precision already stays a view of the file.
    """
    module = getattr(model, part)
    with opened(weight_file(folder, part)) as file:
        state = {
            name: file.get_tensor(stored).to(device, torch.float32 if "layer_norm" in name else dtype)
            for name, stored in _stored_names(model, part).items()
        }
    module.load_state_dict(state, assign=True)
    module.to(device).requires_grad_(False).eval()


def opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy it again") from error


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
