"""What a run trains on: deals the plan's rows to the ranks, and knows exactly where training stands.

    data = ConceptData(config, predicts_first=model.predicts_first)
    data.setup()  # opens manifests, and fetches indexes from elsewhere: data.codec, data.dim, data.normalizer
    trainer.fit(LCMModule(config, model), datamodule=data)

Which rows make a step depends on the number of ranks, micro-batches and rows alone; workers change nothing but speed.
"""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import islice

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, distributed

from lcm.batch import Batch
from lcm.config import CodecRecord, Config
from lcm.data.dataset import PreparedData, RemoteShard, Shard
from lcm.data.groups import Groups
from lcm.data.loader import Batches, RowReader
from lcm.data.order import Plan
from lcm.data.prefetch import check_cache, fetch_indexes
from lcm.data.shard_cache import ShardCache
from lcm.data.steps import Position, Share
from lcm.errors import UserError

VALIDATION_SEED = 0
"""Of the order of validation: the same rows in every run, whatever the run's own seed."""


class ConceptData(L.LightningDataModule):
    """The data of one run, on one rank.

    Lightning sees a single long epoch of max_steps · accumulate micro-batches; epochs of the data are the plan's
    business. `advance()` is called for every micro-batch that is trained. `state_dict()` is where the last whole step
    left off: nothing in it depends on the rank, and the next run may have any number of ranks, workers, micro-batches.
    """

    def __init__(self, config: Config, predicts_first: bool, *, rank: int = 0, world_size: int = 1) -> None:
        """predicts_first: the model's. rank, world_size: where no Trainer is attached that knows them."""
        super().__init__()
        self.config = config
        self.predicts_first = predicts_first
        self.rank, self.world_size = rank, world_size
        self.position = Position()
        self.steps = 0  # optimizer steps trained
        self._micro_batches = 0  # trained since the last whole step
        self._counted = False
        self._dealt: deque[Position] = deque()  # positions after the steps that are dealt, but not yet trained
        self._targets = self._step_targets = torch.zeros(())  # the newest batch's; those of all ranks in its step

    # ---- what the data is ----

    def setup(self, stage: str = "fit") -> None:
        """Raises UserError where data.path names no prepared data, or data that does not fit the model or the cache."""
        if self.trainer:
            self.rank, self.world_size = self.trainer.global_rank, self.trainer.world_size
        if self.dim != self.config.model.dim:
            folder = next(iter(self.prepared.manifests))
            raise UserError(
                f"model.dim={self.config.model.dim}, but the concepts of {folder} have {self.dim} channels "
                f"(codec '{self.codec.name}'); set model.dim={self.dim}, or data.path to data of another codec"
            )
        if remote := [s for s in (*self._to_train, *self._held_out) if isinstance(s, RemoteShard)]:
            check_cache(self._to_train, self._held_out, self.config.data.group, self.prepared.cache)
            fetch_indexes(remote)

    @cached_property
    def prepared(self) -> PreparedData:
        data = self.config.data
        return PreparedData(data.path, ShardCache(data.cache, round(data.cache_gb * 1e9), data.retries))

    @property
    def dim(self) -> int:
        """Width of a concept."""
        return self.codec.dim

    @property
    def codec(self) -> CodecRecord:
        """For the configuration that is saved with the model."""
        return self.prepared.codec

    @property
    def normalizer(self) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
        """(location, scale), for `model.normalizer.set`."""
        return self.prepared.normalizer

    @property
    def end_of_text(self) -> Float[Tensor, " D"]:
        """The vector that ends every document, fp16."""
        return self.prepared.end_of_text(self.config.data.skip_dead)

    # ---- training ----

    @cached_property
    def _to_train(self) -> list[Shard]:
        return self.prepared.shards("train")

    @cached_property
    def plan(self) -> Plan:
        return self._plan(self._to_train, self.config.run.seed)

    @cached_property
    def _groups(self) -> Groups | None:
        """None where all shards are here."""
        return self._groups_of(self._to_train, in_order=True)

    def metrics(self) -> dict[str, float]:
        """Where shards may be left out: how many of them could not be fetched since this process began."""
        return {"data/dead_shards": float(self._groups.dead)} if self._groups and self.config.data.skip_dead else {}

    def train_dataloader(self) -> Batches:
        return self._batches(self.plan, self._to_train, TrainingShares(self), self._groups)

    def training_shares(self) -> Iterator[Share]:
        """This rank's micro-batches from where training stands to max_steps."""
        accumulate = self.config.trainer.accumulate
        self._micro_batches = 0
        self._dealt.clear()
        if self._together:
            self._count_together()
        rows = self.world_size * accumulate * self.config.data.rows
        steps = self.plan.steps(self.position, rows, self._groups.begin if self._groups else None)
        for step in islice(steps, max(0, self.config.trainer.max_steps - self.steps)):
            self._dealt.append(step.after)
            yield from step.shares(self.rank, self.world_size, accumulate, targets_of_all=not self._together)

    @property
    def _together(self) -> bool:
        """Whether the other ranks are there to be asked; else all that is theirs is computed here."""
        return self.world_size > 1 and distributed.is_available() and distributed.is_initialized()

    def _count_together(self) -> None:
        """Where the rows of each bundle begin: every rank counts some, and all know it."""
        assert self.trainer, "processes that have met are a Trainer's"
        if self._counted:  # by all, or by none: what this rank knows already is no reason not to meet the others
            return
        mine, broken = np.arange(self.rank, len(self.plan.rows_in), self.world_size), None
        counts = torch.zeros(len(self.plan.rows_in) + 1, dtype=torch.int32)
        try:
            self.plan.count(mine)
        except UserError as error:
            broken = error
        counts[mine], counts[-1] = torch.from_numpy(self.plan.rows_in[mine]), int(broken is not None)
        counts = counts.to(self.trainer.strategy.root_device)
        distributed.all_reduce(counts)
        if broken:
            raise broken
        if counts[-1]:
            raise UserError("data.path: another process cannot read an index; its own line says which, and what to do")
        self.plan.rows_in[:] = counts[:-1].cpu().numpy()
        self._counted = True

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        self._targets = batch.step_targets
        return batch

    def advance(self) -> None:
        """One more micro-batch is trained. The position moves once all micro-batches of the step are.

        Called before its loss, by all ranks alike: its `step_targets` are those of this rank until then.
        """
        if self._together:
            self._add_up()
        self._micro_batches += 1
        if self._micro_batches == self.config.trainer.accumulate:
            self._micro_batches = 0
            self.position = self._dealt.popleft()
            self.steps += 1

    def _add_up(self) -> None:
        """Have the newest batch know the targets of all ranks.

        On the device itself, and here, not while batches are read: who waits for a rank that reads is in the step.
        """
        if self._micro_batches == 0:
            distributed.all_reduce(self._targets)
            self._step_targets = self._targets
        else:
            self._targets.copy_(self._step_targets)

    def state_dict(self) -> dict[str, int]:
        return {**asdict(self.position), "steps": self.steps, "plan": self.plan.fingerprint}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on where the checkpoint was; Lightning calls this before it opens the loader.

        If the order of the data is another one since, rows cannot be matched: the next epoch begins.
        """
        state = dict(state_dict)
        self.steps, fingerprint = state.pop("steps"), state.pop("plan")
        self.position = Position(**state)
        if fingerprint != self.plan.fingerprint:
            self.position = Position(epoch=self.position.epoch + 1)
            self._say(
                "the data, data.slots, data.group, run.seed or the order of this version changed since the checkpoint: "
                f"training goes on at the start of epoch {self.position.epoch} of the data"
            )

    # ---- validation ----

    @property
    def has_validation(self) -> bool:
        return bool(self._held_out)

    @cached_property
    def _held_out(self) -> list[Shard]:
        """The validation split; the test split where there is none."""
        return self.prepared.shards("validation") or self.prepared.shards("test")

    def val_dataloader(self) -> Batches | list[Batches]:
        """The same trainer.validation_rows rows every time; step_targets are those of the whole pass on all ranks.

        Shuffled, so that they come from all folders and from all parts of each. Every rank has as many batches.
        """
        if not self.has_validation:
            self._say("the data has neither a validation nor a test split: training goes without validation")
            return []
        together = self.world_size * self.config.data.rows
        plan = self._plan(self._held_out, VALIDATION_SEED)
        groups = self._groups_of(self._held_out, in_order=False)
        begin = groups.begin if groups else None
        everything = plan.first_rows(self.config.trainer.validation_rows, together, begin)
        shares = everything.shares(self.rank, self.world_size, everything.size // together)
        return self._batches(plan, self._held_out, shares, groups)

    # ---- both ----

    def _plan(self, shards: list[Shard], seed: int) -> Plan:
        data = self.config.data
        return Plan(shards, slots=data.slots, group=data.group, seed=seed, predicts_first=self.predicts_first)

    def _groups_of(self, shards: Sequence[Shard], in_order: bool) -> Groups | None:
        if not any(isinstance(shard, RemoteShard) for shard in shards):
            return None
        return Groups(shards, self.rank, self.world_size, skip_dead=self.config.data.skip_dead, in_order=in_order)

    def _batches(
        self, plan: Plan, shards: list[Shard], shares: "TrainingShares | list[Share]", groups: Groups | None
    ) -> Batches:
        paths = [shard.path for shard in shards]
        files = groups.files if groups else None
        reader = RowReader(paths, dim=self.dim, slots=plan.slots, seed=plan.seed, files=files)
        return Batches(reader, shares, workers=self.config.data.workers)

    def _say(self, text: str) -> None:
        if self.rank == 0:
            print(text, file=sys.stderr)


class TrainingShares:
    """`training_shares`, asked for anew whenever an iteration begins: only then is it known where training stands."""

    def __init__(self, data: ConceptData) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Share]:
        return self.data.training_shares()

    def __len__(self) -> int:
        """Of the whole run, as Lightning wants it, which adds what earlier runs have trained to its own count."""
        trainer = self.data.config.trainer
        return trainer.max_steps * trainer.accumulate
