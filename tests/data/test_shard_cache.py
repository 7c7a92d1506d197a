"""The cache: each shard fetched once for a machine, complete or absent, and never more bytes than it may hold."""

import os
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from made_up_data import some_documents, write_data
from serving import ALWAYS, quick_waits, served

from lcm.data.manifest import open_dataset
from lcm.data.prefetch import Fetch
from lcm.data.remote import Unreachable
from lcm.data.shard_cache import ShardCache, shards_at
from lcm.data.shards import OpenFile, Shard, load_index
from lcm.errors import UserError

SHARDS = 8


@pytest.fixture
def folder(tmp_path):
    return write_data(tmp_path / "there/data", some_documents(10 * SHARDS), validation=some_documents(5))


@pytest.fixture
def server(folder):
    with served(folder) as server:
        yield server


def records_of(folder: Path):
    return open_dataset(folder).shards("train")


def read_from(cache: ShardCache, url: str, record) -> bytes:
    return contents(shard_of(cache, url, record).open())


def shard_of(cache: ShardCache, url: str, record) -> Shard:
    return shards_at(url, [record], cache)[0]


def contents(file: OpenFile) -> bytes:
    return os.pread(file.descriptor, 10**9, 0)


def in_cache(folder: Path) -> list[str]:
    """The shards, by the first part of their names."""
    return sorted(path.name[:12] for path in folder.glob("*.tar"))


def test_a_shard_is_fetched_when_it_is_first_opened_and_never_again(server, folder, tmp_path):
    cache = ShardCache(tmp_path / "cache")
    for _ in range(3):
        for record in records_of(folder):
            assert read_from(cache, server.url, record) == (folder / record.name).read_bytes()
    assert sorted(server.requests) == [f"train-{i:06}.tar" for i in range(SHARDS)]


def test_a_shard_that_has_changed_is_fetched_anew(server, folder, tmp_path):
    cache = ShardCache(tmp_path / "cache")
    before = [read_from(cache, server.url, record) for record in records_of(folder)]
    index = [load_index(shard.fetch()) for shard in shards_at(server.url, records_of(folder), cache)]
    shutil.rmtree(folder)
    write_data(folder, some_documents(10 * SHARDS, seed=3), validation=some_documents(5))
    server.requests.clear()
    for number, record in enumerate(records_of(folder)):
        found = read_from(cache, server.url, record)
        assert found == (folder / record.name).read_bytes() != before[number]
        assert not np.array_equal(shards_at(server.url, [record], cache)[0].load(), index[number])
    assert len(server.requested_shards()) == SHARDS


def test_two_data_sets_with_the_same_names_do_not_meet(server, folder, tmp_path):
    cache, record = ShardCache(tmp_path / "cache"), records_of(folder)[0]
    other = record.model_copy(update={"sha256": "0" * 64})
    paths = {shard_of(cache, *key).path for key in [("s3://a", record), ("s3://b", record), ("s3://a", other)]}
    assert len(paths) == 3
    assert shard_of(cache, "s3://a/", record).path == shard_of(cache, "s3://a", record).path


