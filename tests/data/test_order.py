"""The order of training: complete, reproducible, resumable anywhere, and cheap at any size."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

import lcm.data.order
from lcm.data.manifest import ShardRecord
from lcm.data.order import Position, RowOrder, Step
from lcm.data.packing import Row
from lcm.data.shards import Shard


@dataclass(frozen=True)
class MadeUpShard(Shard):
    """A shard that never touches a disk, and remembers how often its index was read."""

    index: np.ndarray
    loads: list[str] = field(default_factory=list)

    def load(self) -> np.ndarray:
        self.loads.append(self.record.name)
        return self.index


def made_up(number: int, lengths: Sequence[int] | np.ndarray) -> MadeUpShard:
    """Documents of these lengths, one byte a concept; every third one is a pair."""
    lengths = np.array(lengths)
    source = np.where(np.arange(len(lengths)) % 3 == 0, lengths // 2, 0)
    index = np.stack([lengths.cumsum() - lengths, lengths, source], axis=1)
    record = ShardRecord(
        name=f"train-{number:06}.tar", documents=len(lengths), pairs=0, concepts=int(lengths.sum()), bytes=0, sha256=""
    )
    return MadeUpShard(Path(), record, index)


def random_lengths(documents: int, longest: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, longest + 1, documents)


@pytest.fixture(autouse=True, params=[1, 128], ids=["a shard each", "some shards"])
def bundle_rows(request, monkeypatch) -> int:
    """Each of the small shards here is a bundle, or all of a group are one."""
    monkeypatch.setattr(lcm.data.order, "BUNDLE_ROWS", request.param)
    return request.param


def an_order(shards: int = 5, documents: int = 30, slots: int = 16, seed: int = 1, group: int = 2, **options):
    options = {"predicts_first": True, "longest": 40} | options
    longest = options.pop("longest")
    data = [made_up(i, random_lengths(documents + i, longest, seed=i)) for i in range(shards)]
    return RowOrder(data, slots=slots, group=group, seed=seed, **options)


def concepts_of(rows: Iterable[Row]) -> list[tuple[int, int]]:
    """(shard, number of the concept in the shard), in this order."""
    return [
        (shard, offset + first + i)
        for row in rows
        for shard, offset, first, count in row.spans[["shard", "offset", "first", "count"]].tolist()
        for i in range(count)
    ]


def contents(rows: Iterable[Row]) -> list[list[tuple]]:
    return [row.spans.tolist() for row in rows]


def rows_of(order: RowOrder, *steps: Step) -> list[Row]:
    return [row for step in steps for row in order.rows(step.epoch, step.rows)]


def epoch_steps(order: RowOrder, rows: int, start: Position | None = None) -> list[Step]:
    """The steps from a position to the end of its epoch."""
    start = start or Position()
    steps = []
    for step in order.steps(start, rows):
        if step.epoch > start.epoch:
            return steps
        steps.append(step)
    raise AssertionError("there is always another epoch")


def epoch_rows(order: RowOrder, start: Position | None = None) -> list[Row]:
    """The rows from a position to the end of its epoch, in the order in which they are trained."""
    return rows_of(order, *epoch_steps(order, 1, start))


@pytest.mark.parametrize("seed", [0, 1, 2**40])
@pytest.mark.parametrize(("slots", "group"), [(2, 1), (16, 2), (64, 3), (2048, 16)])
def test_every_concept_exactly_once_an_epoch(seed, slots, group):
    """Pairs that fit and continuations of any length: only a shortened prompt would lose concepts."""
    order = an_order(seed=seed, slots=slots, group=group)
    trained = concepts_of(epoch_rows(order, Position(epoch=3)))
    everything = {(number, i) for number, shard in enumerate(order.shards) for i in range(shard.record.concepts)}
    assert len(trained) == len(set(trained))
    assert set(trained) <= everything
    if slots >= 64:
        assert set(trained) == everything


def test_every_document_exactly_once_an_epoch_even_where_prompts_are_shortened():
    order = an_order(slots=16)
    ends = Counter()
    for row in epoch_rows(order):
        for shard, offset, first, count in row.spans[["shard", "offset", "first", "count"]].tolist():
            ends[shard, offset + first + count] += 1
    last = [(n, int(end)) for n, shard in enumerate(order.shards) for end in shard.index[:, :2].sum(axis=1)]
    assert all(ends[end] == 1 for end in last)


def test_another_seed_or_epoch_is_another_order_and_the_same_one_is_not():
    orders = [
        concepts_of(epoch_rows(an_order(seed=seed, slots=64), Position(epoch)))
        for seed, epoch in [(1, 0), (1, 0), (2, 0), (1, 1), (2, 1)]
    ]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


def test_the_order_is_the_same_on_every_machine_and_in_every_version(bundle_rows):
    """A run may be resumed anywhere; whoever changes this order breaks every run under way."""
    order = RowOrder([made_up(i, range(4, 7)) for i in range(3)], slots=10, group=2, seed=1, predicts_first=True)
    found = [row.spans[["shard", "offset"]].tolist() for row in epoch_rows(order, Position(epoch=1))]
    assert (
        found
        == {
            1: [[(1, 4)], [(2, 4)], [(2, 9), (2, 0)], [(1, 0), (1, 9)], [(0, 0), (0, 9)], [(0, 4)]],
            128: [[(0, 4)], [(0, 9), (0, 0)], [(2, 0), (2, 9)], [(2, 4), (1, 4)], [(1, 0), (1, 9)]],
        }[bundle_rows]
    )
    assert order.fingerprint == 545997772970316305


def test_a_row_and_its_seed_do_not_depend_on_when_it_is_read():
    """Rows are numbered bundle after bundle, not in the order of training."""
    order = an_order()
    numbered = {row.number: row for row in order.rows(2, np.arange(len(order)))}
    trained = epoch_rows(order, Position(epoch=2))
    assert sorted(row.number for row in trained) == list(range(len(order)))
    assert [row.number for row in trained] != list(range(len(order)))
    assert all(contents([row]) == contents([numbered[row.number]]) for row in trained)


def test_only_one_group_of_shards_is_read_at_a_time_and_its_documents_are_mixed(bundle_rows):
    """Once all rows are counted, each index is read once more: when its documents are packed."""
    order = an_order(shards=6, group=3, slots=64)
    log = loads_from_now_on(order)
    steps = epoch_steps(order, 1)
    first = [set(rows_of(order, step)[0].spans["shard"].tolist()) for step in steps[:20]]
    assert set(log) == {order.shards[number].record.name for number in order.shards_of(0, 0)}
    assert len(set.union(*first)) == len(set(log)) == 3
    if bundle_rows > 1:
        assert sum(len(shards) > 1 for shards in first) > 10
    else:
        assert sum(one != other for one, other in pairwise(first)) > 10
    rows_of(order, *steps[20:])
    assert Counter(log) == {shard.record.name: 1 for shard in order.shards}


def loads_from_now_on(order: RowOrder) -> list[str]:
    """The names of the shards whose indexes are read after the rows are counted."""
    assert len(order)
    log: list[str] = []
    order.shards = [MadeUpShard(shard.folder, shard.record, shard.index, log) for shard in order.shards]
    return log


def test_long_and_short_documents_lie_anywhere_in_their_group():
    order = an_order(shards=2, documents=400, slots=64)
    documents = np.array([len(row.spans) for row in epoch_rows(order)])
    middle = len(documents) // 2
    assert documents[:middle].mean() == pytest.approx(documents[middle:].mean(), rel=0.1)


def test_another_version_of_the_order_has_another_fingerprint(monkeypatch):
    before = an_order().fingerprint
    monkeypatch.setattr(lcm.data.order, "VERSION", lcm.data.order.VERSION + 1)
    assert an_order().fingerprint != before


@pytest.mark.parametrize("predicts_first", [True, False])
def test_targets_are_known_beforehand(predicts_first):
    order = an_order(predicts_first=predicts_first)
    for row in epoch_rows(order):
        by_hand = 0
        for count, pos, prompt in row.spans[["count", "pos", "prompt"]].tolist():
            by_hand += sum(i >= prompt and (predicts_first or pos + i > 0) for i in range(count))
        assert row.targets == by_hand


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 500])
def test_the_size_of_a_step_does_not_change_the_order_of_the_rows(rows):
    order = an_order()
    trained = [row.number for row in epoch_rows(order)]
    for step in epoch_steps(order, rows):
        expected, trained = trained[:rows], trained[rows:]
        assert step.rows.tolist() == [*sorted(expected), *range(len(order), len(order) + rows - len(expected))]
    assert not trained


def test_small_shards_are_packed_together_so_that_few_slots_stay_empty(bundle_rows):
    order = an_order(shards=12, documents=20, slots=64, group=6)
    fullest = -(-sum(shard.record.concepts for shard in order.shards) // 64)
    assert len(order) <= 1.02 * fullest if bundle_rows > 1 else len(order) > 1.02 * fullest


@pytest.mark.parametrize("shards", [1, 7, 16, 23])
@pytest.mark.parametrize("group", [1, 3, 16])
def test_every_shard_is_in_one_group_of_an_epoch_and_no_group_has_too_many(shards, group):
    order = an_order(shards=shards, documents=3, group=group)
    for epoch in range(2):
        groups = [order.shards_of(epoch, number) for number in range(order.groups)]
        assert sorted(number for shards in groups for number in shards) == list(range(shards))
        assert max(map(len, groups)) <= group


@pytest.mark.parametrize("rows", [3, 40])
def test_a_step_knows_the_groups_that_its_rows_come_from(rows):
    order = an_order(shards=8)
    for step in epoch_steps(order, rows):
        shards = {shard for shard, _ in concepts_of(rows_of(order, step))}
        groups = [set(order.shards_of(0, group)) for group in step.groups]
        assert shards <= set().union(*groups)
        assert all(shards & group for group in groups)


def test_which_documents_share_a_group_changes_with_every_epoch(bundle_rows):
    order = an_order(shards=40, documents=3, group=4)
    groups = [{frozenset(order.shards_of(epoch, number)) for number in range(order.groups)} for epoch in range(2)]
    if bundle_rows == 1:
        assert groups[0] != groups[1]
    else:  # a group is a single bundle, always of the same shards: small ones, from anywhere in the list
        assert groups[0] == groups[1]
        assert any(max(group) - min(group) > 10 for group in groups[0])


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_share_the_rows_of_a_step_and_each_has_neighbors(world_size):
    for step in epoch_steps(an_order(), 8):
        shares = [step.share(rank, world_size).tolist() for rank in range(world_size)]
        assert {len(share) for share in shares} == {8 // world_size}
        assert [number for share in shares for number in share] == sorted(step.rows.tolist())


def test_the_short_last_step_of_an_epoch_is_filled_with_empty_rows():
    order = an_order()
    *_, last, following = islice(order.steps(Position(), 7), -(-len(order) // 7) + 1)
    filler = [row for row in rows_of(order, last) if not len(row.spans)]
    assert 0 < len(filler) == -len(order) % 7
    assert all(row.targets == 0 for row in filler)
    assert last.after == Position(epoch=1)
    assert following.epoch == 1
    assert following.rows.tolist() == sorted(row.number for row in epoch_rows(order, Position(epoch=1))[:7])


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_training_resumes_at_any_position_with_any_rows_per_step(rows):
    order = an_order(shards=3, documents=6)
    trained = [row.number for row in epoch_rows(order, Position(epoch=2))]
    for row in range(len(order)):
        resumed = epoch_steps(order, rows, Position(2, row))
        found = [number for step in resumed for number in step.rows.tolist() if number < len(order)]
        assert sorted(found) == sorted(trained[row:])
        assert resumed[0].rows.tolist()[: len(trained[row:][:rows])] == sorted(trained[row:][:rows])


def test_the_position_after_a_step_leads_to_the_next_one():
    order = an_order()
    steps = list(islice(order.steps(Position(), 8), 100))
    assert steps[-1].epoch > 1
    for step, following in pairwise(steps):
        resumed = next(order.steps(step.after, 8))
        assert (resumed.epoch, resumed.rows.tolist()) == (following.epoch, following.rows.tolist())
        assert (resumed.groups, resumed.after) == (following.groups, following.after)


def test_a_step_takes_what_is_left_of_an_epoch():
    order = an_order()
    step = order.step(Position(), 10, multiple=8)
    assert step.rows[:10].tolist() == sorted(row.number for row in epoch_rows(order)[:10])
    assert [len(row.spans) for row in rows_of(order, step)[10:]] == [0] * 6
    everything = order.step(Position(), 10**6, multiple=1)
    assert everything.rows.tolist() == list(range(len(order)))
    assert everything.groups == range(order.groups)


def test_an_order_of_other_rows_has_another_fingerprint():
    orders = [an_order(), an_order(seed=2), an_order(slots=32), an_order(group=3), an_order(shards=4)]
    orders.append(an_order(documents=31))
    assert len({order.fingerprint for order in orders}) == len(orders)
    assert an_order().fingerprint == an_order(predicts_first=False).fingerprint
