"""The data of a training run: which rows each rank trains, and exactly where training stands.

    data = ConceptData(config, predicts_first=model.predicts_first)
    data.setup()  # opens manifests and fetches remote indexes: data.prepared
    trainer.fit(LCMModule(config, model), datamodule=data)

The rows of a step depend on the numbers of ranks and micro-batches and on data.rows; workers change nothing but speed.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import cached_property

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, distributed

from lcm.config import Config
from lcm.data.dataset import PreparedData
from lcm.data.loader import Batches, MicroBatch, RowReader, split
from lcm.data.mixture import Mixture
from lcm.data.order import Position, RowOrder
from lcm.data.prefetch import MixedPrefetcher, OpenShards, Prefetcher, check_cache, fetch_indexes
from lcm.data.shard_cache import RemoteShard, ShardCache
from lcm.data.shards import Shard
from lcm.errors import UserError, without_secrets

VALIDATION_SEED = 0
"""Seed of the order of validation: the same rows in every run, whatever the run's own seed."""
NOT_REMOTE = OpenShards({}, frozenset())
"""For local data: the reader opens shards itself, and none is dead."""


class ConceptData(L.LightningDataModule):
    """The data of one run, on one rank.

    Lightning sees a single epoch of max_steps · accumulate micro-batches; epochs of the data are counted here.
    `advance()` is called for every micro-batch that is trained. `state_dict()` is the position after the last whole
    step. Nothing in it depends on the rank: a resumed run may have other numbers of ranks, workers and micro-batches.
    """

    def __init__(self, config: Config, predicts_first: bool, *, rank: int = 0, world_size: int = 1) -> None:
        """predicts_first: the model's. rank, world_size: used until a Trainer is attached, which knows them."""
        super().__init__()
        self.config, self.predicts_first = config, predicts_first
        self.rank, self.world_size = rank, world_size
        self.position = Position()
        self.steps = 0  # optimizer steps trained
        self._micro_batches = 0  # trained since the last whole step
        self._dealt: deque[Position] = deque()  # positions after the steps that are dealt, but not yet trained

    def setup(self, stage: str = "fit") -> None:
        """Open the data. Raises UserError if there is none, or it does not fit the model or the cache."""
        if self.trainer:
            self.rank, self.world_size = self.trainer.global_rank, self.trainer.world_size
        self.prepared.check_dim(self.config.model.dim)
        for one, shards in zip(self.config.data.mix, self._to_train, strict=False):
            if not shards:
                raise UserError(f"data.mix: {one.path} has no document to train on; leave it out")
        sets = *self._to_train, *self._held_out
        if remote := [shard for shards in sets for shard in shards if isinstance(shard, RemoteShard)]:
            check_cache(self._to_train, self._held_out, self.config.data.group, self.prepared.cache)
            fetch_indexes(remote)

    @cached_property
    def prepared(self) -> PreparedData:
        data = self.config.data
        return PreparedData(data.folders, ShardCache(data.cache, round(data.cache_gb * 1e9), data.retries))

    @property
    def end_of_text(self) -> Float[Tensor, " D"]:
        """The vector that ends every document, fp16."""
        return self.prepared.end_of_text(self.config.data.skip_dead)

    @cached_property
    def _to_train(self) -> list[list[Shard]]:
        return self._sets("train")

    def _sets(self, split: str) -> list[list[Shard]]:
        """The shards of a split: of each set of a mixture, otherwise all in one."""
        mix = self.config.data.mix
        return [self.prepared.shards(split, s.path) for s in mix] if mix else [self.prepared.shards(split)]

    @cached_property
    def order(self) -> RowOrder | Mixture:
        return self._order_of(self._to_train, self.config.run.seed)

    @cached_property
    def _prefetcher(self) -> Prefetcher | MixedPrefetcher | None:
        return self._prefetcher_of(self.order)

    def describe(self) -> Iterator[str]:
        """Describe the data sets and the targets of an epoch; of a mixture each set, with its share of the rows."""

        def targets(order: RowOrder) -> str:
            return f"{sum(row.targets for row in order.rows(0, np.arange(len(order)))):,} targets an epoch"

        names = [without_secrets(name) for name in self.config.data.folders]
        if isinstance(self.order, Mixture):
            for name, order, rows in zip(names, self.order.orders, self.order.rows_each.tolist(), strict=True):
                yield f"{name}: {rows / 10:g}% of the rows, {targets(order)}"
        else:
            yield f"{', '.join(names)}: {targets(self.order)}"

    def metrics(self) -> dict[str, float]:
        """The epochs of each set of a mixture; with data.skip_dead, the shards that could not be fetched so far."""
        found = dict[str, float]()
        if isinstance(self.order, Mixture):
            epochs = self.order.epochs(self.position)
            found = {f"data/epochs_of_{i}": value for i, value in enumerate(epochs, 1)}
        if self._prefetcher and self.config.data.skip_dead:
            found["data/dead_shards"] = float(self._prefetcher.skipped)
        return found

    def train_dataloader(self) -> Batches:
        trainer = self.config.trainer
        self._count(self.order)
        # The length is that of the whole run: Lightning adds the batches of earlier parts to its own count.
        return self._batches(self.order, self.micro_batches, length=trainer.max_steps * trainer.accumulate)

    def micro_batches(self) -> Iterator[MicroBatch]:
        """This rank's micro-batches, from the position to max_steps.

        A step that has lost all of its documents to dead shards is skipped: it would only let the optimizer drift.
        """
        trainer = self.config.trainer
        self._micro_batches = 0
        self._dealt.clear()
        steps = self.order.steps(self.position, self.world_size * trainer.accumulate * self.config.data.rows)
        missing = trainer.max_steps - self.steps
        while missing > 0:
            step = next(steps)
            files, dead = self._prefetcher.open(step) if self._prefetcher else NOT_REMOTE
            if dead and not any(len(row.spans) for row in self.order.rows(step.epoch, step.rows, dead)):
                continue
            missing -= 1
            self._dealt.append(step.after)
            mine = list(self.order.rows(step.epoch, step.share(self.rank, self.world_size), dead))
            yield from split(mine, trainer.accumulate, files)

    def _count(self, order: RowOrder | Mixture) -> None:
        """Count the rows of all bundles. Every rank counts some of them, and they add up their counts.

        Raises UserError on all ranks if one of them cannot read an index.
        """
        if not (self.world_size > 1 and distributed.is_available() and distributed.is_initialized()):
            return  # the order counts by itself
        if isinstance(order, Mixture):
            for one in order.orders:
                self._count(one)
            return
        assert self.trainer, "ranks that have met are a Trainer's"
        mine, broken = np.arange(self.rank, order.bundles, self.world_size), None
        counts = torch.zeros(order.bundles + 1, dtype=torch.long)
        try:
            counts[mine] = torch.from_numpy(order.count(mine.tolist()))
        except UserError as error:
            broken, counts[-1] = error, 1
        counts = counts.to(self.trainer.strategy.root_device)
        distributed.all_reduce(counts)
        if broken:
            raise broken
        if counts[-1]:
            raise UserError("data.path: another rank cannot read an index; its own line says which, and what to do")
        order.rows_in = counts[:-1].cpu().numpy()

    def advance(self) -> None:
        """One more micro-batch is trained. The position moves when all micro-batches of the step are."""
        self._micro_batches += 1
        if self._micro_batches == self.config.trainer.accumulate:
            self._micro_batches = 0
            self.position = self._dealt.popleft()
            self.steps += 1

    def state_dict(self) -> dict[str, int]:
        """The position, the steps trained, the order's fingerprint, and the epoch to begin where that has changed."""
        following = {"next_epoch": self.order.next_epoch(self.position)}
        return {**asdict(self.position), "steps": self.steps, "plan": self.order.fingerprint, **following}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume at a checkpoint's position; Lightning calls this before it opens the loader.

        If the order of the rows has changed, the position means nothing, and the next epoch begins.
        """
        self.steps = state_dict["steps"]
        self.position = Position(state_dict["epoch"], state_dict["row"])
        if state_dict["plan"] != self.order.fingerprint:
            self.position = Position(epoch=state_dict.get("next_epoch", self.position.epoch + 1))
            self._say(
                "the data, its weights, data.slots, data.group, run.seed or the order of this version changed since "
                f"the checkpoint: training resumes at the start of epoch {self.position.epoch} of the data"
            )

    @property
    def has_validation(self) -> bool:
        return any(self._held_out)

    @cached_property
    def _held_out(self) -> list[list[Shard]]:
        """The validation split; the test split if there is none."""
        return self._sets("validation" if any(self._sets("validation")) else "test")

    def val_dataloader(self) -> Batches | list[Batches]:
        """trainer.validation_rows rows, the same in every validation and run, read like a single step.

        They are shuffled, and so come from all folders and all parts of each. Every rank has as many batches.
        """
        if not self.has_validation:
            self._say("the data has neither a validation nor a test split: training goes without validation")
            return []
        together = self.world_size * self.config.data.rows
        order = self._order_of(self._held_out, VALIDATION_SEED)
        self._count(order)
        wanted = self.config.trainer.validation_rows
        most = order.once if isinstance(order, Mixture) else wanted
        step = order.step(Position(), min(wanted, most), multiple=together)
        prefetcher = self._prefetcher_of(order, ahead=False)
        files, dead = prefetcher.open(step) if prefetcher else NOT_REMOTE
        mine = list(order.rows(step.epoch, step.share(self.rank, self.world_size), dead))
        micro_batches = split(mine, len(step.rows) // together, files)
        return self._batches(order, lambda: micro_batches, len(micro_batches))

    def _order_of(self, sets: list[list[Shard]], seed: int) -> RowOrder | Mixture:
        """Rows of all sets; of a mixture, by the weights of those sets that have any shard."""
        data = self.config.data
        orders = [
            RowOrder(shards, slots=data.slots, group=data.group, seed=seed, predicts_first=self.predicts_first)
            for shards in sets
            if shards
        ]
        if not data.mix:
            return orders[0]
        mixed = [one for one, shards in zip(data.mix, sets, strict=True) if shards]
        return Mixture(orders, [one.weight for one in mixed], [one.path for one in mixed], seed)

    def _prefetcher_of(self, order: RowOrder | Mixture, ahead: bool = True) -> Prefetcher | MixedPrefetcher | None:
        """None if all shards are on local disks."""
        if not any(isinstance(shard, RemoteShard) for shard in order.shards):
            return None
        orders = order.orders if isinstance(order, Mixture) else [order]
        skip_dead = self.config.data.skip_dead
        found = [Prefetcher(one, self.rank, self.world_size, skip_dead=skip_dead, ahead=ahead) for one in orders]
        return MixedPrefetcher(order, found) if isinstance(order, Mixture) else found[0]

    def _batches(self, order: RowOrder | Mixture, deal: Callable[[], Iterable[MicroBatch]], length: int) -> Batches:
        paths = [shard.path for shard in order.shards]
        reader = RowReader(paths, dim=self.prepared.codec.dim, slots=order.slots, seed=order.seed)
        return Batches(reader, deal, length, self.config.data.workers)

    def _say(self, text: str) -> None:
        if self.rank == 0:
            print(text, file=sys.stderr)
