"""Shared by encode.py and decode.py: codecs of several sizes, real sentences, and timing in turns."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile

from lcm.codec import Codec, load_codec, storage
from lcm.codec.architecture import SonarText
from lcm.codec.codec import PACKAGED
from lcm.codec.text import Splitter, SplitterSettings
from lcm.prepare import Columns, Document, Sources, find_inputs

SIZES = {
    "S": "the embedded codec: 512 wide, 2+2 layers, 8,000 pieces",
    "M": "random weights: 1024 wide, 6+6 layers, 32,000 pieces (sonar-space's architecture 'small')",
    "L": "random weights: SONAR's own size, 24+24 layers, 256,206 pieces, 6.5 GB",
}
RANDOM = {"M": (6, 4096, 32_000), "L": (24, 8192, 256_206)}
"""Layers of each side, FFN width, vocabulary."""
CORPUS = Path(__file__).parents[1] / "examples" / "corpus"
PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::linear", "aten::_scaled_dot_product", "aten::scaled_dot")


@contextmanager
def codec_of(size: str, dtype: torch.dtype) -> Iterator[Codec]:
    """A codec of one of the SIZES, on the CPU."""
    if size == "S":
        yield load_codec("mini", device="cpu", dtype=dtype)
        return
    layers, ffn, vocabulary = RANDOM[size]
    mini = storage.read_json(PACKAGED["mini"] / storage.CONFIG)
    side = {"layers": layers, "heads": 16, "ffn": ffn}
    shape = {f"{name}_{what}": value for name in ("enc", "dec") for what, value in side.items()}
    shape |= {"vocab": vocabulary, "d": 1024, "positions": 514, "shared_embedding": size == "M"}
    with TemporaryDirectory(prefix="lcm-codec-") as folder:
        print(f"making {SIZES[size]} ...", file=sys.stderr)
        torch.manual_seed(0)
        vocabulary_file = (PACKAGED["mini"] / storage.VOCABULARY).read_bytes()
        config = {**mini, "model": shape, "max_pieces": 512}
        storage.save(Path(folder), SonarText(storage.read_sizes(config)), vocabulary_file, config, {}, torch.float32)
        yield load_codec(folder, device="cpu", dtype=dtype)


def sentences(count: int) -> list[str]:
    """The first sentences of the example corpus, cut as `lcm prepare` cuts them."""
    fits = load_codec("mini", device="cpu").fits
    splitter = Splitter(SplitterSettings(), fits)
    found: list[str] = []
    for document in Sources(find_inputs([str(CORPUS)]), Columns()):
        if isinstance(document, Document):
            found += splitter.split(document.text)
        if len(found) >= count:
            break
    return found[:count]


def in_turns(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each side: the median over `rounds`, in each of which every side runs once."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(1, rounds + 1):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
        print(f"round {number}: " + ", ".join(f"{k} {v[-1]:.2f} s" for k, v in seconds.items()), file=sys.stderr)
    return {name: median(times) for name, times in seconds.items()}


def outside_products(run: Callable[[], object]) -> float:
    """Share of the time outside matrix products and attention, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
    inside = sum(e.self_cpu_time_total for e in profiled.key_averages() if e.key.startswith(PRODUCTS)) / 1e6
    return round(1 - inside / seconds, 3)


def tell(name: str, size: str, count: int, ours: float, other: float, other_name: str, more: dict[str, object]) -> None:
    """One JSON line; `ours` and `other` are seconds for `count` sentences."""
    line = {"name": name, "size": size, "ours": round(count / ours, 1), "other": round(count / other, 1)}
    print(
        json.dumps({**line, "other_name": other_name, "unit": "sentences/s", "ratio": round(other / ours, 2), **more})
    )
