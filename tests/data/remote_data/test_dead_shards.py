"""With data.skip_dead, shards that cannot be fetched leave empty slots, and nothing else changes."""

from itertools import islice, pairwise

import pytest
from made_up_data import a_config
from reading import as_rows, in_shard, numbers_of, opened, trained
from serving import ALWAYS

import lcm.data.order
from lcm.data.order import Position
from lcm.errors import UserError


@pytest.fixture(autouse=True, params=[1, 128], ids=["a shard each", "two shards"])
def bundle_rows(request, monkeypatch):
    """Each shard is a bundle, or both shards of a group are one."""
    monkeypatch.setattr(lcm.data.order, "BUNDLE_ROWS", request.param)


def test_slots_of_dead_shards_are_empty_and_nothing_else_moves(config, server, folder, capsys):
    """Row by row: the same documents at the same places, empty slots for the others, and targets without them."""
    settings = {"data__rows": 4, "trainer__max_steps": 10}
    data = opened(config(data__skip_dead=True, **settings))
    dead = [data.order.shards_of(0, group)[0] for group in (0, 1)]
    for number, status in zip(dead, (404, 403), strict=True):
        server.fails(f"train-{number:06}.tar", status, times=ALWAYS)
    found, whole = trained(data), trained(opened(a_config(folder, **settings)))
    gone = in_shard(dead[0]) | in_shard(dead[1])
    assert len(found) == len(whole) == 10
    for one, other in zip(found, whole, strict=True):
        blanked = sum((other.emb[..., 1] == number) & (other.emb[..., 3] == 1) for number in gone) > 0
        blanked = of_the_same_documents(blanked, other.doc)
        assert one.row.tolist() == other.row.tolist()
        for name, empty in (("emb", 0), ("doc", -1), ("pos", 0), ("is_target", False)):
            expected = getattr(other, name).clone()
            expected[blanked] = empty
            assert getattr(one, name).tolist() == expected.tolist(), name
        assert int(one.step_targets) == int(one.targets(True).sum())
    assert set(numbers_of(found)) == set(range(60)) - gone
    told = capsys.readouterr().err
    assert told.count("skipped (data.skip_dead=true)") == 2
    assert f"train-{dead[0]:06}.tar: not found (tried once)" in told
    assert "2 of 6 shards by now" in told
    assert data.position.epoch == 1
    assert data.metrics() == {"data/dead_shards": 2 + len(set(dead) & set(data.order.shards_of(1, 0)))}


def of_the_same_documents(slots, doc):
    """All slots of the documents that these slots belong to."""
    whole = slots.clone()
    for r in range(len(doc)):
        for number in doc[r][slots[r]].unique():
            whole[r] |= doc[r] == number
    return whole


@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize("steps", [3, 12, 20])
def test_a_position_saved_while_a_shard_was_dead_holds_when_it_is_back(steps, group, config, server, folder):
    """Documents by their numbers: nothing twice, and of the dead shard what comes after the position."""
    whole = opened(a_config(folder, data__rows=1))
    rows = len(whole.order)
    order = [numbers_of([batch]) for batch in trained(whole, rows)]
    (dead, *_) = whole.order.shards_of(0, group)
    server.fails(f"train-{dead:06}.tar", 404, times=ALWAYS)
    first = opened(config(data__rows=1, data__skip_dead=True))
    before = numbers_of(trained(first, steps))
    server.fails(f"train-{dead:06}.tar")
    resumed = opened(config(data__rows=1, data__skip_dead=True))
    resumed.load_state_dict(first.state_dict())
    done = first.position.row
    after = numbers_of(list(islice(resumed.train_dataloader(), rows - done)))
    assert before == [number for row in order[:done] for number in row if number not in in_shard(dead)]
    assert after == [number for row in order[done:] for number in row]
    assert len(set(before + after)) == len(before + after)


def test_a_dead_group_makes_no_steps(config, server, folder):
    """Empty steps would only let the optimizer drift."""
    data = opened(config(data__rows=1, data__skip_dead=True))
    for number in data.order.shards_of(0, 1):
        server.fails(f"train-{number:06}.tar", 404, times=ALWAYS)
    batches = []
    for batch in data.train_dataloader():
        data.advance()
        if data.position.epoch or not (batch.doc >= 0).any():
            break
        batches.append(batch)
    assert data.position.epoch == 1
    gone = set().union(*(in_shard(n) for n in data.order.shards_of(0, 1)))
    assert set(range(60)) - set(numbers_of(batches)) - set(numbers_of([batch])) == gone


def test_two_dead_groups_in_a_row_end_the_run(config, server):
    data = opened(config(data__rows=1, data__skip_dead=True))
    for group in (1, 2):
        for number in data.order.shards_of(0, group):
            server.fails(f"train-{number:06}.tar", 404, times=ALWAYS)
    with pytest.raises(UserError, match=r"not found .*; no shard of two groups in a row could be fetched"):
        trained(data)


def test_a_failed_prefetch_is_retried_when_the_group_begins(config, server, folder):
    data = opened(config(data__rows=1, data__retries=0))
    later = data.order.shards_of(0, 1)
    for number in later:
        server.fails(f"train-{number:06}.tar", 503)
    rows = len(data.order)
    assert as_rows(trained(data, rows)) == as_rows(trained(opened(a_config(folder, data__rows=1)), rows))


def test_validation_skips_dead_shards_too(config, server):
    server.fails("validation-000001.tar", 404, times=ALWAYS)
    data = opened(config(data__skip_dead=True, trainer__validation_rows=1000))
    batches = list(data.val_dataloader())
    assert set(numbers_of(batches)) == set(range(60, 85)) - set(range(70, 80))
    assert {int(b.step_targets) for b in batches} == {sum(int(b.targets(True).sum()) for b in batches)}


def test_the_end_of_text_comes_from_a_shard_that_can_be_fetched(config, server, folder):
    server.fails("train-000000.tar", 404, times=ALWAYS)
    with pytest.raises(UserError, match=r"train-000000\.tar: not found"):
        _ = opened(config()).end_of_text
    assert opened(config(data__skip_dead=True)).end_of_text.tolist() == opened(a_config(folder)).end_of_text.tolist()


def test_dead_shards_move_no_position(config, server):
    """Step after step."""
    server.fails("train-000002.tar", 404, times=ALWAYS)
    dead = opened(config(data__rows=3, data__skip_dead=True))
    positions = []
    for _ in islice(dead.train_dataloader(), 12):
        dead.advance()
        positions.append(dead.position)
    epochs = [p for p, q in pairwise(positions) if q.epoch > p.epoch]
    assert all((q.row - p.row) % 3 == 0 for p, q in pairwise(positions) if p.epoch == q.epoch)
    assert positions[0] == Position(0, 3)
    assert len(epochs) <= 2
