"""Data behind a URL: the batches of the same folder here, whatever happens to the network and to the cache."""

import json
import os
import threading
from itertools import islice, pairwise
from pathlib import Path

import pytest
from made_up_data import a_config, documents_in, some_documents, write_data
from reading import DOCUMENTS, as_rows, opened, rows_of, trained
from serving import ALWAYS, quick_waits, served

from lcm.config import Config
from lcm.data import ConceptData
from lcm.errors import UserError
from lcm.manifest import open_dataset
from lcm.plan import Position


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    there = tmp_path_factory.mktemp("there")
    return write_data(there / "data", DOCUMENTS, validation=some_documents(25, seed=1))


@pytest.fixture
def server(folder):
    with served(folder.parent) as server:
        yield server


@pytest.fixture
def config(server, tmp_path):
    """Of a run on the server's data: two shards a group, one document a row or more."""

    def make(**settings) -> Config:
        return a_config(f"{server.url}/data", **{"data__cache": str(tmp_path / "cache"), **settings})

    return make


def numbers_of(batches) -> list[int]:
    """Of the documents, in the order of training; none of them is cut."""
    return [number for batch in batches for _, number, _, _ in documents_in(batch)]


def in_shard(number: int) -> set[int]:
    """The documents of a shard of `DOCUMENTS`."""
    return set(range(10 * number, 10 * number + 10))


# ---- the same as here ----


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_local_folder_for_whole_epochs(workers, folder, config):
    there = opened(config(data__workers=workers, data__rows=1))
    here = opened(a_config(folder, data__workers=workers, data__rows=1))
    micro_batches = 2 * rows_of(here) + 5
    assert as_rows(trained(there, micro_batches)) == as_rows(trained(here, micro_batches))
    assert there.state_dict() == here.state_dict()
    assert as_rows(list(there.val_dataloader())) == as_rows(list(here.val_dataloader()))
    assert there.end_of_text.tolist() == here.end_of_text.tolist()
    assert there.codec == here.codec


@pytest.mark.parametrize("steps", [1, 7, 13])
def test_a_run_resumes_with_the_same_batches_here_and_there(steps, folder, config):
    straight = trained(opened(a_config(folder)), 30)
    first = opened(config())
    trained(first, steps)
    resumed = opened(config(data__workers=2))
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert as_rows(trained(resumed, 30 - steps)) == as_rows(straight[steps:])


def test_folders_here_and_elsewhere_are_mixed(tmp_path, folder, server):
    other = write_data(folder.parent / "other", some_documents(20, seed=5), mark=3)
    settings = {"data__rows": 1, "data__group": 16, "data__cache": str(tmp_path / "cache")}
    here = opened(a_config(folder, other, **settings))
    mixed = opened(a_config(folder, f"{server.url}/other", **settings))
    micro_batches = rows_of(here) + 3
    assert as_rows(trained(mixed, micro_batches)) == as_rows(trained(here, micro_batches))
    assert sorted(server.shards_asked()) == ["train-000000.tar", "train-000001.tar"]


def test_setting_up_and_counting_an_epoch_fetch_no_shard(config, server):
    data = opened(config())
    assert rows_of(data) > 0
    assert server.shards_asked() == []
    assert len(server.asked) == 1 + 6 + 3, "the manifest and the indexes"
    opened(config())
    assert len(server.asked) == 11, "another process of this machine needs the manifest alone"


def test_a_folder_here_makes_no_cache_and_no_thread(folder, tmp_path):
    threads = threading.active_count()
    trained(opened(a_config(folder, data__cache=str(tmp_path / "cache"))), 10)
    assert not (tmp_path / "cache").exists()
    assert threading.active_count() == threads


# ---- ahead of training, and within bounds ----


def joined(data: ConceptData) -> None:
    """Until the group after the one that is trained is here."""
    data._groups._ahead.wait()


def test_the_next_group_is_fetched_while_one_is_trained(config, server):
    data = opened(config(data__rows=1))
    batches = iter(data.train_dataloader())
    next(batches)
    joined(data)
    first, second = data.plan.members(0, 0), data.plan.members(0, 1)
    assert set(server.shards_asked()) == {f"train-{n:06}.tar" for n in (*first, *second)}
    assert len(server.shards_asked()) == 4


def least_gb(folder: Path) -> float:
    """What two groups of two shards to train on and one to validate on may take."""
    sizes = {
        split: sorted((s.bytes for s in open_dataset(folder).shards(split)), reverse=True)
        for split in ("train", "validation")
    }
    return (sum(sizes["train"][:4]) + sum(sizes["validation"][:2])) / 1e9


