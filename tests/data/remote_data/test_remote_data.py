"""Data behind a URL gives the batches of the local folder, whatever happens to the network and to the cache."""

import json
import os
import threading
from pathlib import Path

import pytest
from made_up_data import a_config, some_documents, write_data
from reading import as_rows, in_shard, numbers_of, opened, trained
from serving import ALWAYS, quick_waits

from lcm.data.datamodule import ConceptData
from lcm.data.manifest import open_dataset
from lcm.errors import UserError

# ---- the same as local data ----


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_local_folder_for_whole_epochs(workers, folder, config):
    there = opened(config(data__workers=workers, data__rows=1))
    here = opened(a_config(folder, data__workers=workers, data__rows=1))
    micro_batches = 2 * len(here.order) + 5
    assert as_rows(trained(there, micro_batches)) == as_rows(trained(here, micro_batches))
    assert there.state_dict() == here.state_dict()
    assert as_rows(list(there.val_dataloader())) == as_rows(list(here.val_dataloader()))
    assert there.end_of_text.tolist() == here.end_of_text.tolist()
    assert there.prepared.codec == here.prepared.codec


@pytest.mark.parametrize("steps", [1, 7, 13])
def test_a_run_resumes_with_the_same_batches_from_local_and_remote_data(steps, folder, config):
    straight = trained(opened(a_config(folder)), 30)
    first = opened(config())
    trained(first, steps)
    resumed = opened(config(data__workers=2))
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert as_rows(trained(resumed, 30 - steps)) == as_rows(straight[steps:])


def test_local_and_remote_folders_mix(tmp_path, folder, server):
    other = write_data(folder.parent / "other", some_documents(20, seed=5), mark=3)
    settings = {"data__rows": 1, "data__group": 16, "data__cache": str(tmp_path / "cache")}
    here = opened(a_config(folder, other, **settings))
    mixed = opened(a_config(folder, f"{server.url}/other", **settings))
    micro_batches = len(here.order) + 3
    assert as_rows(trained(mixed, micro_batches)) == as_rows(trained(here, micro_batches))
    assert sorted(server.requested_shards()) == ["train-000000.tar", "train-000001.tar"]


def test_setting_up_and_counting_an_epoch_fetch_no_shard(config, server):
    data = opened(config())
    assert len(data.order) > 0
    assert server.requested_shards() == []
    assert len(server.requests) == 1 + 6 + 3, "the manifest and the indexes"
    opened(config())
    assert len(server.requests) == 11, "another process of this machine needs the manifest alone"


def test_local_data_needs_no_cache_and_no_thread(folder, tmp_path):
    threads = threading.active_count()
    trained(opened(a_config(folder, data__cache=str(tmp_path / "cache"))), 10)
    assert not (tmp_path / "cache").exists()
    assert threading.active_count() == threads


# ---- ahead of training, and within bounds ----


def joined(data: ConceptData) -> None:
    """Waits until the next group is fetched."""
    data._prefetcher._ahead.wait()


def test_the_next_group_is_fetched_while_one_is_trained(config, server):
    data = opened(config(data__rows=1))
    batches = iter(data.train_dataloader())
    next(batches)
    joined(data)
    first, second = data.order.shards_of(0, 0), data.order.shards_of(0, 1)
    assert set(server.requested_shards()) == {f"train-{n:06}.tar" for n in (*first, *second)}
    assert len(server.requested_shards()) == 4


def test_rows_are_read_though_their_shards_were_removed_from_the_cache(config, folder, tmp_path):
    """To make room for others, between the opening of a group and the reading of its rows."""
    data = opened(config())
    batches = data.train_dataloader()
    micro_batch = next(iter(batches.deal()))
    joined(data)
    for path in (tmp_path / "cache").glob("*.tar"):
        path.unlink()
    assert as_rows([batches.reader.read(micro_batch)]) == as_rows(trained(opened(a_config(folder)), 1))


def least_gb(folder: Path) -> float:
    """The most that two groups of two training shards and one of validation shards take."""
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
    micro_batches, found, most, over = 3 * len(here.order), [], 0, threading.Event()

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
    """Bytes of the shards in the folder, including partial ones; some disappear while they are counted."""
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
    assert server.requests == ["manifest.json"]
    with pytest.raises(UserError, match=r"^data\.group=401: at most 400 for data behind a URL"):
        opened(config(data__group=401))


# ---- dead files ----


def test_a_url_without_a_data_set_is_one_line(server, config, tmp_path):
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
    groups = [data.order.shards_of(0, group) for group in range(3)]
    before = next(i for i, group in enumerate(groups) if 4 in group)
    assert set(numbers_of(found)) == set().union(*(in_shard(n) for group in groups[:before] for n in group))


def test_a_dead_index_ends_the_run_even_with_skip_dead(config, server):
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
