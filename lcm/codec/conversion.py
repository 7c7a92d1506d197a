"""Official SONAR checkpoints → a codec's folder, in plain torch, without sonar-space and fairseq2.

A checkpoint is {"model": state} in fairseq2's names, or {"state_dict": state} in fairseq's.
"""

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lcm.codec import storage
from lcm.codec.storage import DEAD, Part
from lcm.errors import UserError
from lcm.files import sha256

POSITIONS = 514
"""Longest sequence, language token and end included: fairseq's 512, and two that sonar-space adds for its offset."""
DECODER_POSITIONS = 512
STOP_THRESHOLD = 0.9
"""Cosine to "End of text." (paper §2.3.1)."""
CONTROLS = 3
"""Tokens after the languages: <MINED_DATA>, <MMT_BT_DATA>, <SMT_BT_DATA>."""
FAIRSEQ_ORDER = [1, 3, 0, 2]
"""Order that turns fairseq's rows <s> <pad> </s> <unk> into the tokenizer's <pad> <unk> <s> </s>."""
FAIRSEQ_NAMES = (
    (r"^layers\.", r"{part}.layers."),
    (r"\.encoder_attn\.", ".encoder_decoder_attn."),
    (r"\.encoder_attn_layer_norm\.", ".encoder_decoder_attn_layer_norm."),
    (r"\.out_proj\.", ".output_proj."),
    (r"\.fc1\.", ".ffn.inner_proj."),
    (r"\.fc2\.", ".ffn.output_proj."),
    (r"\.final_layer_norm\.", ".ffn_layer_norm."),
    (r"^embed_tokens\.", r"{part}_frontend.embed."),
    (r"^output_projection\.", "final_proj."),
)
"""fairseq's names → fairseq2's, substituted in this order."""
NOT_WEIGHTS = ("version", "embed_positions._float_tensor")
"""Tensors of fairseq that are no weights."""


@dataclass(frozen=True)
class Originals:
    """Files of a release."""

    encoder: Path
    decoder: Path
    vocabulary: Path
    languages: tuple[str, ...]


def convert(
    encoder: Path,
    decoder: Path,
    vocabulary: Path,
    languages: Sequence[str],
    folder: Path,
    *,
    heads: int = 16,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Convert two checkpoints to a codec. `folder` appears complete or not at all; a codec already there stays.

    languages: FLORES codes in the order of the tokenizer's card, which is the order of their tokens
    Raises UserError for files that are damaged, of another kind, or do not belong together.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        sizes: dict[str, Any] = {"positions": POSITIONS, "shared_embedding": False}
        checkpoints: tuple[tuple[Part, Path, str], ...] = (("encoder", encoder, "enc"), ("decoder", decoder, "dec"))
        for part, path, short in checkpoints:
            tensors = read_checkpoint(path, part)
            sizes |= _sizes(tensors, part, short, heads, path, sizes)
            stored = {f"text_{part}/{name}": tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
            save_file(stored, partial / f"{part}.safetensors", metadata={"format": "pt"})
        shutil.copyfile(vocabulary, partial / storage.VOCABULARY)
        storage.write_json(partial / storage.CONFIG, _config(sizes, vocabulary, languages))
        origins = {path.name: sha256(path) for path in (encoder, decoder, vocabulary)}
        storage.write_json(partial / storage.CARD, {"stop_threshold": STOP_THRESHOLD, "converted_from_sha256": origins})
        names = (storage.ENCODER, storage.DECODER, storage.VOCABULARY, storage.CONFIG)
        storage.write_json(partial / storage.CHECKSUMS, {name: storage.checksum(partial / name) for name in names})
        _publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, folder: Path) -> None:
    partial.chmod(0o755)
    try:
        partial.rename(folder)
    except OSError:
        # Another process was faster, and its codec is as good. Anything else in the way is not ours to remove.
        if storage.missing_files(folder):
            raise UserError(f"--output={folder}: exists, and is not a codec; give another, or remove it") from None


def read_checkpoint(path: Path, part: Part) -> dict[str, Tensor]:
    """Weights under sonar-space's names, mapped from the file, without those that have no effect.

    Raises UserError for a file that is no checkpoint of a SONAR encoder or decoder.
    """
    checkpoint = _load(path)
    state = checkpoint.get("model", checkpoint)
    if f"{part}_frontend.embed.weight" not in state:
        state = _from_fairseq(state.get("state_dict", state), part)
    if f"{part}_frontend.embed.weight" not in state:
        raise UserError(
            f"{path}: not a SONAR text {part}: it has no '{part}_frontend.embed.weight'; is it the other one?"
        )
    tensors = {name: value for name, value in state.items() if not any(dead in name for dead in DEAD)}
    output = tensors.pop("final_proj.weight", None)
    if output is not None and not torch.equal(output, tensors["decoder_frontend.embed.weight"]):
        raise UserError(f"{path}: its output embedding differs from its input embedding; SONAR's are one and the same")
    return tensors


def _load(path: Path) -> dict[str, Any]:
    # The only class besides tensors that such files contain; nothing else in a pickle is executed.
    with torch.serialization.safe_globals([nn.Embedding]):
        for mapped in (True, False):
            try:
                checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            except RuntimeError:  # the old format of torch.save cannot be mapped
                if not mapped:
                    raise UserError(f"{path}: not a checkpoint that torch can read; fetch it again") from None
            except (UnpicklingError, EOFError, OSError) as error:
                reason = next(iter(str(error).splitlines()), "it ends too early")
                raise UserError(
                    f"{path}: not a checkpoint that torch can read safely ({reason}); fetch it again"
                ) from error
            else:
                break
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}, expected a checkpoint's dictionary")
    return checkpoint