@pytest.mark.parametrize("workers", [0, 2])
def test_the_bound_holds_for_a_whole_epoch_in_the_smallest_cache_that_is_allowed(workers, folder, config, tmp_path):
    cache_gb = least_gb(folder)
    settings = {"data__rows": 1, "data__workers": workers}
    data = opened(config(data__cache_gb=cache_gb, **settings))
    here = opened(a_config(folder, **settings))
    micro_batches, found, most, over = 3 * rows_of(here), [], 0, threading.Event()

    def look():
        nonlocal most
        while not over.is_set():
            most = max(most, on_disk(tmp_path / "cache"))

    looking = threading.Thread(target=look)
    looking.start()
    found = trained(data, micro_batches)
    over.set()
    looking.join()
    assert as_rows(found) == as_rows(trained(here, micro_batches))
    assert 0 < most <= cache_gb * 1e9
    assert files_open(tmp_path / "cache") <= 2 * 2, "of the newest group, or of two where a batch has rows of both"


def on_disk(cache: Path) -> int:
    """Bytes of the shards in the folder, those on their way included; some go away while they are counted."""
    total = 0
    for path in [*cache.glob("*.tar"), *cache.glob("*.part")]:
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def files_open(cache: Path) -> int:
    return sum(os.readlink(f"/proc/self/fd/{n}").startswith(str(cache)) for n in open_descriptors())


