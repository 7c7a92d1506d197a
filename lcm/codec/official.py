"""Official SONAR weights → a codec's folder, in plain torch; fetched and converted once for the codecs named "sonar".

A checkpoint is {"model": state} in fairseq2's names, or {"state_dict": state} in fairseq's.
"""

import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lcm.codec import storage
from lcm.codec.fetching import fetch, wrong_with
from lcm.codec.sonar_space import Originals, official_files
from lcm.codec.storage import DEAD, Part
from lcm.errors import UserError
from lcm.files import cache_folder, disk_errors, lock, sha256

RELEASE = "https://dl.fbaipublicfiles.com/SONAR"
"""Address in sonar-space's cards. The environment variable LCM_SONAR_URL names a mirror."""
HEADS = 16
ENCODER_FILE, VOCABULARY_FILE = "sonar_text_encoder.pt", "sentencepiece.source.256000.model"
LANGUAGES = Path(__file__).parent / "assets" / "sonar_languages.txt"
"""File with the 202 FLORES codes of the tokenizer's card, in its order."""
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


RELEASES = {
    "sonar": ("text_sonar_basic_decoder", "sonar_text_decoder.pt"),
    "sonar-finetuned": ("text_sonar_finetuned_decoder", "finetuned_decoder.pt"),
}
"""The decoder of each official codec: its card in sonar-space, and its file. All share one encoder."""


def sonar_folder(name: str) -> Path:
    """Folder of the converted codec in the user's cache; converted first where it is missing.

    Where sonar-space is installed the files come from its asset store, which honors its cards and its cache; otherwise
    they are fetched from the address in its cards. Raises UserError with both ways to get missing files.
    """
    folder, fetched = cache_folder() / "codecs" / name, cache_folder() / "fetched"
    if not storage.missing_files(folder):
        return folder
    with disk_errors(folder), lock(folder.parent / f".{folder.name}.lock"):  # several processes may start at once
        if storage.missing_files(folder):  # otherwise another process has made it meanwhile
            is_installed = find_spec("sonar") and find_spec("fairseq2")
            files = official_files(RELEASES[name][0]) if is_installed else _fetch(name, fetched)
            print(f"lcm: converting to {folder}", file=sys.stderr)
            try:
                convert(files.encoder, files.decoder, files.vocabulary, files.languages, folder, heads=HEADS)
            except UserError as error:
                # What cannot be converted would be found again, and fail again.
                broken = [p for p in (files.encoder, files.decoder, files.vocabulary) if str(p) in str(error)]
                if is_installed or not broken:
                    raise
                broken[0].unlink()
                raise UserError(f"{error}; it is removed, and the next command fetches it again") from error
            if not is_installed:
                shutil.rmtree(fetched, ignore_errors=True)
    return folder


def _fetch(name: str, parent: Path) -> Originals:
    """Download the files of a release, except those that are in `parent`; each appears complete or not at all."""
    parent.mkdir(parents=True, exist_ok=True)
    names = (ENCODER_FILE, RELEASES[name][1], VOCABULARY_FILE)
    for file in names:
        url = f"{os.environ.get('LCM_SONAR_URL', RELEASE).rstrip('/')}/{file}"
        if (parent / file).is_file() and not wrong_with(parent / file):  # else a version without checks left it
            continue
        print(f"lcm: fetching {url}", file=sys.stderr)
        try:
            fetch(url, parent / file)
        except UserError as error:
            folder = cache_folder() / "codecs" / name
            raise UserError(
                f"codec {name!r}: not in {folder}, and {url} could not be fetched ({error}). With a network, run this "
                f"again. Without, bring {names[0]}, {names[1]} and {names[2]} from {RELEASE} and run: "
                f"python data_prep/convert_sonar.py --encoder F --decoder F --vocabulary F --output {folder}"
            ) from error
    encoder, decoder, vocabulary = (parent / file for file in names)
    return Originals(encoder, decoder, vocabulary, tuple(LANGUAGES.read_text(encoding="utf-8").split()))


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
        for part, path in zip(storage.PARTS, (encoder, decoder), strict=True):
            tensors = read_checkpoint(path, part)
            sizes |= _sizes(tensors, part, heads, path, sizes)
            stored = {f"text_{part}/{name}": tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
            save_file(stored, partial / f"{part}.safetensors", metadata={"format": "pt"})
        shutil.copyfile(vocabulary, partial / storage.VOCABULARY)
        storage.write_json(partial / storage.CONFIG, _config(sizes, vocabulary, languages))
        origins = {path.name: sha256(path) for path in (encoder, decoder, vocabulary)}
        storage.write_json(partial / storage.CARD, {"stop_threshold": STOP_THRESHOLD, "converted_from_sha256": origins})
        checksums = {name: storage.checksum(partial / name) for name in storage.CHECKED}
        storage.write_json(partial / storage.CHECKSUMS, checksums)
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
    embedding = f"{part}_frontend.embed.weight"
    if embedding not in state:
        state = _from_fairseq(state.get("state_dict", state), part)
    if embedding not in state:
        raise UserError(f"{path}: not a SONAR text {part}: it has no '{embedding}'; is it the other one?")
    tensors = {name: value for name, value in state.items() if not any(dead in name for dead in DEAD)}
    output = tensors.pop("final_proj.weight", None)
    if output is not None and not torch.equal(output, tensors["decoder_frontend.embed.weight"]):
        raise UserError(f"{path}: its output embedding differs from its input embedding; SONAR's are one and the same")
    return tensors


def _load(path: Path) -> dict[str, Any]:
    if problem := wrong_with(path):
        raise UserError(f"{path}: not a checkpoint that torch can read: {problem}; fetch it again")
    mapped = zipfile.is_zipfile(path)  # the old format of torch.save cannot be mapped
    # The only class besides tensors that such files contain; nothing else in a pickle is executed.
    with torch.serialization.safe_globals([nn.Embedding]):
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except RuntimeError:
            raise UserError(f"{path}: not a checkpoint that torch can read; fetch it again") from None
        except (UnpicklingError, EOFError, OSError) as error:
            # Not in torch's words: they advise to unpickle it nevertheless, which would run whatever is in it.
            reason = "it ends too early" if isinstance(error, EOFError) else "it is damaged, or holds more than tensors"
            line = f"{path}: not a checkpoint that torch can read safely ({reason}); fetch it again"
            raise UserError(line) from error
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
    tensors: Mapping[str, Tensor], part: Part, heads: int, path: Path, before: Mapping[str, Any]
) -> dict[str, Any]:
    """Read sizes off the shapes of the tensors. Raises UserError where the decoder does not fit the encoder."""
    vocabulary, dim = tensors[f"{part}_frontend.embed.weight"].shape
    if before.get("d", dim) != dim or before.get("vocab", vocabulary) != vocabulary:
        theirs = f"{before['vocab']} pieces and {before['d']} dimensions"
        raise UserError(f"{path}: {vocabulary} pieces and {dim} dimensions, but the encoder has {theirs}")
    if dim % heads:
        raise UserError(f"--heads={heads}: does not divide the {dim} dimensions of {path}")
    layers = {int(m[1]) for name in tensors if (m := re.match(rf"{part}\.layers\.(\d+)\.", name))}
    own = {"layers": len(layers), "heads": heads, "ffn": len(tensors[f"{part}.layers.0.ffn.inner_proj.weight"])}
    return {"vocab": vocabulary, "d": dim, **{f"{part[:3]}_{name}": size for name, size in own.items()}}


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
