"""Groups of shards for the reader: open while they are read, the next one fetched meanwhile, the dead ones left out.

For data of which something is elsewhere. What is here is opened by its path, when a row needs it (lcm.data.loader).
"""

import itertools
import json
import sys
import time
from collections.abc import Sequence

from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from lcm.data.dataset import Shard
from lcm.data.loader import Files, OpenFile
from lcm.data.prefetch import Fetch
from lcm.data.steps import Share
from lcm.errors import UserError

_LOOK = 0.02
"""Seconds between two looks at whether the others have written."""

_uses = itertools.count()
"""Exchanges of this process: all processes have as many, in the same order, and each is about something else."""


class Groups:
    """Of one split, on one rank: `begin` when the plan comes to a group, `files` whenever a share is dealt.

    dead: shards left out so far, one of each epoch counted once
    """

    def __init__(
        self, shards: Sequence[Shard], rank: int, world_size: int, *, skip_dead: bool, in_order: bool = True
    ) -> None:
        """in_order: groups are read one after the other, so that one is closed when a share of the next one is dealt,
        and the next one can be fetched meanwhile; else all stay open."""
        self.shards = shards
        self.rank, self.world_size = rank, world_size
        self.skip_dead = skip_dead
        self.in_order = in_order
        self.dead = 0
        self._open: dict[tuple[int, int], dict[int, OpenFile]] = {}
        self._ahead: Fetch | None = None
        self._all_dead = False
        self._named: set[int] = set()

    def begin(self, epoch: int, group: int, members: Sequence[int], following: Sequence[int]) -> set[int]:
        """Have the shards of a group, open; returns the numbers of those that some process could not get.

        Raises UserError, without `skip_dead`, for the first that could not be fetched; with it where there is nothing
        left of two groups in a row, so that no shard is to blame.

        This runs in the thread that asks for shares: the main one, between two batches, and every process deals as many
        shares ahead of what it trains. So all processes come here between the same two batches; each writes before it
        waits, and none waits for anything but what the others write before they wait themselves. Whatever the batches
        before want of other processes, all have asked of each other by then.
        """
        if self._ahead is not None:
            self._ahead.wait()
        fetched = self._fetch(members).wait()
        if fetched.broken:
            raise fetched.broken
        lost = {number: str(error) for number, error in fetched.lost.items()}
        if lost and not self.skip_dead:
            line = next(iter(lost.values()))
            raise UserError(
                f"{line}; data.skip_dead=true trains without such shards, and data.retries tries more often"
            )
        if self.skip_dead and self.world_size > 1:
            about = f"{next(_uses)}/{epoch}/{group}"
            lost = agreed(_get_default_store(), self.rank, self.world_size, lost, about)
        self._tell(members, lost)
        self._open[epoch, group] = {n: file for n, file in fetched.opened.items() if n not in lost}
        if self.in_order:
            # Daemon threads close what they have opened: in the folder these shards are the newest, and safe there.
            self._ahead = self._fetch(following, keeps=False)
        return set(lost)

    def files(self, share: Share) -> Files:
        """What this share is read from, open as long as the result is kept."""
        groups = {(row.epoch, row.group) for row in share.rows}
        if self.in_order:
            self._open = {group: files for group, files in self._open.items() if group >= min(groups)}
        return {number: file for group in groups for number, file in self._open[group].items()}.__getitem__

    def _fetch(self, numbers: Sequence[int], keeps: bool = True) -> Fetch:
        """Each process begins with another shard."""
        first = self.rank * len(numbers) // self.world_size
        return Fetch([(n, self.shards[n]) for n in (*numbers[first:], *numbers[:first])], keeps)

    def _tell(self, members: Sequence[int], lost: dict[int, str]) -> None:
        self.dead += len(lost)
        for number in sorted(lost.keys() - self._named):
            self._named.add(number)
            if self.rank == 0:
                line = f"{lost[number]}; left out (data.skip_dead=true), and asked for again in the next epoch"
                print(f"{line}: {len(self._named)} of {len(self.shards)} shards by now", file=sys.stderr)
        all_dead = len(lost) == len(members)
        if all_dead and self._all_dead:
            raise UserError(
                f"{next(iter(lost.values()))}; no shard of two groups in a row could be fetched: the same command goes "
                "on from the last checkpoint when the data is to be had again"
            )
        self._all_dead = all_dead


def agreed(board: Store, rank: int, world_size: int, own: dict[int, str], about: str) -> dict[int, str]:
    """What any of the processes has lost, with its reason; the same for all of them.

    about: the same for all processes, and never used twice on this board
    """
    board = PrefixStore(f"lcm/dead/{about}", board)
    board.set(str(rank), json.dumps(own))
    everyone = [str(other) for other in range(world_size)]
    while not board.check(
        everyone
    ):  # `wait` would keep the board from answering lcm.training.watchdog, which is on it too
        time.sleep(_LOOK)
    told = [json.loads(board.get(other)) for other in everyone]
    return {int(number): line for lost in told for number, line in lost.items()}
