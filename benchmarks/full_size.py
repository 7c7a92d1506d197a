"""SONAR's own size on this machine: what converting, encoding and decoding cost in memory and time.

    python benchmarks/full_size.py [--precision float16] [--folder /where/there/is/space]

Writes checkpoints of 24+24 layers with random weights in the official format (6.5 GB), converts them (as much again),
and uses the codec, each step in a process of its own. Prints one JSON line a step. Random weights never end a
sentence: decoding stops at 32 pieces.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from lcm.codec import load_codec, storage
from lcm.codec.architecture import Sizes, SonarText
from lcm.codec.codec import PACKAGED
from lcm.codec.official import LANGUAGES, POSITIONS, convert

LAYERS, DIM, FFN, HEADS = 24, 1024, 8192, 16
SENTENCE = "Most sentences of a corpus have some eighty characters, and about twenty of the tokenizer's pieces."
MOST = 32


def write_checkpoints(folder: Path) -> dict[str, object]:
    """The embedded codec's vocabulary, SONAR's languages, SONAR's 256,206 rows in the tables all the same."""
    pieces, languages = 256_000, LANGUAGES.read_text().split()
    vocabulary = 1 + pieces + len(languages) + 3
    torch.manual_seed(0)
    for part in storage.PARTS:
        with torch.device("meta"):
            sizes = Sizes(vocabulary, DIM, LAYERS, LAYERS, HEADS, HEADS, FFN, FFN, POSITIONS, shared_embedding=False)
            names = {name: value.shape for name, value in getattr(SonarText(sizes), part).state_dict().items()}
        state = {
            storage.stored_name(f"{part}.{name}", False).removeprefix(f"text_{part}/"): torch.randn(shape) * 0.02
            for name, shape in names.items()
        }
        if part == "decoder":
            state["final_proj.weight"] = state["decoder_frontend.embed.weight"]
        torch.save({"model": state}, folder / f"{part}.pt")
    return {"bytes": sum(path.stat().st_size for path in folder.glob("*.pt"))}


def convert_them(folder: Path) -> dict[str, object]:
    # A vocabulary of 256,000 pieces cannot be made up; the languages fill the rows that the small one leaves.
    vocabulary = PACKAGED["mini"] / storage.VOCABULARY
    small = load_codec("mini", device="cpu").tokenizer._model.get_piece_size()
    codes = [*LANGUAGES.read_text().split(), *(f"row{i}" for i in range(256_000 - small))]
    convert(folder / "encoder.pt", folder / "decoder.pt", vocabulary, codes, folder / "codec", heads=HEADS)
    return {"bytes": sum(path.stat().st_size for path in (folder / "codec").iterdir())}


def encode(folder: Path, dtype: torch.dtype, sentences: int) -> dict[str, object]:
    started = time.perf_counter()
    codec = load_codec(folder / "codec", device="cpu", dtype=dtype)
    codec.encode(["One."])
    ready = time.perf_counter()
    codec.encode([SENTENCE] * sentences)
    return {"until_ready": ready - started, "sentences_per_second": sentences / (time.perf_counter() - ready)}


def decode(folder: Path, dtype: torch.dtype, sentences: int, beam: int) -> dict[str, object]:
    started = time.perf_counter()
    codec = load_codec(folder / "codec", device="cpu", dtype=dtype)
    codec.config["max_generated"] = 1
    codec.decode(torch.randn(1, DIM) * 0.006)
    ready = time.perf_counter()
    codec.config["max_generated"] = MOST
    codec.decode(torch.randn(sentences, DIM) * 0.006, beam=beam)
    return {"until_ready": ready - started, "sentences_per_second": sentences / (time.perf_counter() - ready)}


def step(name: str, folder: Path, dtype: torch.dtype) -> dict[str, object]:
    match name:
        case "write":
            return write_checkpoints(folder)
        case "convert":
            return convert_them(folder)
        case "encode":
            return encode(folder, dtype, sentences=32)
        case "greedy":
            return decode(folder, dtype, sentences=16, beam=1)
        case "beam":
            return decode(folder, dtype, sentences=16, beam=5)
    raise ValueError(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--folder", help="where 13 GB are free (default: the system's temporary folder)")
    parser.add_argument("--step", nargs=2, metavar=("NAME", "DIR"), help=argparse.SUPPRESS)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    if args.step:
        started = time.perf_counter()
        found = step(args.step[0], Path(args.step[1]), getattr(torch, args.precision))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        seconds = time.perf_counter() - started
        print(json.dumps({"name": args.step[0], "seconds": seconds, "peak_bytes": peak, **found}))
        return
    with tempfile.TemporaryDirectory(prefix="lcm-full-size-", dir=args.folder) as folder:
        for name in ("write", "convert", "encode", "greedy", "beam"):
            options = ["--precision", args.precision, "--threads", str(args.threads)]
            subprocess.run([sys.executable, __file__, *options, "--step", name, folder], check=True)


if __name__ == "__main__":
    main()
