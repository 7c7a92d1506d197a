"""The case of a disk that fills up while a command writes."""

import json
import shutil
from pathlib import Path
from random import Random

from commands import LONGER, TRAIN, Fault, Run, Steps, copied

COMMANDS = (
    ("prepare", "--input", "in.jsonl", "--shard-documents", "8", "--output"),
    ("encode", "--input", "in.txt", "--output"),
    ("export", "--checkpoint", "run", "--output"),
    ("prepare", "--input", "in.jsonl", "--output"),
    ("encode", "--input", "in.txt", "--output"),
    (*TRAIN, "--run.dir"),
    (*LONGER, "--run.dir"),
)
SUFFIXES = ("", ".tar", ".npy", ".safetensors", ".json")
"""Endings of files whose bytes are those of an undisturbed command; encode's has none."""


def full_disk(random: Random, folder: Path, bench: Path) -> Steps:
    """Each result is whole or not there, the line names the reason, and with room for all the command mends it."""
    copied(bench, folder, "data", "config.yaml", "run")
    (folder / "in.txt").write_text("One is here.\nTwo is there.\n")
    (folder / "in.jsonl").write_text(
        "".join(json.dumps({"id": f"d{n}", "text": "One. Two."}) + "\n" for n in range(40))
    )
    command, room = random.choice(COMMANDS), random.choice([4_000, 6_000, 12_000, 30_000, 60_000, 100_000])
    if command[0] == "train":  # the undisturbed run is there
        shutil.copytree(bench / ("whole" if command[: len(LONGER)] == LONGER else "run"), folder / "good")
        if command[: len(LONGER)] == LONGER:
            shutil.copytree(bench / "run", folder / "out")
    else:
        yield Run([*command, "good"])
    first = yield Run([*command, "out"], room=room)
    if left := list(folder.rglob("*.tmp")):
        raise Fault(f"with room for {room} bytes leaves {left[0].name}")
    if not first.succeeded and "File too large" not in first.err:
        raise Fault(f"does not name the reason: {first.last_line}")
    second = yield Run([*command, "out"])
    if not second.succeeded:
        raise Fault(f"is not mended with room for all: {second.last_line}")
    for path in [folder / "good", *folder.rglob("good/*")]:
        found = folder / "out" / path.relative_to(folder / "good")
        compared = path.is_file() and path.name != "owner.json" and path.suffix in SUFFIXES
        if compared and (not found.is_file() or path.read_bytes() != found.read_bytes()):
            raise Fault(f"{found.name} is missing or differs from that of an undisturbed command")
