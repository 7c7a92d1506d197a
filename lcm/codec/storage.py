"""A codec on disk: weights (one file, or one each for encoder and decoder), spm.model, config.json, and optionally
card.json (measurements, origin) and checksums.json.

An embedding table that encoder and decoder share is in the encoder's file. Weights are mapped, not read: unused ones
cost nothing, and processes share the used ones.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lcm.codec.architecture import Sizes, SonarText
from lcm.errors import UserError
from lcm.files import atomic_path, sha256

WEIGHTS, ENCODER, DECODER = "codec.safetensors", "encoder.safetensors", "decoder.safetensors"
VOCABULARY, CONFIG, CARD, CHECKSUMS = "spm.model", "config.json", "card.json", "checksums.json"
NEEDED = (WEIGHTS, VOCABULARY, CONFIG)
CHECKED = (ENCODER, DECODER, VOCABULARY, CONFIG)
"""Files listed in checksums.json."""
DEAD = ("encoder_decoder_attn.q_proj.", "encoder_decoder_attn.k_proj.", "encoder_decoder_attn_layer_norm.")
"""Parts of the names of weights without effect (see `MemoryAttention`), which a file may hold or not."""
SHARED = "shared_embed.weight"
Part = Literal["encoder", "decoder"]
PARTS: tuple[Part, Part] = ("encoder", "decoder")
JsonObject = Mapping[str, Any]


def weight_file(folder: Path, part: Part) -> Path:
    """File with the weights of the encoder or the decoder."""
    own = folder / f"{part}.safetensors"
    return own if own.is_file() else folder / WEIGHTS


def missing_files(folder: Path) -> list[str]:
    """Names of files that `load_codec` needs and `folder` lacks."""
    needed = [ENCODER, DECODER] if (folder / ENCODER).is_file() or (folder / DECODER).is_file() else [WEIGHTS]
    return [name for name in (*needed, VOCABULARY, CONFIG) if not (folder / name).is_file()]


def fingerprint(folder: Path) -> str:
    """Hash of everything that decides the vectors, in 16 hex digits: codecs of equal fingerprint encode alike.

    Covers the encoder's tensors, in whatever file, the vocabulary and the values in config.json, not the decoder. The
    tensors are not read where checksums.json has their digest and their file still has the recorded size.
    """
    path = weight_file(folder, "encoder")
    record = read_json(folder / CHECKSUMS, optional=True).get(path.name, {})
    known = record.get("encoder") if record.get("bytes") == path.stat().st_size else None
    texts = (folder / VOCABULARY).read_bytes(), json.dumps(read_json(folder / CONFIG), sort_keys=True).encode()
    parts = (known or encoder_digest(path), *(hashlib.sha256(text).hexdigest() for text in texts))
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def encoder_digest(path: Path) -> str:
    """sha256 over the names, dtypes, shapes and bytes of the encoder's tensors in `path`, in the order of the names."""
    digest = hashlib.sha256()
    with open_weights(path) as file:
        for name in _encoder_names(file):
            digest.update(f"{name} {file.get_slice(name).get_dtype()} {file.get_slice(name).get_shape()}\n".encode())
            digest.update(file.get_tensor(name).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _encoder_names(file: Any) -> list[str]:
    return sorted(name for name in file.keys() if name == SHARED or name.startswith("text_encoder/"))  # noqa: SIM118


def checksum(path: Path) -> dict[str, Any]:
    """Entry of checksums.json for a file; for the encoder's with the digest that `fingerprint` needs."""
    entry = {"sha256": sha256(path), "bytes": path.stat().st_size}
    return entry | ({"encoder": encoder_digest(path)} if path.name.startswith(ENCODER) else {})


def damaged_files(folder: Path) -> list[str]:
    """Names of files whose sha256 differs from the one in checksums.json. Reads all files."""
    records = read_json(folder / CHECKSUMS, optional=True)
    return [name for name, record in records.items() if sha256(folder / name) != record["sha256"]]


def read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file; an empty one where an optional file is missing. Raises UserError for anything else."""
    if optional and not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def read_sizes(config: JsonObject) -> Sizes:
    """Sizes of the network, from the contents of config.json. Raises KeyError for a missing one."""
    model = config["model"]
    parts = {f"{part}_{name}": model[f"{part[:3]}_{name}"] for part in PARTS for name in ("layers", "heads", "ffn")}
    return Sizes(
        vocabulary=model["vocab"],
        dim=model["d"],
        **parts,
        positions=model.get("positions", Sizes.positions),
        position_offset=config.get("position_offset", Sizes.position_offset),
        shared_embedding=model.get("shared_embedding", Sizes.shared_embedding),
    )


def stored_name(name: str, shared_embedding: bool) -> str:
    """Name in the file, as in sonar-space, of a parameter of `SonarText`."""
    side, _, rest = name.partition(".")
    if rest == "embed.weight":
        return SHARED if shared_embedding else f"text_{side}/{side}_frontend.embed.weight"
    inside = rest if name.startswith("encoder.layer_norm") else name
    return f"text_{side}/{inside}"


def _place(model: SonarText, part: Part, name: str, folder: Path) -> tuple[Path, str]:
    """(file, name in the file) of a parameter of the encoder or the decoder."""
    stored = stored_name(f"{part}.{name}", model.sizes.shared_embedding)
    return weight_file(folder, "encoder" if stored == SHARED else part), stored


def check_weights(model: SonarText, folder: Path) -> None:
    """Compare names and shapes, without reading any weight. Raises UserError for a broken file, and for a mismatch."""
    files: dict[Path, dict[str, tuple[int, ...]]] = {}
    for part in PARTS:
        for name, value in getattr(model, part).state_dict().items():
            path, stored = _place(model, part, name, folder)
            files.setdefault(path, {})[stored] = tuple(value.shape)
    for path, expected in files.items():
        with open_weights(path) as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
        unexpected = [name for name in found if name not in expected and not any(dead in name for dead in DEAD)]
        for what, names in (("missing", expected.keys() - found), ("unexpected", unexpected)):
            if names:
                line = f"{path}: {len(names)} {what} tensors, the first is {min(names)}; does config.json fit it?"
                raise UserError(line)
        for name, shape in expected.items():
            if found[name] != shape:
                raise UserError(f"{path}: {name} has shape {found[name]}, expected {shape} by config.json")


def load_part(model: SonarText, part: Part, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Load the weights of the encoder or the decoder: matrices and their biases in `dtype`, norms in fp32.

    On the CPU, weights that are stored in their precision stay views of the file.
    """
    module, state, opened = getattr(model, part), {}, cache(open_weights)
    for name in module.state_dict():
        path, stored = _place(model, part, name, folder)
        state[name] = opened(path).get_tensor(stored).to(device, torch.float32 if "layer_norm" in name else dtype)
    module.load_state_dict(state, assign=True)
    module.to(device).requires_grad_(False).eval()


def open_weights(path: Path) -> Any:
    """Open a safetensors file for reading tensors by name. Raises UserError for a damaged one."""
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy it again") from error


def save(
    folder: Path, model: SonarText, vocabulary: bytes, config: JsonObject, card: JsonObject, dtype: torch.dtype
) -> None:
    """Write a codec in four files, and only then replace an old one. vocabulary: contents of spm.model."""
    tensors: dict[str, Tensor] = {
        stored_name(name, model.sizes.shared_embedding): value.detach().to("cpu", dtype).contiguous()
        for name, value in model.state_dict().items()
    }
    with _replacing(folder, VOCABULARY, CONFIG, CARD, WEIGHTS) as partial:
        partial[VOCABULARY].write_bytes(vocabulary)
        write_json(partial[CONFIG], config)
        write_json(partial[CARD], card)
        save_file(tensors, partial[WEIGHTS], metadata={"format": "pt"})


def save_decoder(folder: Path, start: Path, model: SonarText, card: JsonObject) -> None:
    """Write a codec with the encoder of the one in `start` and the decoder of `model`, in a file of weights each.

    The encoder's tensors, vocabulary and configuration keep every bit, so the fingerprint stays. The decoder's tensors
    get the precision that they have in `start`; `card` extends the card of `start`.
    """
    with _replacing(folder, ENCODER, DECODER, VOCABULARY, CONFIG, CARD, CHECKSUMS) as partial:
        for name in (VOCABULARY, CONFIG):
            shutil.copyfile(start / name, partial[name])
        write_json(partial[CARD], {**read_json(start / CARD, optional=True), **card})
        with open_weights(weight_file(start, "encoder")) as file:
            kept = {name: file.get_tensor(name) for name in _encoder_names(file)}
            save_file(kept, partial[ENCODER], metadata={"format": "pt"})
        learned = {}
        with open_weights(weight_file(start, "decoder")) as file:
            for name, value in model.decoder.state_dict().items():
                stored = stored_name(f"decoder.{name}", model.sizes.shared_embedding)
                if stored != SHARED:
                    learned[stored] = value.detach().to("cpu", file.get_tensor(stored).dtype).contiguous()
        save_file(learned, partial[DECODER], metadata={"format": "pt"})
        write_json(partial[CHECKSUMS], {name: checksum(partial[name]) for name in CHECKED})


@contextmanager
def _replacing(folder: Path, *names: str) -> Iterator[dict[str, Path]]:
    """Temporary paths for a codec's files. All are written before any is renamed; other weights are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as renames:  # unwound in reverse, so that the files appear in the order of `names`
        yield {name: renames.enter_context(atomic_path(folder / name)) for name in reversed(names)}
    for name in {WEIGHTS, ENCODER, DECODER, CHECKSUMS} - set(names):
        (folder / name).unlink(missing_ok=True)


def write_json(path: Path, values: JsonObject) -> None:
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
