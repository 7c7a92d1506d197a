"""The order of training: complete, reproducible, resumable anywhere, and cheap at any size."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise

import numpy as np
import pytest

import lcm.plan
from lcm.plan import Plan, Position, Row, Step


@dataclass
class MadeUpShard:
    """A shard of random lengths that never touches a disk, and remembers how often its index was read."""

    name: str
    documents: int
    seed: int
    longest: int = 40
    lengths: Sequence[int] = ()
    loads: list[str] = field(default_factory=list)

    @property
    def concepts(self) -> int:
        return int(self._lengths().sum())

    def _lengths(self) -> np.ndarray:
        made_up = np.random.default_rng(self.seed).integers(2, self.longest + 1, self.documents)
        return np.array(self.lengths or made_up)

    def load(self) -> np.ndarray:
        self.loads.append(self.name)
        lengths = self._lengths()
        source = np.where(np.arange(self.documents) % 3 == 0, lengths // 2, 0)
        return np.stack([lengths.cumsum() - lengths, lengths, source], axis=1)


def a_plan(shards: int = 5, documents: int = 30, slots: int = 16, seed: int = 1, group: int = 2, **options) -> Plan:
    options = {"predicts_first": True, "longest": 40} | options
    longest = options.pop("longest")
    data = [MadeUpShard(f"train-{i:06}.tar", documents + i, seed=i, longest=longest) for i in range(shards)]
    return Plan(data, slots=slots, group=group, seed=seed, **options)


def concepts_of(rows: Iterable[Row]) -> list[tuple[int, int]]:
    """(shard, number of the concept in the shard), in the order of training."""
    return [
        (shard, offset + first + i)
        for row in rows
        for shard, offset, first, count in row.spans[["shard", "offset", "first", "count"]].tolist()
        for i in range(count)
    ]


def contents(rows: Iterable[Row]) -> list[list[tuple]]:
    return [row.spans.tolist() for row in rows]


def without_filler(steps: Iterable[Step]) -> list[Row]:
    return [row for step in steps for row in step.rows if len(row.spans)]


def an_epoch_of_steps(plan: Plan, rows_per_step: int, start: Position | None = None) -> list[Step]:
    start = start or Position()
    steps = []
    for step in plan.steps(start, rows_per_step):
        if step.rows[0].epoch > start.epoch:
            return steps
        steps.append(step)
    raise AssertionError("a plan never ends")


@pytest.mark.parametrize("seed", [0, 1, 2**40])
@pytest.mark.parametrize(("slots", "group"), [(2, 1), (16, 2), (64, 3), (2048, 16)])
def test_every_concept_exactly_once_an_epoch(seed, slots, group):
    """Pairs that fit and continuations of any length: only a shortened prompt would lose concepts."""
    plan = a_plan(seed=seed, slots=slots, group=group)
    trained = concepts_of(plan.rows(Position(epoch=3)))
    everything = {(number, i) for number, shard in enumerate(plan.shards) for i in range(shard.concepts)}
    assert len(trained) == len(set(trained))
    assert set(trained) <= everything
    if slots >= 64:
        assert set(trained) == everything


def test_every_document_exactly_once_an_epoch_even_where_prompts_are_shortened():
    plan = a_plan(slots=16)
    ends = Counter()
    for row in plan.rows(Position()):
        for shard, offset, first, count in row.spans[["shard", "offset", "first", "count"]].tolist():
            ends[shard, offset + first + count] += 1
    last = [(n, int(end)) for n, s in enumerate(plan.shards) for end in s._lengths().cumsum()]
    assert all(ends[end] == 1 for end in last)


def test_another_seed_or_epoch_is_another_order_and_the_same_one_is_not():
    orders = [
        concepts_of(a_plan(seed=seed, slots=64).rows(Position(epoch)))
        for seed, epoch in [(1, 0), (1, 0), (2, 0), (1, 1), (2, 1)]
    ]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


def test_the_order_is_the_same_on_every_machine_and_in_every_version():
    """A run may be resumed anywhere; whoever changes this order breaks every run under way."""
    shards = [MadeUpShard(f"train-{i:06}.tar", documents=3, seed=i, lengths=range(4, 7)) for i in range(3)]
    plan = Plan(shards, slots=10, group=2, seed=1, predicts_first=True)
    order = [row.spans[["shard", "offset"]].tolist() for row in plan.rows(Position(epoch=1))]
    assert order == [[(1, 0), (1, 9)], [(0, 0), (0, 9)], [(0, 4), (1, 4)], [(2, 9), (2, 0)], [(2, 4)]]


def test_only_one_group_of_shards_is_open_at_a_time_and_its_documents_are_mixed():
    plan = a_plan(shards=6, group=3, slots=64)
    log: list[str] = []
    for shard in plan.shards:
        shard.loads = log
    rows = plan.rows(Position())
    first = next(rows)
    assert len(log) == 3
    mixed = [set(first.spans["shard"].tolist())] + [set(row.spans["shard"].tolist()) for row in islice(rows, 20)]
    assert len(set.union(*mixed)) == 3
    assert sum(len(m) > 1 for m in mixed) > 10
    list(rows)
    assert len(log) == len(set(log)) == 6


def test_long_and_short_documents_lie_anywhere_in_their_group():
    plan = a_plan(shards=2, documents=400, slots=64)
    documents = np.array([len(row.spans) for row in plan.rows(Position())])
    middle = len(documents) // 2
    assert documents[:middle].mean() == pytest.approx(documents[middle:].mean(), rel=0.1)


def test_another_order_is_another_plan(monkeypatch):
    before = a_plan().fingerprint
    monkeypatch.setattr(lcm.plan, "ORDER", lcm.plan.ORDER + 1)
    assert a_plan().fingerprint != before


@pytest.mark.parametrize("predicts_first", [True, False])
def test_targets_are_known_beforehand(predicts_first):
    plan = a_plan(predicts_first=predicts_first)
    for step in an_epoch_of_steps(plan, 8):
        by_hand = 0
        for row in step.rows:
            for count, pos, prompt in row.spans[["count", "pos", "prompt"]].tolist():
                by_hand += sum(i >= prompt and (predicts_first or pos + i > 0) for i in range(count))
        assert step.targets == by_hand == sum(row.targets for row in step.rows)


@pytest.mark.parametrize("rows_per_step", [1, 2, 7, 64, 500])
def test_how_many_rows_a_step_takes_does_not_change_their_order(rows_per_step):
    plan = a_plan()
    steps = an_epoch_of_steps(plan, rows_per_step)
    assert contents(without_filler(steps)) == contents(plan.rows(Position()))
    assert {len(step.rows) for step in steps} == {rows_per_step}


@pytest.mark.parametrize(("world_size", "micro_batches"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2), (4, 2)])
def test_ranks_and_micro_batches_share_the_same_step(world_size, micro_batches):
    for step in an_epoch_of_steps(a_plan(), 8):
        ranks = [step.shares(rank, world_size, micro_batches) for rank in range(world_size)]
        assert {len(shares) for shares in ranks} == {micro_batches}
        assert {len(s.rows) for shares in ranks for s in shares} == {8 // world_size // micro_batches}
        assert {s.targets for shares in ranks for s in shares} == {step.targets}
        dealt = sorted(row.number for shares in ranks for s in shares for row in s.rows)
        assert dealt == [row.number for row in step.rows]
        for micro_batch in zip(*ranks, strict=True):  # what all ranks train together is a run of neighbours
            numbers = sorted(row.number for share in micro_batch for row in share.rows)
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_the_short_last_step_of_an_epoch_is_filled_with_empty_rows():
    plan = a_plan()
    total = len(list(plan.rows(Position())))
    last, following = list(islice(plan.steps(Position(), 7), -(-total // 7) + 1))[-2:]
    filler = [row for row in last.rows if not len(row.spans)]
    assert 0 < len(filler) == -total % 7
    assert all(row.targets == 0 for row in filler)
    assert last.after == Position(epoch=1)
    assert following.rows[0].epoch == 1
    assert following.rows[0].number == 0


@pytest.mark.parametrize("rows_per_step", [1, 3, 8])
def test_training_resumes_at_any_position_with_any_rows_per_step(rows_per_step):
    plan = a_plan(shards=3, documents=6)
    rows = list(plan.rows(Position(epoch=2)))
    for trained, row in enumerate([None, *rows]):
        start = row.after if row else Position(epoch=2)
        assert start.row == trained
        for position in (start, Position(start.epoch, start.row)):  # with the hint, and without
            rest = list(plan.rows(position))
            assert [r.number for r in rest] == list(range(trained, len(rows)))
            assert contents(rest) == contents(rows[trained:])
            if rest:
                assert contents(without_filler(an_epoch_of_steps(plan, rows_per_step, position))) == contents(rest)


def test_the_position_after_a_step_leads_to_the_next_one():
    plan = a_plan()
    steps = list(islice(plan.steps(Position(), 8), 100))
    assert steps[-1].rows[0].epoch > 1
    for step, following in pairwise(steps):
        resumed = next(plan.steps(step.after, 8))
        assert contents(resumed.rows) == contents(following.rows)
        assert resumed.after == following.after


def test_a_hint_spares_the_groups_before_it():
    plan = a_plan(shards=8, group=2)
    middle = list(plan.rows(Position()))[-1].after
    for shard in plan.shards:
        shard.loads.clear()
    list(plan.rows(middle))
    assert sum(len(shard.loads) for shard in plan.shards) == 2


def test_the_first_rows_are_one_step():
    plan = a_plan()
    step = plan.first_rows(10, multiple=8)
    assert contents(step.rows[:10]) == contents(islice(plan.rows(Position()), 10))
    assert [len(row.spans) for row in step.rows[10:]] == [0] * 6
    everything = list(plan.rows(Position()))
    assert plan.first_rows(10**6, multiple=1).targets == sum(row.targets for row in everything)


def test_a_plan_with_another_order_has_another_fingerprint():
    plans = [a_plan(), a_plan(seed=2), a_plan(slots=32), a_plan(group=3), a_plan(shards=4), a_plan(documents=31)]
    assert len({plan.fingerprint for plan in plans}) == len(plans)
    assert a_plan().fingerprint == a_plan(predicts_first=False).fingerprint


HUGE = """
import resource, sys, time
sys.path.insert(0, {folder!r})
import numpy as np
from test_plan import MadeUpShard
from lcm.plan import Plan, Position
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
