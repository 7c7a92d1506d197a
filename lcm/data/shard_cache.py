"""Shards from elsewhere in one local folder of bounded size, each fetched once for all processes of a machine.

    cache = ShardCache("/scratch/shards", most=100 * 10**9)
    descriptor = cache.open("s3://bucket/data", record)      # of a shard's bytes: they stay as long as it is open
    path = cache.index("s3://bucket/data", record)

    NAME-KEY.tar         a whole shard, its size and sha256 checked; its time says when it was last opened
    NAME-KEY.index.npy   its index; small, never removed, not counted
    NAME-KEY.SIZE.part   a shard on its way, for which SIZE bytes are set aside
    locks/               held by whoever fetches a shard; and why the last one who tried gave up

KEY is made of URL and sha256, so that a data set that has changed never meets bytes of the old one. All that is here
may be deleted at any time.
"""

import hashlib
import io
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from lcm.config import CACHE_GB, RETRIES
from lcm.data.manifest import ShardRecord
from lcm.data.remote import Unreachable, WrongBytes, download, read, within
from lcm.data.shards import build_index, index_path, totals
from lcm.errors import UserError
from lcm.files import atomic, cache_folder, lock

_ROUND = 0.1
"""Seconds between two looks at whether there is room."""


class ShardCache:
    """A folder with at most `most` bytes of shards, whole ones and those on their way together.

    The least recently opened ones make room. One that is still open somewhere leaves the folder like any other: its
    bytes stay readable, and on the disk, until it is closed. Processes and threads may all use it at once.
    """

    def __init__(self, folder: str | Path = "", most: int = round(CACHE_GB * 1e9), retries: int = RETRIES) -> None:
        """folder: without it `shards` in lcm.files.cache_folder; made when it is first used."""
        self.folder = Path(folder) if folder else cache_folder() / "shards"
        self.most = most
        self.retries = retries

    def path(self, url: str, record: ShardRecord) -> Path:
        """Where a shard is, or will be."""
        key = hashlib.sha256(f"{url.rstrip('/')}\n{record.sha256}".encode()).hexdigest()[:20]
        return self.folder / f"{Path(record.name).stem}-{key}.tar"

    def open(self, url: str, record: ShardRecord, wait: bool = True) -> int | None:
        """A descriptor of the shard, which is fetched first where it is not here; the caller closes it.

        wait: for another process that is fetching it; None where it is not to be waited for
        Raises Unreachable, with what the process that was waited for met; UserError where it does not fit in here.
        """
        path, asked = self.path(url, record), time.time_ns()
        if (found := self._opened(path, record)) is not None:
            return found
        with self._locked(path, wait) as mine:
            if not mine:
                return None
            if (found := self._opened(path, record)) is not None:
                return found
            if told := self._given_up_since(path, asked):
                raise told
            return self._fetched(url, record, path)

    def index(self, url: str, record: ShardRecord) -> Path:
        """The index of a shard, beside it; made from the shard where it is not to be had. Raises Unreachable."""
        path = index_path(self.path(url, record))
        if path.is_file():
            return path
        with self._locked(path):
            if not path.is_file():
                index = self._fetched_index(url, record)
                with self._disk_errors(), atomic(path, many_writers=True) as file:
                    np.save(file, index)
        return path

    def _opened(self, path: Path, record: ShardRecord) -> int | None:
        """A descriptor of a shard that is here and whole, which is now the most recently opened one."""
        with self._disk_errors():
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            if os.fstat(descriptor).st_size != record.bytes:
                os.close(descriptor)
                return None
            with suppress(PermissionError):  # another user's
                os.utime(descriptor)
        return descriptor

    def fetch(self, url: str, record: ShardRecord) -> Path:
        """A shard that can be read at this path right now, with its index beside it; for short. Raises as `open`."""
        self.index(url, record)
        descriptor = self.open(url, record)
        assert descriptor is not None, "it was waited for"
        os.close(descriptor)
        return self.path(url, record)

    # ---- fetching ----

    def _fetched(self, url: str, record: ShardRecord, path: Path) -> int:
        """By whoever holds the shard's lock."""
        part = path.with_suffix(f".{record.bytes}.part")
        part.unlink(missing_ok=True)
        try:
            with self._disk_errors():
                self._set_aside(part, record)
                download(within(url, record.name), part, record.bytes, record.sha256, self.retries)
                descriptor = os.open(part, os.O_RDONLY)  # before it may have to make room for others
                os.utime(descriptor)
                os.fsync(descriptor)
                with self._locked(self.folder / "room"):  # or who counts would see both, or neither
                    part.replace(path)
        except Unreachable as error:
            with self._disk_errors():
                self._note(path).write_text(f"{time.time_ns()}\n{int(error.final)}\n{error}", encoding="utf-8")
            raise
        finally:
            part.unlink(missing_ok=True)
        return descriptor

    def _fetched_index(self, url: str, record: ShardRecord) -> np.ndarray:
        def index_of(data: bytes) -> np.ndarray:
            with suppress(ValueError, EOFError, IndexError):
                index = np.load(io.BytesIO(data), allow_pickle=False)
                if totals(index) == (record.documents, record.pairs, record.concepts):
                    return index
            raise WrongBytes("not the index of this shard")

        try:
            return read(within(url, index_path(Path(record.name)).name), self.retries, index_of)
        except Unreachable as error:
            if not error.final:
                raise
        descriptor = self.open(url, record)
        assert descriptor is not None, "it was waited for"
        try:
            return build_index(self.path(url, record))
        finally:
            os.close(descriptor)

    def _note(self, path: Path) -> Path:
        return self.folder / "locks" / f"{path.stem}.failed"

    def _given_up_since(self, path: Path, asked: int) -> Unreachable | None:
        """What another met who tried while we waited: it would only be met once more, after the same time."""
        with suppress(OSError, ValueError):
            when, final, line = self._note(path).read_text(encoding="utf-8").split("\n", 2)
            if int(when) >= asked:
                return Unreachable(line, bool(int(final)))
        return None

    # ---- room ----

    def _set_aside(self, part: Path, record: ShardRecord) -> None:
        """Make room for a shard, and a place for it: the name alone counts. Waits for others that are on their way."""
        if record.bytes > self.most:
            raise UserError(
                f"data.cache_gb={self.most / 1e9:g}: {record.name} alone takes {gigabytes(record.bytes)} GB; "
                f"set data.cache_gb={gigabytes(record.bytes)}"
            )
        while True:
            with self._locked(self.folder / "room"):
                coming = sum(int(other.suffixes[-2][1:]) for other in self.folder.glob("*.part") if self._lives(other))
                if coming + record.bytes <= self.most:
                    self._clear(self.most - coming - record.bytes)
                    part.touch()
                    return
            time.sleep(_ROUND)

    def _clear(self, most: int) -> None:
        """Have at most so many bytes of whole shards."""
        shards = sorted((s.st_mtime_ns, s.st_size, path) for path, s in self._shards())
        taken = sum(size for _, size, _ in shards)
        for _, size, path in shards:
            if taken <= most:
                return
            path.unlink(missing_ok=True)
            taken -= size

    def _shards(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob("*.tar"):
            with suppress(FileNotFoundError):
                yield path, path.stat()

    def _lives(self, part: Path) -> bool:
        """Whether somebody fetches it; what a killed process has left behind is removed."""
        with self._locked(part.with_suffix("").with_suffix(".tar"), wait=False) as free:
            if free:
                part.unlink(missing_ok=True)
            return not free

    @contextmanager
    def _locked(self, path: Path, wait: bool = True) -> Iterator[bool]:
        """Whether we have what belongs to `path` for ourselves. The kernel opens the lock of whoever is killed."""
        held = lock(self.folder / "locks" / f"{path.name}.lock", patience=math.inf if wait else 0.0)
        with ExitStack() as stack:
            with self._disk_errors():
                mine = stack.enter_context(held)
            yield mine

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"data.cache={self.folder}: {error.strerror or error}; choose another folder, or lower data.cache_gb"
            ) from error


def gigabytes(size: int) -> str:
    """Rounded up, so that a setting of this number is large enough."""
    return f"{-(-size // 10**6) / 1000:g}"