def _from_fairseq(state: Mapping[str, Any], part: Part) -> dict[str, Tensor]:
    """Translate fairseq's names and order of special tokens to fairseq2's. Entries that are no tensors are dropped."""
    tensors: dict[str, Tensor] = {}
    for old, value in state.items():
        name = old
        if old == "embed_tokens" and isinstance(value, nn.Embedding):
            name, value = "embed_tokens.weight", value.weight.detach()
        if not isinstance(value, Tensor) or name.endswith(NOT_WEIGHTS):
            continue
        for pattern, replacement in FAIRSEQ_NAMES:
            name = re.sub(pattern, replacement.format(part=part), name)
        if part == "decoder" and name.startswith("layer_norm."):
            name = f"decoder.{name}"
        tensors[name] = value
    for name in (f"{part}_frontend.embed.weight", "final_proj.weight"):
        if name in tensors:
            tensors[name] = torch.cat([tensors[name][FAIRSEQ_ORDER], tensors[name][len(FAIRSEQ_ORDER) :]])
    return tensors


def _sizes(
    tensors: Mapping[str, Tensor], part: Part, short: str, heads: int, path: Path, before: Mapping[str, Any]
) -> dict[str, Any]:
    """Read sizes off the shapes of the tensors. Raises UserError where the decoder does not fit the encoder."""
    vocabulary, dim = tensors[f"{part}_frontend.embed.weight"].shape
    if before.get("d", dim) != dim or before.get("vocab", vocabulary) != vocabulary:
        theirs = f"{before['vocab']} pieces and {before['d']} dimensions"
        raise UserError(f"{path}: {vocabulary} pieces and {dim} dimensions, but the encoder has {theirs}")
    if dim % heads:
        raise UserError(f"--heads={heads}: does not divide the {dim} dimensions of {path}")
    layers = {int(m[1]) for name in tensors if (m := re.match(rf"{part}\.layers\.(\d+)\.", name))}
    return {
        "vocab": vocabulary,
        "d": dim,
        f"{short}_layers": len(layers),
        f"{short}_heads": heads,
        f"{short}_ffn": tensors[f"{part}.layers.0.ffn.inner_proj.weight"].shape[0],
    }


def _config(sizes: dict[str, Any], vocabulary: Path, languages: Sequence[str]) -> dict[str, Any]:
    """Contents of config.json. Tokens are <pad>, the pieces of the file, the languages, and three for training data."""
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary)).get_piece_size()
    except (RuntimeError, OSError) as error:
        raise UserError(f"{vocabulary}: not a SentencePiece vocabulary; fetch it again") from error
    tokens = 1 + pieces + len(languages) + CONTROLS
    if tokens != sizes["vocab"]:
        raise UserError(
            f"{vocabulary}: {pieces} pieces and {len(languages)} languages make {tokens} tokens, "
            f"but the checkpoints have {sizes['vocab']}; they do not belong together"
        )
    return {
        "model": sizes,
        "languages": {code: 1 + pieces + number for number, code in enumerate(languages)},
        "special": {"pad": 0, "unk": 1, "bos": 2, "eos": 3},
        "piece_shift": 1,
        "banned": [0],
        "position_offset": 2,
        "max_pieces": POSITIONS - 2,
        # sonar-space takes the width of the vector for the length of the source, and allows that plus 128 (fairseq2's
        # default), end included, within the decoder's positions, prefix included.
        "max_generated": min(sizes["d"] + 128, DECODER_POSITIONS - 2) - 1,
    }
