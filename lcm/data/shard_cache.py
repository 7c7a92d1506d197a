"""A local folder of bounded size for remote shards. Each is fetched once for all processes of a machine.

    cache = ShardCache("/scratch/shards", most=100 * 10**9)
    shards = shards_at("s3://bucket/data", manifest.shards("train"), cache)
    file = shards[0].open()                                  # the bytes stay readable until it is closed

    NAME-KEY.tar         a whole shard, size and sha256 checked; its modification time says when it was last opened
    NAME-KEY.index.npy   its index; small, never removed, not counted
    NAME-KEY.SIZE.part   a shard that is being fetched, for which SIZE bytes are reserved
    locks/               one for each shard, held while it is fetched; beside it, why the last attempt failed

KEY is a hash of URL and sha256, so changed data never meets old bytes; without the URL's query, which may be a
signature of today. All of the folder may be deleted at any time.
"""

import hashlib
import io
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from lcm.data.manifest import ShardRecord, is_url, join, open_dataset, split_query
from lcm.data.remote import Unreachable, WrongBytes, download, read
from lcm.data.shards import Shard, build_index, index_path, totals
from lcm.data.vectors import OpenFile
from lcm.errors import UserError
from lcm.files import CACHE_GB, RETRIES, atomic, cache_folder, lock

_POLL = 0.1
"""Seconds between two checks for room."""


@dataclass(frozen=True)
class ShardCache:
    """A folder with at most `most` bytes of shards, whole or being fetched. Safe for many processes and threads.

    The least recently opened shards are removed to make room, even if they are open somewhere: the bytes of an open
    file stay readable, and on the disk, until it is closed.

    place: the folder; by default `shards` in lcm.files.cache_folder()
    """

    place: str | Path = ""
    most: int = round(CACHE_GB * 1e9)
    retries: int = RETRIES

    @cached_property
    def folder(self) -> Path:
        return Path(self.place) if self.place else cache_folder() / "shards"

    def reserve(self, part: Path, record: ShardRecord) -> None:
        """Make room for a shard, and reserve it by an empty file whose name says its size.

        Waits as long as shards that are being fetched take the room.
        """
        if record.bytes > self.most:
            raise UserError(
                f"data.cache_gb={self.most / 1e9:g}: {record.name} alone takes {gigabytes(record.bytes)} GB; "
                f"set data.cache_gb={gigabytes(record.bytes)}"
            )
        while True:
            with self.locked(self.folder / "room"):
                parts = [other for other in self.folder.glob("*.part") if self._is_alive(other)]
                reserved = sum(int(other.suffixes[-2][1:]) for other in parts)
                if reserved + record.bytes <= self.most:
                    self._shrink(self.most - reserved - record.bytes)
                    part.touch()
                    return
            time.sleep(_POLL)

    def _shrink(self, most: int) -> None:
        """Remove the least recently opened shards until the others take at most `most` bytes."""
        shards = []
        for path in self.folder.glob("*.tar"):
            with suppress(FileNotFoundError):
                facts = path.stat()
                shards.append((facts.st_mtime_ns, facts.st_size, path))
        taken = sum(size for _, size, _ in shards)
        for _, size, path in sorted(shards):
            if taken <= most:
                return
            path.unlink(missing_ok=True)
            taken -= size

    def _is_alive(self, part: Path) -> bool:
        """True while a process fetches this shard. Removes the part that a killed process has left behind."""
        with self.locked(part.with_suffix("").with_suffix(".tar"), wait=False) as is_free:
            if is_free:
                part.unlink(missing_ok=True)
            return not is_free

    def locked(self, path: Path, wait: bool = True) -> AbstractContextManager[bool]:
        """Hold the lock that belongs to `path`. Yields False, without `wait`, if another process or thread holds it."""
        return lock(self.folder / "locks" / f"{path.name}.lock", patience=math.inf if wait else 0.0)

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Turn an error of the disk into a UserError that names the setting."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"data.cache={self.folder}: {error.strerror or error}; choose another folder, or lower data.cache_gb"
            ) from error


def gigabytes(size: int) -> str:
    """The size in GB, rounded up, so that a setting of this value is large enough."""
    return f"{-(-size // 10**6) / 1000:g}"


