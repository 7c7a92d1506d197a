"""The order of training: complete, reproducible, resumable anywhere, and cheap at any size."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise

import numpy as np
import pytest

import lcm.data.order
from lcm.data.order import Plan
from lcm.data.steps import Position, Row, Step


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


@pytest.fixture(autouse=True, params=[1, 128], ids=["a shard each", "some shards"])
def bundle_rows(request, monkeypatch) -> int:
    """Of the small shards here one is a bundle by itself, or all of a group are one."""
    monkeypatch.setattr(lcm.data.order, "BUNDLE_ROWS", request.param)
    return request.param


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


def in_order(plan: Plan, start: Position) -> tuple[list[Row], list[Position]]:
    """The rows of an epoch, and where training stands after each of them."""
    steps = an_epoch_of_steps(plan, 1, start)
    return [step.rows[0] for step in steps], [step.after for step in steps]


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


def test_the_order_is_the_same_on_every_machine_and_in_every_version(bundle_rows):
    """A run may be resumed anywhere; whoever changes this order breaks every run under way."""
    shards = [MadeUpShard(f"train-{i:06}.tar", documents=3, seed=i, lengths=range(4, 7)) for i in range(3)]
    plan = Plan(shards, slots=10, group=2, seed=1, predicts_first=True)
    order = [row.spans[["shard", "offset"]].tolist() for row in plan.rows(Position(epoch=1))]
    assert (
        order
        == {
            1: [[(1, 4)], [(2, 4)], [(2, 9), (2, 0)], [(1, 0), (1, 9)], [(0, 0), (0, 9)], [(0, 4)]],
            128: [[(0, 4)], [(0, 9), (0, 0)], [(2, 0), (2, 9)], [(2, 4), (1, 4)], [(1, 0), (1, 9)]],
        }[bundle_rows]
    )


def test_only_one_group_of_shards_is_read_at_a_time_and_its_documents_are_mixed(bundle_rows):
    """Each index is read twice: its rows are counted, and then packed."""
    plan = a_plan(shards=6, group=3, slots=64)
    log: list[str] = []
    for shard in plan.shards:
        shard.loads = log
    rows = plan.rows(Position())
    first = [set(next(rows).spans["shard"].tolist()) for _ in range(20)]
    assert set(log) == {plan.shards[number].name for number in plan.members(0, 0)}
    assert len(set.union(*first)) == len(set(log)) == 3
    if bundle_rows > 1:
        assert sum(len(shards) > 1 for shards in first) > 10
    else:
        assert sum(one != other for one, other in pairwise(first)) > 10
    list(rows)
    assert Counter(log) == {shard.name: 2 for shard in plan.shards}


def test_long_and_short_documents_lie_anywhere_in_their_group():
    plan = a_plan(shards=2, documents=400, slots=64)
    documents = np.array([len(row.spans) for row in plan.rows(Position())])
    middle = len(documents) // 2
    assert documents[:middle].mean() == pytest.approx(documents[middle:].mean(), rel=0.1)


def test_another_order_is_another_plan(monkeypatch):
    before = a_plan().fingerprint
    monkeypatch.setattr(lcm.data.order, "ORDER", lcm.data.order.ORDER + 1)
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


def test_small_shards_are_packed_together_so_that_few_slots_stay_empty(bundle_rows):
    plan = a_plan(shards=12, documents=20, slots=64, group=6)
    rows = sum(1 for _ in plan.rows(Position()))
    fullest = -(-sum(shard.concepts for shard in plan.shards) // 64)
    assert rows <= 1.02 * fullest if bundle_rows > 1 else rows > 1.02 * fullest


@pytest.mark.parametrize("shards", [1, 7, 16, 23])
@pytest.mark.parametrize("group", [1, 3, 16])
def test_every_shard_is_in_one_group_of_an_epoch_and_no_group_has_too_many(shards, group):
    plan = a_plan(shards=shards, documents=3, group=group)
    for epoch in range(2):
        groups = [plan.members(epoch, number) for number in range(plan.groups)]
        assert sorted(number for members in groups for number in members) == list(range(shards))
        assert max(map(len, groups)) <= group


def test_which_documents_share_a_group_changes_with_every_epoch(bundle_rows):
    plan = a_plan(shards=40, documents=3, group=4)
    groups = [{frozenset(plan.members(epoch, number)) for number in range(plan.groups)} for epoch in range(2)]
    if bundle_rows == 1:
        assert groups[0] != groups[1]
    else:  # a group is a single bundle, always of the same shards: small ones, from anywhere in the list
        assert groups[0] == groups[1]
        assert any(max(group) - min(group) > 10 for group in groups[0])


@pytest.mark.parametrize(("world_size", "micro_batches"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2), (4, 2)])
def test_ranks_and_micro_batches_share_the_same_step(world_size, micro_batches):
    for step in an_epoch_of_steps(a_plan(), 8):
        ranks = [step.shares(rank, world_size, micro_batches) for rank in range(world_size)]
        assert {len(shares) for shares in ranks} == {micro_batches}
        assert {len(s.rows) for shares in ranks for s in shares} == {8 // world_size // micro_batches}
        assert {s.targets for shares in ranks for s in shares} == {step.targets}
        dealt = sorted(row.number for shares in ranks for s in shares for row in s.rows)
        assert dealt == sorted(row.number for row in step.rows)
        numbers = [[row.number for share in shares for row in share.rows] for shares in ranks]
        assert [n for mine in numbers for n in mine] == dealt, "the rows of a bundle are neighbours"


def test_the_short_last_step_of_an_epoch_is_filled_with_empty_rows():
    plan = a_plan()
    total = len(list(plan.rows(Position())))
    last, following = list(islice(plan.steps(Position(), 7), -(-total // 7) + 1))[-2:]
    filler = [row for row in last.rows if not len(row.spans)]
    assert 0 < len(filler) == -total % 7
    assert all(row.targets == 0 for row in filler)
    assert last.after == Position(epoch=1)
    assert contents(following.rows) == contents(islice(plan.rows(Position(epoch=1)), 7))


@pytest.mark.parametrize("rows_per_step", [1, 3, 8])
def test_training_resumes_at_any_position_with_any_rows_per_step(rows_per_step):
    plan = a_plan(shards=3, documents=6)
    rows, after = in_order(plan, Position(epoch=2))
    assert contents(rows) == contents(plan.rows(Position(epoch=2)))
    assert after[-1] == Position(2, len(rows), plan.groups - 1, after[-1].group_row)
    for trained, start in enumerate([Position(epoch=2), *after]):
        assert start.row == trained
        for position in (start, Position(start.epoch, start.row)):  # with the hint, and without
            rest = list(plan.rows(position))
            assert [r.number for r in rest] == [r.number for r in rows[trained:]]
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
    middle = in_order(plan, Position())[1][-1]
    resumed = a_plan(shards=8, group=2)
    list(resumed.rows(middle))
    assert [n for n, shard in enumerate(resumed.shards) if shard.loads] == sorted(resumed.members(0, 3))


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
