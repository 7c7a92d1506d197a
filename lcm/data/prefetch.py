"""Prefetching of remote shards: one group ahead of training, each shard open while its rows are read.

Used if any shard is behind a URL. A local shard is opened by lcm.data.loader when a row needs it.
"""

import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from torch import distributed

from lcm.data.mixture import Mixture
from lcm.data.order import RowOrder, Step
from lcm.data.remote import Unreachable
from lcm.data.shard_cache import RemoteShard, ShardCache, gigabytes
from lcm.data.shards import Shard, index_path
from lcm.data.vectors import OpenFile
from lcm.errors import UserError

SHARD_THREADS = 4
"""Shards that a rank fetches at a time."""
INDEX_THREADS = 8
"""Indexes that a rank fetches at a time."""
MOST_OPEN = 400
"""Shards of the largest group: two groups may be open, and a process may usually have 1,024 files open."""
_T = TypeVar("_T")


def check_cache(
    to_train: Sequence[Sequence[Shard]], held_out: Sequence[Sequence[Shard]], group: int, cache: ShardCache
) -> None:
    """Raises UserError if the cache cannot hold two groups of training shards, and one of validation, of each set."""
    needed = sum(_largest(shards, 2 * group) for shards in to_train) + sum(_largest(s, group) for s in held_out)
    if needed > cache.most:
        raise UserError(
            f"data.cache_gb={cache.most / 1e9:g}: two groups of {group} shards to train on and one to validate on take "
            f"up to {gigabytes(needed)} GB; set data.cache_gb={gigabytes(needed)}, or lower data.group"
        )
    if group * len(to_train) > MOST_OPEN:
        most = MOST_OPEN // len(to_train)
        raise UserError(f"data.group={group}: at most {most} for data behind a URL, whose files are open at once")


def _largest(shards: Sequence[Shard], count: int) -> int:
    return sum(sorted((s.record.bytes for s in shards if isinstance(s, RemoteShard)), reverse=True)[:count])


def fetch_indexes(shards: Sequence[RemoteShard]) -> None:
    """Fetch the indexes that are not in the cache. Raises UserError for one that cannot be fetched.

    Even with data.skip_dead: the rows, and so the meaning of a position, follow from all indexes.
    """

    def index_of(shard: RemoteShard, wait: bool) -> bool:
        try:
            shard.fetch_index()
        except Unreachable as error:
            raise UserError(
                f"{error}; without every index the rows are not known, so data.skip_dead does not apply to indexes"
            ) from error
        return True

    missing = [shard for shard in shards if not index_path(shard.path).is_file()]
    tasks = {number: partial(index_of, shard) for number, shard in enumerate(missing)}
    if error := Fetch(tasks, INDEX_THREADS).wait().error:
        raise error


