"""A training checkpoint → the folder that `lcm.load` opens: `lcm export`."""

import argparse
import json
from pathlib import Path
from typing import Any

from lcm.config import Config, parse_config
from lcm.files import atomic_path
from lcm.models import assembled, save_model
from lcm.training.checkpoint import LAST, latest, open_checkpoint

CARD = "README.md"


def export(checkpoint_path: str | Path, output: str | Path, trust: bool = False) -> Path:
    """A training checkpoint as a folder that `load_model` opens, with a model card. Returns the folder."""
    checkpoint = open_checkpoint(checkpoint_path, trust)
    config = parse_config(checkpoint["config"], [], where=str(checkpoint_path))
    tensors = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
    model = assembled(config, tensors, Path(checkpoint_path))
    output = Path(output)
    save_model(output, model, config)
    write_card(output, sum(p.numel() for p in model.parameters()), config, checkpoint)
    return output


def write_card(folder: Path, parameters: int, config: Config, checkpoint: dict[str, Any]) -> None:
    """README.md beside a model, from the checkpoint that holds its weights."""
    with atomic_path(folder / CARD) as partial:
        partial.write_text(_card(parameters, config, checkpoint), encoding="utf-8")


def _card(parameters: int, config: Config, checkpoint: dict[str, Any]) -> str:
    """What a person who finds the folder wants to know."""
    codec = config.codec
    concepts = f"{codec.name} ({codec.dim} channels, {codec.lang}, {codec.fingerprint})" if codec else "not recorded"
    rows = [
        ("model", f"{config.model.kind}, {parameters:,} parameters"),
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
