"""Having what is elsewhere here: whether there is room for it, all indexes, the shards of a group."""

import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from lcm.data.dataset import RemoteShard, Shard
from lcm.data.loader import OpenFile
from lcm.data.remote import Unreachable
from lcm.data.shard_cache import ShardCache, gigabytes
from lcm.data.shards import index_path
from lcm.errors import UserError

AT_ONCE = 4
"""Shards that a process fetches at the same time."""
INDEXES_AT_ONCE = 8
"""Indexes that a process fetches at the same time."""
MOST_OPEN = 400
"""Of the 1,024 files that a process may usually have open, for a group and the one before it."""


def check_cache(to_train: Sequence[Shard], held_out: Sequence[Shard], group: int, cache: ShardCache) -> None:
    """Raises UserError where the cache cannot hold two groups of training shards and one to validate on."""
    needed = _largest(to_train, 2 * group) + _largest(held_out, group)
    if needed > cache.most:
        raise UserError(
            f"data.cache_gb={cache.most / 1e9:g}: two groups of {group} shards to train on and one to validate on take "
            f"up to {gigabytes(needed)} GB; set data.cache_gb={gigabytes(needed)}, or lower data.group"
        )
    if group > MOST_OPEN:
        raise UserError(f"data.group={group}: at most {MOST_OPEN} for data behind a URL, whose files are open at once")


def _largest(shards: Sequence[Shard], count: int) -> int:
    """Bytes of so many of those that are elsewhere."""
    return sum(sorted((s.record.bytes for s in shards if isinstance(s, RemoteShard)), reverse=True)[:count])


def fetch_indexes(shards: Sequence[RemoteShard]) -> None:
    """Have the indexes of these shards here.

    Raises UserError for one that cannot be had, whatever data.skip_dead says: how documents make rows, and so what a
    position means, follows from all indexes.
    """
    missing = deque(shard for shard in shards if not index_path(shard.path).is_file())
    errors: list[Exception] = []

    def work() -> None:
        while missing and not errors:
            with suppress(IndexError):  # another thread took the last one
                shard = missing.popleft()
                try:
                    shard.cache.index(shard.url, shard.record)
                except Exception as error:
                    errors.append(error)

    threads = [threading.Thread(target=work, daemon=True, name="lcm-index") for _ in range(INDEXES_AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors and isinstance(errors[0], Unreachable):
        raise UserError(
            f"{errors[0]}; without every index the rows are not known, so data.skip_dead is of no help here"
        )
    if errors:
        raise errors[0]


class Fetch:
    """Shards that a few threads open, fetching them where they are elsewhere, those first that nobody else fetches.

    opened, lost: by number, those that are open (keeps) and those that could not be had; broken: what else went wrong
    """

    def __init__(self, shards: Sequence[tuple[int, Shard]], keeps: bool = True) -> None:
        self.opened: dict[int, OpenFile] = {}
        self.lost: dict[int, Unreachable] = {}
        self.broken: Exception | None = None
        self._todo, self._busy = deque(shards), deque[tuple[int, Shard]]()
        self._keeps = keeps
        # Daemons, for which a process that ends does not wait: a shard may take minutes.
        self._threads = [threading.Thread(target=self._work, daemon=True, name="lcm-fetch") for _ in shards[:AT_ONCE]]
        for thread in self._threads:
            thread.start()

    def wait(self) -> "Fetch":
        for thread in self._threads:
            thread.join()
        return self

    def _work(self) -> None:
        while self.broken is None:
            try:
                waits = not self._todo
                number, shard = (self._busy if waits else self._todo).popleft()
            except IndexError:
                if waits:
                    return
                continue  # another thread took the last one
            try:
                file = shard.open(wait=waits)
            except Unreachable as error:
                self.lost[number] = error
            except Exception as error:
                self.broken = error
            else:
                if file is None:
                    self._busy.append((number, shard))
                elif self._keeps:
                    self.opened[number] = file
