"""Measure how fast training data is read: order, read and collate, beside webdataset's own pipeline doing the same.

    python benchmarks/loader.py --size S

Writes made-up shards into a temporary folder (documents of 4 to 64 concepts of 1024 fp16 numbers), reads them once so
that they are in the page cache, then lets both fill rows of 128 slots from shuffled documents, in turns, in a single
process. Prints one JSON line: concepts per second, the median over the rounds. With --ranks N also those of the first
of N ranks, which counts its part of the rows, gets the others' counts, and packs and reads its own.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from statistics import median

import numpy as np
import torch
import webdataset as wds

from lcm.batch import PAD, Batch
from lcm.data.loader import Batches, MicroBatch, RowReader, split
from lcm.data.order import Position, RowOrder
from lcm.data.shards import Encoded, Shard, shard_name, write_shard

DIM, SLOTS, ROWS = 1024, 128, 8
SIZES = {"S": (8, 500), "M": (32, 1000)}
"""Shards, and documents in each: 0.3 GB and 2.2 GB of vectors."""
SENTENCE = "A sentence of a text has some eighty characters, more or less, and is stored beside it."


def write_shards(folder: Path, shards: int, documents: int) -> list[Shard]:
    """Write shards as `lcm prepare` would, with random vectors."""
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((4096, DIM), dtype=np.float32).astype(np.float16)
    lengths = rng.integers(4, 65, (shards, documents)).tolist()
    return [
        Shard(folder, write_shard(folder / shard_name("train", i), made_up(i * documents, lengths[i], pool)))
        for i in range(shards)
    ]


def made_up(first: int, lengths: list[int], pool: np.ndarray) -> Iterator[Encoded]:
    for number, length in enumerate(lengths, start=first):
        start = number * 37 % (len(pool) - length)
        yield Encoded(
            number=number,
            id=str(number),
            title="",
            source="made up",
            lang="eng_Latn",
            sentences=[SENTENCE] * length,
            source_length=0,
            vectors=pool[start : start + length],
        )


def ours(shards: list[Shard], workers: int = 0) -> Iterable[Batch]:
    return batches_of(order_of(shards), 1, workers)


def one_of_many(shards: list[Shard], ranks: int, workers: int) -> Callable[[], Iterator[Batch]]:
    """Read as the first of `ranks` ranks in an epoch `ranks` times as long: as much as one rank alone reads."""
    shards = shards * ranks
    counted = order_of(shards).rows_in

    def read() -> Iterator[Batch]:
        order = order_of(shards)
        order.count(range(0, order.bundles, ranks))
        order.rows_in = counted
        return iter(batches_of(order, ranks, workers))

    return read


def order_of(shards: list[Shard]) -> RowOrder:
    return RowOrder(shards, slots=SLOTS, group=16, seed=1, predicts_first=True)


def batches_of(order: RowOrder, ranks: int, workers: int) -> Batches:
    """Micro-batches of the first rank in an epoch, dealt while they are read, as in training."""

    def deal() -> Iterator[MicroBatch]:
        for step in takewhile(lambda step: step.epoch == 0, order.steps(Position(), ranks * ROWS)):
            yield from split(list(order.rows(0, step.share(0, ranks))), 1)

    reader = RowReader([shard.path for shard in order.shards], dim=DIM, slots=SLOTS, seed=1)
    return Batches(reader, deal, -(-len(order) // (ranks * ROWS)), workers)


def plain_webdataset(shards: list[Shard]) -> Iterator[Batch]:
    """The pipeline of its documentation, and the least work that makes the same kind of batch of it."""
    urls = [str(shard.path) for shard in shards]
    samples = wds.WebDataset(urls, shardshuffle=len(urls), seed=1).shuffle(1000, seed=1).decode()
    rows: list[list[tuple[np.ndarray, int]]] = [[]]
    used = 0
    for sample in samples:
        vectors, source_length = sample["npy"], sample["json"]["source_length"]
        if used + len(vectors) > SLOTS:
            if len(rows) == ROWS:
                yield collate(rows)
                rows = []
            rows.append([])
            used = 0
        rows[-1].append((vectors, source_length))
        used += len(vectors)
    yield collate(rows)


def collate(rows: list[list[tuple[np.ndarray, int]]]) -> Batch:
    emb = torch.zeros(len(rows), SLOTS, DIM, dtype=torch.float16)
    doc = torch.full((len(rows), SLOTS), PAD)
    pos = torch.zeros(len(rows), SLOTS, dtype=torch.long)
    is_target = torch.zeros(len(rows), SLOTS, dtype=torch.bool)
    for i, row in enumerate(rows):
        start = 0
        for number, (vectors, source_length) in enumerate(row):
            end = start + len(vectors)
            emb[i, start:end] = torch.from_numpy(vectors)
            doc[i, start:end] = number
            pos[i, start:end] = torch.arange(len(vectors))
            is_target[i, start + source_length : end] = True
            start = end
    return Batch(emb, doc, pos, is_target, row=torch.arange(len(rows)), step_targets=is_target.sum())


def concepts_per_second(batches: Callable[[], Iterable[Batch]], expected: int | None = None) -> float:
    started = time.perf_counter()
    read = sum(int((batch.doc != PAD).sum()) for batch in batches())
    seconds = time.perf_counter() - started
    assert expected in (None, read), f"{read} concepts of {expected}: a loader that loses some is no loader"
    return read / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", choices=SIZES, default="S", help="S: 0.3 GB, seconds. M: 2.2 GB, a minute. Default: S"
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each side reads all of it (default: 5)")
    parser.add_argument("--workers", type=int, default=0, help="reader threads of our side (default: 0)")
    parser.add_argument("--ranks", type=int, nargs="*", default=[], metavar="N", help="processes to be the first of")
    parser.add_argument("--folder", help="where the temporary shards go (default: the system's temporary folder)")
    args = parser.parse_args()

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="lcm-loader-", dir=args.folder) as folder:
        print("writing shards ...", file=sys.stderr)
        shards = write_shards(Path(folder), *SIZES[args.size])
        total = sum(shard.record.concepts for shard in shards)
        for shard in shards:
            shard.path.read_bytes()
        speeds: dict[str, list[float]] = {"ours": [], "other": []}
        shared: dict[int, list[float]] = {ranks: [] for ranks in args.ranks}
        many = {ranks: one_of_many(shards, ranks, args.workers) for ranks in args.ranks}
        for done in range(1, args.rounds + 1):
            speeds["ours"].append(concepts_per_second(lambda: ours(shards, args.workers), total))
            speeds["other"].append(concepts_per_second(lambda: plain_webdataset(shards), total))
            for ranks in args.ranks:
                shared[ranks].append(concepts_per_second(many[ranks]))
            print(f"round {done}: " + ", ".join(f"{k} {v[-1]:,.0f}" for k, v in speeds.items()), file=sys.stderr)
    one, other = median(speeds["ours"]), median(speeds["other"])
    result = {
        "name": "loader",
        "size": args.size,
        "ours": round(one),
        "other": round(other),
        "other_name": f"webdataset {wds.__version__}",
        "unit": "concepts/s",
        "ratio": round(one / other, 2),
        **{f"one of {ranks}": round(median(speeds)) for ranks, speeds in shared.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
