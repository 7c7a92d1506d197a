"""The cost of the order: memory does not grow with the data, nor a rank's work with the number of ranks."""

import subprocess
import sys
from itertools import takewhile

import numpy as np
import pytest
from test_order import MadeUpShard, contents, loads_from_now_on, made_up, random_lengths

import lcm.data.order
from lcm.data.order import Position, RowOrder
from lcm.data.packing import Row


@pytest.fixture
def shards(monkeypatch) -> list[MadeUpShard]:
    """Each a bundle, of some twenty rows of 64 slots."""
    monkeypatch.setattr(lcm.data.order, "BUNDLE_ROWS", 1)
    return [made_up(i, random_lengths(60 + i, 40, seed=i)) for i in range(48)]


def order_of(shards: list[MadeUpShard]) -> RowOrder:
    return RowOrder(shards, slots=64, group=8, seed=1, predicts_first=True)


def of_one_rank(order: RowOrder, rank: int, world_size: int, rows: int = 2) -> list[list[Row]]:
    """Its rows in each step of an epoch."""
    steps = takewhile(lambda step: step.epoch == 0, order.steps(Position(), rows * world_size))
    return [list(order.rows(0, step.share(rank, world_size))) for step in steps]


@pytest.mark.parametrize("world_size", [2, 8, 64])
def test_a_rank_opens_only_the_shards_of_its_own_rows_each_once(shards, world_size):
    """When the rows of all bundles are counted."""
    order = order_of(shards)
    log = loads_from_now_on(order)
    mine = of_one_rank(order, 1, world_size)
    needed = {number for rows in mine for row in rows for number in row.spans["shard"].tolist()}
    assert sorted(log) == sorted(order.shards[number].record.name for number in needed)


@pytest.mark.parametrize("world_size", [1, 3, 16])
def test_counted_in_parts_the_order_is_the_same(shards, world_size):
    whole, parts = order_of(shards), [order_of(shards) for _ in range(world_size)]
    counts = np.zeros(whole.bundles, dtype=np.int64)
    for rank, order in enumerate(parts):
        mine = np.arange(rank, whole.bundles, world_size)
        counts[mine] = order.count(mine.tolist())
    for order in parts:
        order.rows_in = counts
    ranks = [of_one_rank(order, rank, world_size) for rank, order in enumerate(parts)]
    for step, rows in zip(of_one_rank(whole, 0, 1, 2 * world_size), zip(*ranks, strict=True), strict=True):
        together = [row for mine in rows for row in mine]
        assert [row.number for row in together] == [row.number for row in step]
        assert contents(together) == contents(step)
        assert [row.targets for row in together] == [row.targets for row in step]


@pytest.mark.parametrize(("rows", "is_made"), [(40, True), (100_000, False)])
def test_no_permutation_is_made_for_groups_that_a_step_takes_as_a_whole(rows, is_made, shards, monkeypatch):
    made, original = [], RowOrder._permutation
    monkeypatch.setattr(
        RowOrder, "_permutation", lambda self, n, epoch, what, i: made.append(what) or original(self, n, epoch, what, i)
    )
    next(order_of(shards).steps(Position(), rows))
    assert (lcm.data.order.ROWS in made) == is_made


HUGE = """
import resource, sys, time
sys.path.insert(0, {folder!r})
import numpy as np
from test_order import MadeUpShard, made_up, random_lengths
from lcm.data.order import Position, RowOrder
shard = made_up(0, random_lengths(10_000, 64, seed=0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shards = [MadeUpShard(shard.folder, shard.record, shard.index.copy, []) for i in range(10_000)]
MadeUpShard.load = lambda self: self.index()
order = RowOrder(shards, slots=128, group=16, seed=1, predicts_first=False)
order.rows_in = order.count([0]).repeat(order.bundles)
started = time.process_time()
steps = order.steps(Position(epoch=2, row=len(order) - 26_000), rows=512)
first = next(steps)
list(order.rows(first.epoch, first.rows))
waited = time.process_time() - started
for _ in range(200):
    last = next(steps)
    list(order.rows(last.epoch, last.rows))
assert (first.epoch, last.epoch) == (2, 3)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20, waited)
"""


def test_an_order_of_100_million_documents_needs_little_memory_and_starts_anywhere_in_seconds():
    """10,000 counted shards of 10,000 documents each, from deep inside the third epoch into the fourth."""
    script = HUGE.format(folder=__file__.rpartition("/")[0])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    gigabytes, seconds = map(float, done.stdout.split())
    assert gigabytes < 0.25
    assert seconds < 10
