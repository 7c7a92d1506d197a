"""Models of others that judge texts: found by name or folder, read with transformers, from safetensors alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lcm.errors import UserError, optional_import

FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]
"""Files that are fetched from a hub: no pickled weights."""
PICKLED = {
    "alignscore": ("yzha/AlignScore/AlignScore-base.ckpt", "roberta-base"),
    "coherence": ("aisingapore/coherence-momentum/pytorch_model.bin", "xlnet-base-cased"),
}
"""Published weights that are pickled and of no class of transformers; the model with their sizes and tokenizer."""
TENSORS = {
    "cola": "classifier.", "seahorse-q4": "decoder.", "seahorse-q5": "decoder.", "coherence": "conlinear.",
    "alignscore": "tri_layer.", "minicheck": "decoder.",
}  # fmt: skip
"""Beginnings of names by which weights of another model are known before anything starts."""
BATCH = 16
"""Texts at once."""
TOKENS = 8192
"""Tokens at once, unless a single text has more."""


@dataclass(frozen=True)
class Weights:
    """A folder with config.json, *.safetensors and a tokenizer.

    folder:  where it lies
    setting: how errors name it, such as "--judge cola=FOLDER"
    """

    folder: Path
    setting: str

    def load(self, kind: str, ignore: Sequence[str] = (), **options: Any) -> Any:
        """The model, of a class of transformers such as "AutoModelForCausalLM", on the GPU where there is one.

        ignore: beginnings of the tensors that may be missing, as nothing reads them
        Raises UserError for weights of another kind, which lack tensors that would be random.
        """
        model_class = getattr(transformers(self.setting), kind)
        try:
            model, found = model_class.from_pretrained(
                self.folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
            )
        except (OSError, ValueError, RuntimeError) as error:
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise self.refused(f"does not load as {kind} ({why})") from error
        self.check([name for name in found["missing_keys"] if not name.startswith(tuple(ignore))])
        return model.eval().to(device())

    def check(self, missing: Sequence[str]) -> None:
        """Raise UserError where tensors are missing."""
        if missing:
            raise self.refused(f"has no {missing[0]} ({len(missing)} tensors missing): weights of another model")

    def config(self) -> Any:
        """The configuration, by transformers. Raises UserError where it cannot be read."""
        try:
            return transformers(self.setting).AutoConfig.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise self.refused("its config.json is of no model that transformers knows") from error

    def names(self) -> list[str]:
        """The names of all tensors of the folder. Raises UserError for a damaged file."""
        from safetensors import SafetensorError, safe_open

        found: list[str] = []
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    found += file.keys()
            except SafetensorError as error:
                raise self.refused(f"{path.name} is damaged ({error}); copy it again") from error
        return found

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the folder, for a model that transformers does not know."""
        from safetensors.torch import load_file

        return {name: t for path in sorted(self.folder.glob("*.safetensors")) for name, t in load_file(path).items()}

    def tokenizer(self) -> Any:
        """The tokenizer, by transformers. Raises UserError where there is none."""
        try:
            return transformers(self.setting).AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise self.refused("no tokenizer there that transformers reads") from error

    def refused(self, why: str) -> UserError:
        return UserError(f"{self.setting}: {why}; docs/evaluation.md, Judges, says what each judge reads")


def transformers(setting: str) -> Any:
    """The package, silenced: it prints what `check` refuses. Raises UserError with its extra where it is missing."""
    library = optional_import("transformers", f"{setting}: needs transformers: pip install 'lcm-train[transformers]'")
    library.utils.logging.set_verbosity_error()
    return library


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_weights(judge: str, name: str) -> Weights:
    """The weights of a judge, from a folder, or by their name on a hub: fetched on first use, then from the cache.

    Raises UserError where they are not there, or only as pickled files, which are never opened.
    """
    setting = f"--judge {judge}={name}"
    transformers(setting)
    weights = Weights(Path(name).expanduser() if Path(name).expanduser().is_dir() else _fetch(name, setting), setting)
    files = {path.name for path in weights.folder.iterdir()}
    if not any(file.endswith(".safetensors") for file in files):
        pickled, base = PICKLED.get(judge, (f"{name}/pytorch_model.bin", name))
        raise UserError(
            f"{setting}: no *.safetensors there, and pickled weights are never opened; convert them once: python "
            f"data_prep/convert_judge.py --weights {pickled} --base {base} --output FOLDER, then --judge {judge}=FOLDER"
        )
    if "config.json" not in files:
        raise weights.refused("no config.json there; expected a folder as save_pretrained of transformers writes it")
    if judge in TENSORS and not any(name.startswith(TENSORS[judge]) for name in weights.names()):
        raise weights.refused(f"has no tensor {TENSORS[judge]}*: weights of another model")
    return weights


def _fetch(name: str, setting: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{setting}: no such folder, and {name} can neither be fetched from huggingface.co nor found in the cache; "
            "copy it here from a machine with a network, and name its folder"
        ) from error


def longest(tokenizer: Any, config: Any) -> int:
    """Tokens that a model reads at once, special ones included, by its tokenizer and its table of positions.

    RoBERTa's table begins behind the padding, so two fewer.
    """
    places = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 10**9
    if config.model_type in ("roberta", "xlm-roberta"):
        places -= 2
    return min(int(tokenizer.model_max_length), int(places))


def batches(lengths: Sequence[int], size: int = BATCH) -> Iterator[list[int]]:
    """Numbers of texts, those of like length together: `size` of them, or as many as make up `TOKENS` with padding."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        fit = max(1, min(size, TOKENS // max(1, lengths[order[0]])))
        yield order[:fit]
        del order[:fit]


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """(tokens, 1 for each that is none of the padding), padded on the right."""
    most = max(map(len, rows))
    tokens = torch.tensor([[*row, *[pad] * (most - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (most - len(row)) for row in rows])
    return tokens.to(device()), mask.to(device())