@dataclass(frozen=True)
class RemoteShard(Shard):
    """One tar behind a URL. It is read from the cache, whose folder `folder` is."""

    url: str
    cache: ShardCache

    @cached_property
    def path(self) -> Path:
        key = hashlib.sha256(f"{split_query(self.url)[0].rstrip('/')}\n{self.record.sha256}".encode()).hexdigest()[:20]
        return self.folder / f"{Path(self.record.name).stem}-{key}.tar"

    @property
    def place(self) -> Path | str:
        return self.url

    def open(self, wait: bool = True) -> OpenFile | None:
        """The open file, fetched if it is not in the cache.

        wait: for another process that is fetching it; without, None is returned in that case
        Raises Unreachable, also for the process that was waited for; UserError if the cache has no room or disk fails.
        """
        started = time.time_ns()
        with self.cache.disk_errors():
            if file := self._open_cached():
                return file
            with self.cache.locked(self.path, wait) as is_locked:
                if not is_locked:
                    return None
                if file := self._open_cached():
                    return file
                if error := self._failure_since(started):
                    raise error
                return self._fetch_shard()

    def fetch(self) -> Path:
        """The path of the shard, just fetched or opened. Read it soon: it may be removed to make room."""
        self.fetch_index()
        self.open()
        return self.path

    def load(self) -> Int64[np.ndarray, "N 3"]:
        self.fetch_index()
        return super().load()

    def fetch_index(self) -> None:
        """Fetch the index if it is not in the cache, or make it from the shard if there is none. Raises as `open`."""
        path = index_path(self.path)
        if path.is_file():
            return
        with self.cache.disk_errors(), self.cache.locked(path):
            if not path.is_file():
                index = self._index()
                with atomic(path, many_writers=True) as file:
                    np.save(file, index)

    def _open_cached(self) -> OpenFile | None:
        """The file if it is in the cache and whole. Marks it as the most recently opened one."""
        try:
            file = OpenFile(self.path, os.open(self.path, os.O_RDONLY))
        except FileNotFoundError:
            return None
        if os.fstat(file.descriptor).st_size != self.record.bytes:
            return None
        with suppress(PermissionError):  # another user's file
            os.utime(file.descriptor)
        return file

    def _fetch_shard(self) -> OpenFile:
        """Fetch the shard and open it. The caller holds its lock."""
        cache, record = self.cache, self.record
        part = self.path.with_suffix(f".{record.bytes}.part")
        part.unlink(missing_ok=True)
        try:
            cache.reserve(part, record)
            download(join(self.url, record.name), part, record.bytes, record.sha256, cache.retries)
            file = OpenFile(self.path, os.open(part, os.O_RDONLY))  # before it may be removed to make room
            os.utime(file.descriptor)
            os.fsync(file.descriptor)
            with cache.locked(cache.folder / "room"):  # or another process would count both names, or neither
                part.replace(self.path)
        except Unreachable as error:
            self._failure.write_text(f"{time.time_ns()}\n{int(error.final)}\n{error}", encoding="utf-8")
            raise
        finally:
            part.unlink(missing_ok=True)
        return file

    def _index(self) -> Int64[np.ndarray, "N 3"]:
        def parse(data: bytes) -> np.ndarray:
            with suppress(ValueError, EOFError, IndexError):
                index = np.load(io.BytesIO(data), allow_pickle=False)
                if totals(index) == self.record.counts:
                    return index
            raise WrongBytes("not the index of this shard")

        try:
            return read(join(self.url, index_path(Path(self.record.name)).name), self.cache.retries, parse)
        except Unreachable as error:
            if not error.final:
                raise
        self.open()
        return build_index(self.path)

    @property
    def _failure(self) -> Path:
        """The file that says why the last attempt to fetch the shard failed."""
        return self.folder / "locks" / f"{self.path.stem}.failed"

    def _failure_since(self, start: int) -> Unreachable | None:
        """The error of another process that gave up while this one waited: to try as long again would not help."""
        with suppress(OSError, ValueError):
            when, final, line = self._failure.read_text(encoding="utf-8").split("\n", 2)
            if int(when) >= start:
                return Unreachable(line, bool(int(final)))
        return None


def shards_at(place: Path | str, records: Sequence[ShardRecord], cache: ShardCache) -> list[Shard]:
    """The shards of a data set, in a folder or behind a URL, with these records."""
    if isinstance(place, str) and is_url(place):
        return [RemoteShard(cache.folder, record, place, cache) for record in records]
    return [Shard(Path(place), record) for record in records]


def split_shards(place: Path | str, split: str, fingerprint: str | None, codec: str = "") -> list[Shard]:
    """The shards of a split of a data set. Raises UserError if a codec of another fingerprint has made it.

    codec: name of the codec that the fingerprint is of, for the error message
    """
    manifest = open_dataset(place)
    made, expected = manifest.codec, f"'{codec}' ({fingerprint})" if codec else fingerprint
    if fingerprint not in (None, made.fingerprint):
        line = f"made by codec '{made.name}' ({made.fingerprint}), expected {expected}"
        raise UserError(f"{place}: {line}; prepare the text again with the model's codec")
    return shards_at(place, manifest.shards(split), ShardCache())
