"""Pickled weights of a judge → a folder that lcm evaluate --judge NAME=FOLDER reads: safetensors, sizes, tokenizer.

python data_prep/convert_judge.py --weights yzha/AlignScore/AlignScore-base.ckpt --base roberta-base --output FOLDER
"""

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lcm.cli import run_command, starting

with starting("convert_judge"):
    import pickle

    import torch
    from safetensors.torch import save_file

    from lcm.errors import UserError, optional_import
    from lcm.files import disk_errors
    from lcm.options import Option, add_options, check_fields, options_from

COPIED = ("*.json", "*.model", "*.txt")
"""Files of the base that go along: sizes and tokenizer."""
INSTALL = "pip install 'lcm-train[transformers]', which fetches from huggingface.co"


@dataclass(frozen=True, kw_only=True)
class Options:
    weights: Annotated[str, Option("F", read=True)]
    """A pytorch_model.bin or .ckpt, or one on huggingface.co: OWNER/MODEL/FILE. Opened without running its code."""
    base: Annotated[str, Option("DIR|NAME", read=True)]
    """Folder or hub name of the model whose config.json and tokenizer the weights have."""
    output: Annotated[str, Option("DIR", place=True)]
    """Folder of the judge, made here."""

    def __post_init__(self) -> None:
        check_fields(self)


def convert(options: Options) -> int:
    path, base, folder = weights_of(options.weights), base_of(options.base), Path(options.output)
    tensors = tensors_of(path)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in (file for pattern in COPIED for file in sorted(base.glob(pattern))):
            shutil.copyfile(file, folder / file.name)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    print(folder)
    return 0


def weights_of(name: str) -> Path:
    """The file itself, or OWNER/MODEL/FILE from the hub. Raises UserError where it is neither here nor there."""
    if Path(name).is_file():
        return Path(name)
    owner, _, rest = name.partition("/")
    model, _, file = rest.partition("/")
    if not file:
        raise UserError(f"--weights={name}: no such file; expected one, or OWNER/MODEL/FILE of huggingface.co")
    hub = optional_import("huggingface_hub", f"--weights={name}: no such file; {INSTALL}")
    try:
        return Path(hub.hf_hub_download(f"{owner}/{model}", file))
    except (OSError, ValueError) as error:
        raise UserError(f"--weights={name}: no such file, and it cannot be fetched from huggingface.co") from error


def base_of(name: str) -> Path:
    """A folder with config.json and a tokenizer, or these of a model of the hub. Raises UserError without them."""
    folder = Path(name)
    if not folder.is_dir():
        hub = optional_import("huggingface_hub", f"--base={name}: no such folder; {INSTALL}")
        try:
            folder = Path(hub.snapshot_download(name, allow_patterns=[*COPIED]))
        except (OSError, ValueError) as error:
            raise UserError(f"--base={name}: no such folder, and it cannot be fetched from huggingface.co") from error
    if not (folder / "config.json").is_file():
        raise UserError(f"--base={name}: no config.json there; expected the sizes and the tokenizer of the weights")
    return folder


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a state dict, or of a Lightning checkpoint. Raises UserError for a file with anything to run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"--weights={path}: damaged, or not of weights alone, so it is not opened") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    tensors = {name: value.clone().contiguous() for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f"--weights={path}: no tensors in it; expected pytorch_model.bin, or a .ckpt of Lightning")
    return tensors


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_options(parser, Options)
    return run_command("convert_judge", lambda: convert(options_from(parser.parse_args(argv), Options)))


if __name__ == "__main__":
    sys.exit(main())