def open_descriptors() -> list[str]:
    return [name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")]


def test_a_cache_that_is_too_small_is_refused_before_training(folder, config, server):
    with pytest.raises(
        UserError, match=r"^data\.cache_gb=1e-05: two groups of 2 shards .* take up to ([\d.]+) GB; set"
    ):
        opened(config(data__cache_gb=1e-5))
    assert server.asked == ["manifest.json"]
    with pytest.raises(UserError, match=r"^data\.group=401: at most 400 for data behind a URL"):
        opened(config(data__group=401))


# ---- what cannot be had ----


def test_no_data_set_behind_a_url_is_told_in_one_line(server, config, tmp_path):
    for name, told in {
        "nothing": r"/nothing/manifest\.json: not found \(tried once\); expected the URL of a folder written by lcm",
        "data": r"/data/manifest\.json: 503 Service Unavailable \(tried 6 times\)",
    }.items():
        server.fails("manifest.json", 503 if name == "data" else 404, times=ALWAYS)
        with quick_waits(), pytest.raises(UserError, match=told) as raised:
            opened(a_config(f"{server.url}/{name}"))
        assert "\n" not in str(raised.value)


def test_a_dead_shard_ends_the_run_when_its_turn_comes_and_says_the_way_out(config, server):
    server.fails("train-000004.tar", 503, times=ALWAYS)
    data = opened(config(data__rows=1, data__retries=1))
    found = []
    with quick_waits(), pytest.raises(UserError) as raised:
        found.extend(data.train_dataloader())
    told = str(raised.value)
    assert told.startswith(f"{server.url}/data/train-000004.tar: 503 Service Unavailable (tried 2 times); ")
    assert "data.skip_dead=true" in told
    assert "\n" not in told
    groups = [data.plan.members(0, group) for group in range(3)]
    before = next(i for i, group in enumerate(groups) if 4 in group)
    assert set(numbers_of(found)) == set().union(*(in_shard(n) for group in groups[:before] for n in group))


def test_an_index_that_cannot_be_had_ends_the_run_even_where_dead_shards_may(config, server):
    server.fails("train-000004.index.npy", 503, times=ALWAYS)
    told = r"train-000004\.index\.npy: 503 .*; without every index the rows are not known"
    with quick_waits(), pytest.raises(UserError, match=told):
        opened(config(data__skip_dead=True))


def test_wrong_bytes_are_fetched_again_and_then_named(config, server, folder):
    for number in range(6):
        server.fails(f"train-{number:06}.tar", "wrong")
    with quick_waits():
        found = trained(opened(config()), 30)
    assert as_rows(found) == as_rows(trained(opened(a_config(folder)), 30))
    server.fails("validation-000000.tar", "wrong", times=ALWAYS)
    with quick_waits(), pytest.raises(UserError, match=r"validation-000000\.tar: other bytes .* \(tried 6 times\)"):
        opened(config()).val_dataloader()


# ---- dead shards are left out ----


def test_dead_shards_are_blanked_and_nothing_else_moves(config, server, folder, capsys):
    """Row by row: the same documents at the same places, empty slots for the others, and targets without them."""
    server.fails("train-000001.tar", 404, times=ALWAYS)
    server.fails("train-000004.tar", 403, times=ALWAYS)
    settings = {"data__rows": 4, "trainer__max_steps": 10}
    data = opened(config(data__skip_dead=True, **settings))
    found, whole = trained(data), trained(opened(a_config(folder, **settings)))
    gone = in_shard(1) | in_shard(4)
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
    assert told.count("left out (data.skip_dead=true)") == 2
    assert "train-000001.tar: not found (tried once)" in told
    assert "2 of 6 shards by now" in told
    assert data.position.epoch == 1
    assert data.dead_shards == 2 + len({1, 4} & set(data.plan.members(1, 0)))


def of_the_same_documents(slots, doc):
    """All slots of the documents of which one is among these."""
    whole = slots.clone()
    for r in range(len(doc)):
        for number in doc[r][slots[r]].unique():
            whole[r] |= doc[r] == number
    return whole


def test_a_position_saved_while_a_shard_was_dead_goes_on_when_it_is_back(config, server):
    """By the numbers of the documents: nothing twice, and of the dead shard what came after."""
    whole = opened(config(data__rows=1))
    rows = rows_of(whole)
    order = [numbers_of([batch]) for batch in trained(whole, rows)]
    for steps in (3, rows // 2, rows - 4):
        (dead, *_) = whole.plan.members(0, 0)
        os.remove(whole._to_train[dead].path)
        server.fails(f"train-{dead:06}.tar", 404, times=ALWAYS)
        first = opened(config(data__rows=1, data__skip_dead=True))
        before = numbers_of(trained(first, steps))
        server.fails(f"train-{dead:06}.tar")
        resumed = opened(config(data__rows=1, data__skip_dead=True))
        resumed.load_state_dict(first.state_dict())
        after = numbers_of(list(islice(resumed.train_dataloader(), rows - first.position.row)))
        trained_rows = first.position.row
        assert before == [n for row in order[:trained_rows] for n in row if n not in in_shard(dead)]
        assert after == [n for row in order[trained_rows:] for n in row]
        assert len(set(before + after)) == len(before + after)


def test_a_whole_group_that_is_dead_makes_no_steps(config, server, folder):
    """It would only let the optimizer drift."""
    data = opened(config(data__rows=1, data__skip_dead=True))
    for number in data.plan.members(0, 1):
        server.fails(f"train-{number:06}.tar", 404, times=ALWAYS)
    batches = []
    for batch in data.train_dataloader():
        data.advance()
        if data.position.epoch or not (batch.doc >= 0).any():
            break
        batches.append(batch)
    assert data.position.epoch == 1
    gone = set().union(*(in_shard(n) for n in data.plan.members(0, 1)))
    assert set(range(60)) - set(numbers_of(batches)) - set(numbers_of([batch])) == gone


def test_where_two_whole_groups_are_dead_it_is_no_shard_that_is_dead(config, server):
    data = opened(config(data__rows=1, data__skip_dead=True))
    for group in (1, 2):
        for number in data.plan.members(0, group):
            server.fails(f"train-{number:06}.tar", 404, times=ALWAYS)
    with pytest.raises(UserError, match=r"not found .*; no shard of two groups in a row could be fetched"):
        trained(data)


def test_a_shard_that_is_dead_ahead_of_its_turn_gets_another_chance(config, server, folder):
    data = opened(config(data__rows=1, data__retries=0))
    later = data.plan.members(0, 1)
    for number in later:
        server.fails(f"train-{number:06}.tar", 503)
    rows = rows_of(data)
    assert as_rows(trained(data, rows)) == as_rows(trained(opened(a_config(folder, data__rows=1)), rows))


def test_validation_leaves_dead_shards_out_too(config, server):
    server.fails("validation-000001.tar", 404, times=ALWAYS)
    data = opened(config(data__skip_dead=True, trainer__validation_rows=1000))
    batches = list(data.val_dataloader())
    assert set(numbers_of(batches)) == set(range(60, 85)) - set(range(70, 80))
    assert {int(b.step_targets) for b in batches} == {sum(int(b.targets(True).sum()) for b in batches)}


def test_the_end_of_text_is_taken_from_a_shard_that_can_be_had(config, server, folder):
    server.fails("train-000000.tar", 404, times=ALWAYS)
    with pytest.raises(UserError, match=r"train-000000\.tar: not found"):
        _ = opened(config()).end_of_text
    assert opened(config(data__skip_dead=True)).end_of_text.tolist() == opened(a_config(folder)).end_of_text.tolist()


def test_positions_are_those_of_whole_data(config, server):
    """Step after step: what is left out moves no position."""
    server.fails("train-000002.tar", 404, times=ALWAYS)
    dead = opened(config(data__rows=3, data__skip_dead=True))
    positions = []
    for _ in islice(dead.train_dataloader(), 12):
        dead.advance()
        positions.append(dead.position)
    epochs = [p for p, q in pairwise(positions) if q.epoch > p.epoch]
    assert all((q.row - p.row) % 3 == 0 for p, q in pairwise(positions) if p.epoch == q.epoch)
    assert positions[0] == Position(0, 3, 0, 0)
    assert len(epochs) <= 2
