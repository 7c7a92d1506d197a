"""What a plan costs: nothing grows with the data, and what a process does not with the number of processes."""

import subprocess
import sys
from itertools import takewhile

import numpy as np
import pytest
from test_order import MadeUpShard, contents

import lcm.data.order
from lcm.data.order import Plan
from lcm.data.steps import Position, Share


@pytest.fixture
def shards(monkeypatch) -> list[MadeUpShard]:
    """Each a bundle, of some twenty rows of 64 slots."""
    monkeypatch.setattr(lcm.data.order, "BUNDLE_ROWS", 1)
    return [MadeUpShard(f"train-{i:06}.tar", 60 + i, seed=i) for i in range(48)]


def of_one_rank(plan: Plan, rank: int, world_size: int, rows: int = 2) -> list[list[Share]]:
    """What it trains in an epoch."""
    steps = takewhile(lambda step: step.parts[0].group.epoch == 0, plan.steps(Position(), rows * world_size))
    return [step.shares(rank, world_size, 1, targets_of_all=False) for step in steps]


@pytest.mark.parametrize("world_size", [2, 8, 64])
def test_a_process_opens_only_the_shards_of_its_own_rows(shards, world_size):
    """When the number of rows of each shard is known, which each process finds out for a part of them."""
    plan = Plan(shards, slots=64, group=8, seed=1, predicts_first=True)
    plan.count(np.arange(len(shards)))
    for shard in shards:
        shard.loads.clear()
    mine = [row for shares in of_one_rank(plan, 1, world_size) for share in shares for row in share.rows]
    needed = {number for row in mine for number in row.spans["shard"].tolist()}
    assert {n for n, shard in enumerate(shards) if shard.loads} == needed
    assert all(len(shard.loads) <= 1 for shard in shards)


@pytest.mark.parametrize("world_size", [1, 3, 16])
def test_counted_in_parts_the_plan_is_the_same(shards, world_size):
    whole = Plan(shards, slots=64, group=8, seed=1, predicts_first=True)
    parts = [Plan(shards, slots=64, group=8, seed=1, predicts_first=True) for _ in range(world_size)]
    for rank, plan in enumerate(parts):
        plan.count(np.arange(rank, len(shards), world_size))
    known = np.max([plan.rows_in for plan in parts], axis=0)
    for plan in parts:
        plan.rows_in[:] = known
    ranks = [of_one_rank(plan, rank, world_size) for rank, plan in enumerate(parts)]
    for step, shares in zip(whole.steps(Position(), 2 * world_size), zip(*ranks, strict=True), strict=False):
        for rank, (mine,) in enumerate(shares):
            (expected,) = step.shares(rank, world_size, 1)
            assert [contents(mine.rows), mine.targets] == [contents(expected.rows), sum(r.targets for r in mine.rows)]
        assert sum(mine.targets for (mine,) in shares) == step.targets == expected.targets
    assert step.after.epoch == 1


@pytest.mark.parametrize(("rows", "is_made"), [(40, True), (100_000, False)])
def test_of_groups_that_a_step_takes_as_a_whole_no_order_is_made(rows, is_made, shards, monkeypatch):
    plan, made = Plan(shards, slots=64, group=8, seed=1, predicts_first=True), []
    original = plan._order
    monkeypatch.setattr(plan, "_order", lambda *a, **named: made.append(named.get("what")) or original(*a, **named))
    next(plan.steps(Position(), rows)).shares(0, 10, 1, targets_of_all=False)
    assert (lcm.data.order.ROWS in made) == is_made


HUGE = """
import resource, sys, time
sys.path.insert(0, {folder!r})
import numpy as np
from test_order import MadeUpShard
from lcm.data.order import Plan
from lcm.data.steps import Position
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
MadeUpShard.concepts = 420_000
shards = [MadeUpShard(f"train-{{i:06}}.tar", 10_000, seed=i, longest=64) for i in range(10_000)]
plan = Plan(shards, slots=128, group=16, seed=1, predicts_first=False)
started = time.perf_counter()
steps = plan.steps(Position(epoch=2, row=26_000_123, group=600, group_row=26_000_100), rows_per_step=512)
first = next(steps)
waited = time.perf_counter() - started
for _ in range(200):
    last = next(steps)
assert last.after.group > 600
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20, waited)
"""


def test_a_plan_over_100_million_documents_needs_little_memory_and_starts_anywhere_in_seconds():
    """10,000 shards of 10,000 documents, two groups drawn from deep inside the third epoch."""
    script = HUGE.format(folder=__file__.rpartition("/")[0])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    gigabytes, seconds = map(float, done.stdout.split())
    assert gigabytes < 0.25
    assert seconds < 10