def test_the_default_folder_is_the_user_s_cache(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/me")
    assert ShardCache().folder == Path("/scratch/me/lcm/shards")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert ShardCache().folder == Path.home() / ".cache/lcm/shards"


# ---- room ----


def test_the_least_recently_opened_makes_room(server, folder, tmp_path):
    records = records_of(folder)
    cache = ShardCache(tmp_path / "cache", most=sum(record.bytes for record in records[:3]))
    for number in (0, 1, 2, 0, 3):
        shard_of(cache, server.url, records[number]).open()
    assert in_cache(cache.folder) == ["train-000000", "train-000002", "train-000003"]


def test_an_open_shard_stays_readable_after_its_removal(server, folder, tmp_path):
    records = records_of(folder)
    cache = ShardCache(tmp_path / "cache", most=records[0].bytes)
    file = shard_of(cache, server.url, records[0]).open()
    shard_of(cache, server.url, records[1]).open()
    assert in_cache(cache.folder) == ["train-000001"]
    assert contents(file) == (folder / records[0].name).read_bytes()


def test_shards_being_fetched_count_toward_the_bound(server, folder, tmp_path):
    """Four threads and room for three: one of them waits, and no moment sees more."""
    records = records_of(folder)
    cache = ShardCache(tmp_path / "cache", most=sum(sorted(record.bytes for record in records)[-3:]))
    for record in records:
        server.fails(record.name, "slow")
    shards = shards_at(server.url, records, cache)
    fetch = Fetch({number: shard.open for number, shard in enumerate(shards)}, threads=4)
    most = 0
    while any(thread.is_alive() for thread in fetch._threads):
        sizes = [taken(path) for path in cache.folder.glob("train-*") if path.suffix in (".tar", ".part")]
        most = max(most, sum(sizes))
    assert most <= cache.most
    assert most > cache.most - max(record.bytes for record in records), "and it is made use of"
    assert sorted(server.requests) == [record.name for record in records]


def taken(path: Path) -> int:
    """Bytes set aside for a shard on its way; of a whole one, its size. It may be gone since it was listed."""
    if path.suffix == ".part":
        return int(path.suffixes[-2][1:])
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_a_shard_larger_than_the_cache_is_one_line(server, folder, tmp_path):
    record = records_of(folder)[0]
    cache = ShardCache(tmp_path / "cache", most=record.bytes - 1)
    with pytest.raises(UserError, match=r"^data\.cache_gb=.*: train-000000\.tar alone takes 0\.\d+ GB; set data"):
        shard_of(cache, server.url, record).open()
    assert server.requests == []


def test_a_folder_that_cannot_be_created_is_one_line(server, folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^data\.cache=.*/file/cache: Not a directory; choose another folder"):
        shard_of(ShardCache(tmp_path / "file/cache"), server.url, records_of(folder)[0]).open()


# ---- several processes ----


def forked(work) -> int:
    """The process in which `work` is done. Forked, because importing torch takes longer than all of this."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def fetch_all(server, records, cache, rank, processes):
    """Fetch like a rank of a run."""
    first = rank * len(records) // processes
    tasks = [(number, shard.open) for number, shard in enumerate(shards_at(server.url, records, cache))]
    fetch = Fetch(dict([*tasks[first:], *tasks[:first]]), threads=4).wait()
    assert fetch.error is None, fetch.error
    found = {number: os.fstat(file.descriptor).st_size for number, file in fetch.done.items()}
    assert found == {number: record.bytes for number, record in enumerate(records)}


def test_several_processes_fetch_every_shard_once(server, folder, tmp_path):
    records, cache = records_of(folder), ShardCache(tmp_path / "cache")
    for record in records:
        server.fails(record.name, "slow", times=ALWAYS)
    children = [forked(partial(fetch_all, server, records, cache, rank, 3)) for rank in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert sorted(server.requests) == [record.name for record in records]


def test_processes_that_waited_for_a_failed_fetch_do_not_repeat_it(server, folder, tmp_path):
    """Threads here stand for processes. A later fetch tries again."""
    record = records_of(folder)[0]
    cache = ShardCache(tmp_path / "cache", retries=3)
    server.fails(record.name, 500, times=ALWAYS)
    met = []

    def work():
        with pytest.raises(Unreachable) as raised:
            shard_of(cache, server.url, record).open()
        met.append(str(raised.value))

    with quick_waits():
        threads = [threading.Thread(target=work) for _ in range(4)]
        with cache.locked(shard_of(cache, server.url, record).path):
            for thread in threads:
                thread.start()
            time.sleep(0.3)  # all of them wait by now
        for thread in threads:
            thread.join()
    assert len(set(met)) == 1
    assert len(server.requests) == 4
    server.fails(record.name)
    shard_of(cache, server.url, record).open()


def test_a_process_that_is_killed_while_it_fetches_leaves_nothing_behind(server, folder, tmp_path):
    records, cache = records_of(folder), ShardCache(tmp_path / "cache")
    server.fails(records[0].name, "stalled")
    child = forked(partial(fetch_all, server, records, cache, 0, 1))
    end = time.monotonic() + 60
    while len(in_cache(cache.folder)) < SHARDS - 1:
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = cache.folder.glob("*.part")
    assert left.name.endswith(f".{records[0].bytes}.part")
    with_room_for_all = ShardCache(cache.folder, most=sum(record.bytes for record in records) + 1)
    other = write_data(tmp_path / "other", some_documents(9))
    shard_of(with_room_for_all, f"file://{other}", records_of(other)[0]).open()
    assert not left.exists(), "its bytes are not set aside for ever"
    assert read_from(cache, server.url, records[0]) == (folder / records[0].name).read_bytes()


def test_a_file_in_the_cache_that_was_cut_short_is_fetched_again(server, folder, tmp_path):
    record, cache = records_of(folder)[0], ShardCache(tmp_path / "cache")
    shard_of(cache, server.url, record).open()
    os.truncate(shard_of(cache, server.url, record).path, 1000)
    assert read_from(cache, server.url, record) == (folder / record.name).read_bytes()


# ---- indexes ----


def test_an_index_is_fetched_once_and_without_its_shard(server, folder, tmp_path):
    shards = shards_at(server.url, records_of(folder), ShardCache(tmp_path / "cache"))
    for _ in range(2):
        for shard, local in zip(shards, sorted(folder.glob("train-*.tar")), strict=True):
            assert np.array_equal(shard.load(), load_index(local))
    assert server.requests == [f"train-{i:06}.index.npy" for i in range(SHARDS)]


@pytest.mark.parametrize("status", [404, 403])
def test_an_index_that_is_not_there_is_made_from_the_shard(status, server, folder, tmp_path):
    server.fails("train-000000.index.npy", status)
    shard = shards_at(server.url, records_of(folder), ShardCache(tmp_path / "cache"))[0]
    assert np.array_equal(shard.load(), load_index(folder / shard.record.name))
    assert server.requests == ["train-000000.index.npy", "train-000000.tar"]


def test_a_wrong_index_is_fetched_again_and_then_named(server, folder, tmp_path):
    shutil.copy(folder / "validation-000000.index.npy", folder / "train-000000.index.npy")
    shard = shards_at(server.url, records_of(folder), ShardCache(tmp_path / "cache", retries=2))[0]
    with quick_waits(), pytest.raises(Unreachable, match=r"train-000000\.index\.npy: not the index .* \(tried 3 times"):
        shard.load()