class Fetch(Generic[_T]):
    """Tasks in a few daemon threads. A process that ends would wait minutes for threads of concurrent.futures.

    done:        the result of each task, by its key
    unreachable: the tasks that ended in this error, by their keys
    error:       any other error; no further task is begun after it
    """

    def __init__(self, tasks: Mapping[int, Callable[[bool], _T | None]], threads: int) -> None:
        """tasks: called with wait=False. One that returns None, because another process is at it, is called again
        with wait=True when all others have begun."""
        self.done: dict[int, _T] = {}
        self.unreachable: dict[int, Unreachable] = {}
        self.error: Exception | None = None
        self._todo = deque((key, task, False) for key, task in tasks.items())
        self._threads = [threading.Thread(target=self._work, daemon=True, name="lcm-fetch") for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def wait(self) -> "Fetch[_T]":
        for thread in self._threads:
            thread.join()
        return self

    def _work(self) -> None:
        while not self.error:
            try:
                key, task, wait = self._todo.popleft()
            except IndexError:
                return
            try:
                result = task(wait)
            except Unreachable as error:
                self.unreachable[key] = error
            except Exception as error:
                self.error = error
            else:
                if result is None:
                    self._todo.append((key, task, True))
                else:
                    self.done[key] = result


def _is_fetched(shard: Shard, wait: bool) -> bool | None:
    """Open a shard, which fetches it, and close it again: the newest shards of the cache are safe from removal."""
    return None if shard.open(wait) is None else True


class OpenShards(NamedTuple):
    """The shards of a step's groups: the open files by number, and the numbers of those that could not be fetched."""

    files: dict[int, OpenFile]
    dead: frozenset[int]


class Prefetcher:
    """Opens the shards of a step's groups, and fetches those of the group that follows. A dead shard cannot be fetched.

    skipped: dead shards so far, each counted once an epoch
    """

    def __init__(
        self, order: RowOrder, rank: int, world_size: int, *, skip_dead: bool = False, ahead: bool = True
    ) -> None:
        """skip_dead: as in the configuration. ahead: fetch the group that follows, of no use to a single step."""
        self.order = order
        self.rank, self.world_size = rank, world_size
        self.skip_dead, self.skipped = skip_dead, 0
        self._groups: dict[tuple[int, int], OpenShards] = {}
        self._ahead: Fetch[bool] | None = None
        self._fetches_ahead = ahead
        self._last_was_dead = False
        self._reported: set[int] = set()

    def open(self, step: Step) -> OpenShards:
        """The shards of a step's groups. Files of earlier groups are closed when no micro-batch holds them any more.

        Raises UserError for a dead shard; with skip_dead, only if two groups in a row are dead: the network's fault.

        All ranks read equally far ahead, so each calls this in its main thread between the same two batches: whatever
        earlier batches communicate, all ranks have started it, and no rank waits here for one that waits there.
        """
        wanted = [(step.epoch, group) for group in step.groups]
        self._groups = {key: opened for key, opened in self._groups.items() if key in wanted}
        for epoch, group in wanted:
            if (epoch, group) not in self._groups:
                self._groups[epoch, group] = self._begin(epoch, group)
        files = {number: file for opened in self._groups.values() for number, file in opened.files.items()}
        return OpenShards(files, frozenset[int]().union(*(opened.dead for opened in self._groups.values())))

    def _begin(self, epoch: int, group: int) -> OpenShards:
        shards = self.order.shards_of(epoch, group)
        if self._ahead:
            self._ahead.wait()
        tasks = {number: self.order.shards[number].open for number in self._rotated(shards)}
        fetch = Fetch(tasks, SHARD_THREADS).wait()
        if fetch.error:
            raise fetch.error
        reasons = {number: str(error) for number, error in fetch.unreachable.items()}
        if reasons and not self.skip_dead:
            line = next(iter(reasons.values()))
            raise UserError(f"{line}; data.skip_dead=true trains without such shards, data.retries tries more often")
        if self.skip_dead and self.world_size > 1:
            reasons = exchange(reasons)
        self._report(shards, reasons)
        if self._fetches_ahead:
            following = (epoch, group + 1) if group + 1 < self.order.groups else (epoch + 1, 0)
            numbers = self._rotated(self.order.shards_of(*following))
            ahead = {number: partial(_is_fetched, self.order.shards[number]) for number in numbers}
            self._ahead = Fetch(ahead, SHARD_THREADS)
        files = {number: file for number, file in fetch.done.items() if number not in reasons}
        return OpenShards(files, frozenset(reasons))

    def _rotated(self, shards: list[int]) -> list[int]:
        """The shards, rotated by rank: the ranks of one machine begin with different ones, and share the fetching."""
        first = self.rank * len(shards) // self.world_size
        return shards[first:] + shards[:first]

    def _report(self, shards: Sequence[int], reasons: dict[int, str]) -> None:
        """Count the dead shards of a group, and print each once. Raises UserError for a second dead group in a row."""
        self.skipped += len(reasons)
        for number in sorted(reasons.keys() - self._reported):
            self._reported.add(number)
            if self.rank == 0:
                print(
                    f"{reasons[number]}; skipped (data.skip_dead=true), and tried again in the next epoch: "
                    f"{len(self._reported)} of {len(self.order.shards)} shards by now",
                    file=sys.stderr,
                )
        is_dead = len(reasons) == len(shards)
        if is_dead and self._last_was_dead:
            raise UserError(
                f"{next(iter(reasons.values()))}; no shard of two groups in a row could be fetched: the same command "
                "resumes from the last checkpoint when the data can be reached again"
            )
        self._last_was_dead = is_dead


class MixedPrefetcher:
    """A prefetcher for each set of a mixture; shards are numbered as in the mixture."""

    def __init__(self, mixture: Mixture, prefetchers: Sequence[Prefetcher]) -> None:
        self.mixture, self.prefetchers = mixture, prefetchers

    @property
    def skipped(self) -> int:
        return sum(prefetcher.skipped for prefetcher in self.prefetchers)

    def open(self, step: Step) -> OpenShards:
        files, dead = dict[int, OpenFile](), set[int]()
        for number, part in step.parts:
            first = self.mixture.first_shard[number]
            opened = self.prefetchers[number].open(part)
            files |= {first + shard: file for shard, file in opened.files.items()}
            dead |= {first + shard for shard in opened.dead}
        return OpenShards(files, frozenset(dead))


def exchange(reasons: dict[int, str]) -> dict[int, str]:
    """The dead shards of all ranks, with a reason each. A collective."""
    every: list[dict[int, str]] = [{}] * distributed.get_world_size()
    try:
        distributed.all_gather_object(every, reasons)
    except RuntimeError as error:
        raise UserError("another rank ended before it said which shards are dead; its own line says why") from error
    return {number: line for found in every for number, line in found.items()}
