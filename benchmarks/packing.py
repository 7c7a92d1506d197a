"""Measure the empty part of the rows, and how fast their order is made, beside the plainest packing there is.

    python benchmarks/packing.py --documents 480000

In the plainest, the next document that does not fit begins a new row. Lengths are made up: uniform in 4 to 64, and
log-normal with median 18; or those of a prepared folder, with --data. Prints one JSON line for each. `ours` and
`other` are the slots that hold a concept, in percent. Speeds are those of one process that counts all rows, and then
packs and deals all of them itself, in millions of concepts a second of processor time.
"""

import argparse
import json
import time
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from lcm.data.dataset import PreparedData
from lcm.data.manifest import ShardRecord
from lcm.data.order import Position, RowOrder
from lcm.data.shards import CONCEPTS, Shard

ROWS = 8
LONGEST = 4000


@dataclass(frozen=True)
class MadeUp(Shard):
    """A shard that is nothing but an index."""

    index: np.ndarray

    def load(self) -> np.ndarray:
        return self.index


def made_up(kind: str, documents: int, per_shard: int) -> list[Shard]:
    rng = np.random.default_rng(0)
    if kind == "uniform":
        lengths = rng.integers(4, 65, documents)
    else:
        lengths = np.clip(np.exp(rng.normal(np.log(18), 1, documents)), 1, LONGEST).astype(np.int64)
    shards: list[Shard] = []
    for first in range(0, documents, per_shard):
        some = lengths[first : first + per_shard]
        record = ShardRecord(
            name=f"{len(shards)}", documents=len(some), pairs=0, concepts=int(some.sum()), bytes=0, sha256=""
        )
        index = np.stack([some.cumsum() - some, some, np.zeros_like(some)], axis=1)
        shards.append(MadeUp(Path(), record, index))
    return shards


def plain_rows(shards: list[Shard], slots: int) -> int:
    """Count the rows where the next document that does not fit begins a new one."""
    rows, free = 0, 0
    for shard in shards:
        for length in shard.load()[:, CONCEPTS].tolist():
            for piece in [*[slots] * (length // slots), *([length % slots] if length % slots else [])]:
                if piece > free:
                    rows, free = rows + 1, slots
                free -= piece
    return rows


def ordered(shards: list[Shard], slots: int) -> tuple[int, float, float]:
    """The number of rows in an epoch, and the seconds in which a single process counts and makes them."""
    order, started = RowOrder(shards, slots=slots, group=16, seed=1, predicts_first=True), time.process_time()
    rows, counted = len(order), time.process_time()
    for step in takewhile(lambda step: step.epoch == 0, order.steps(Position(), ROWS)):
        list(order.rows(0, step.rows))
    return rows, counted - started, time.process_time() - counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=480_000, help="made up (default: 480000)")
    parser.add_argument("--slots", type=int, default=128, help="of a row (default: 128)")
    parser.add_argument("--per-shard", type=int, default=5000, help="made-up documents in each (default: 5000)")
    parser.add_argument("--data", metavar="FOLDER", help="written by lcm prepare, instead of made-up lengths")
    args = parser.parse_args()
    sets = {kind: made_up(kind, args.documents, args.per_shard) for kind in ("uniform", "log-normal")}
    if args.data:
        sets = {args.data: list(PreparedData([args.data]).shards("train"))}
    for name, shards in sets.items():
        concepts = sum(shard.record.concepts for shard in shards)
        rows, *seconds = ordered(shards, args.slots)
        full = [100 * concepts / (count * args.slots) for count in (rows, plain_rows(shards, args.slots))]
        result = {
            "name": f"packing {name}",
            "ours": round(full[0], 2),
            "other": round(full[1], 2),
            "other_name": "the next that does not fit begins a row",
            "unit": "% of the slots",
            "ratio": round(full[0] / full[1], 3),
            "counted, Mconcepts/s": round(concepts / seconds[0] / 1e6, 1),
            "packed, Mconcepts/s": round(concepts / seconds[1] / 1e6, 1),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
