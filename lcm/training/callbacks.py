"""When a training run is saved, and when it is left before its end."""

import math
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint

from lcm.config import TrainerConfig
from lcm.errors import UserError
from lcm.models import save_state
from lcm.training import signals
from lcm.training.checkpoint import BEST, LAST, AtomicCheckpointIO, keep_copy
from lcm.training.module import LCMModule
from lcm.training.strategies import timeout_of
from lcm.training.watchdog import Watch, end_process


class Left(Exception):
    """All processes have left together, after the last step in last.ckpt. wish: lcm.training.signals's."""

    def __init__(self, wish: int, step: int) -> None:
        super().__init__(f"left after step {step}")
        self.wish, self.step = wish, step


class Agreement:
    """What all processes know of one another's wishes, one step late, so that no GPU is ever waited for.

    Every step ends with the question of the step before being answered and the next one being asked, by a reduction
    over the processes that runs on the CPUs during the step.
    """

    def __init__(self, processes: int, timeout: timedelta) -> None:
        self._group = dist.new_group(backend="gloo", timeout=timeout) if processes > 1 else None
        self._asked: tuple[torch.Tensor, dist.Work] | None = None

    def wish(self) -> int:
        """The largest; the same for every process. Called once a step by each."""
        if self._group is None:
            return signals.wish()
        known = self._answer()
        question = torch.tensor([signals.wish()])
        work = dist.all_reduce(question, dist.ReduceOp.MAX, self._group, async_op=True)
        assert work is not None
        self._asked = question, work
        return known

    def of_all(self, numbers: Sequence[float]) -> list[list[float]]:
        """These numbers of each process. Waits for them."""
        mine = torch.tensor(numbers, dtype=torch.float64)
        if self._group is None:
            return [mine.tolist()]
        found = [torch.empty_like(mine) for _ in range(self._group.size())]
        dist.all_gather(found, mine, self._group)
        return [theirs.tolist() for theirs in found]

    def _answer(self) -> int:
        if self._asked is None:
            return signals.STAY
        question, work = self._asked
        work.wait()
        return int(question)


class Checkpoints(Checkpoint):
    """last.ckpt every `every` steps and after the final one; best.ckpt and model.safetensors at each lowest val/loss.

    A wish to leave is met after the first step that all processes know of it, and last.ckpt is of that step.

    last.ckpt is written after the validation of its step, where there is one: saved before, a resumed run would
    skip that validation and not know the newest best score. Without validation, the last model counts as the best.
    """

    def __init__(self, folder: Path, settings: TrainerConfig) -> None:
        self.folder = folder
        self.settings = settings
        self.watch: Watch | None = None
        self.best = math.inf
        self.saved = 0
        """The step that last.ckpt is of, or will be when it is written."""
        self.kept = 0
        self.leaving = signals.STAY
        self.why: Exception | None = None
        """What training ends with, once last.ckpt is of the newest step."""
        self.agreement: Agreement | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The best score counts only beside the model that reached it: not in a run that starts from another's."""
        if (self.folder / "checkpoints" / BEST).is_file():
            self.best = state_dict["best"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved = self.kept = trainer.global_step
        self.agreement = Agreement(trainer.world_size, timeout_of(self.settings))
        self._begin_alike(trainer)
        if trainer.world_size > 1:
            self.watch = Watch(trainer.global_rank, trainer.world_size, self.settings.patience, end_process)
            self.watch.start(trainer.global_step)

    def _begin_alike(self, trainer: L.Trainer) -> None:
        """Each process looks for checkpoints by itself; those on other machines may see other files.

        Raises UserError where they go on from different steps.
        """
        assert self.agreement is not None
        found = self.agreement.of_all([float(trainer.global_step), float(self.best)])
        steps, self.best = [int(step) for step, _ in found], found[0][1]
        if other := [rank for rank, step in enumerate(steps) if step != steps[0]]:
            raise UserError(
                f"process 0 begins after step {steps[0]:,}, process {other[0]} after step {steps[other[0]]:,}; "
                f"run.dir={self.folder} must be one folder for all of them, so choose one on a shared disk"
            )

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self._beat(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.watch is not None:
            self.watch.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self.watch is not None:
            self.watch.stop()

    def _beat(self, trainer: L.Trainer, reads: bool = True) -> None:
        if self.watch is not None:
            self.watch.beat(trainer.global_step, reads)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        self._beat(trainer)
        assert isinstance(pl_module, LCMModule)
        assert self.agreement is not None
        self.leaving = self.agreement.wish()
        if pl_module.hopeless:
            self.leaving, self.why = signals.LEAVE, UserError(pl_module.hopeless)
        if step == trainer.max_steps:
            trainer.should_stop = True  # Lightning then validates once more, whatever the interval
        validates = trainer.limit_val_batches and (trainer.should_stop or step % self.settings.validate_every == 0)
        if not validates:
            self._save_last(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = float(trainer.callback_metrics["val/loss"])
        if loss < self.best:
            self.best = loss
            self._save(trainer, BEST)
            self._save_model(trainer)
        self._save_last(trainer)

    def _save_last(self, trainer: L.Trainer) -> None:
        step = trainer.global_step
        ends = step == trainer.max_steps
        if step != self.saved and (step % self.settings.checkpoint_every == 0 or ends or self.leaving):
            self._save(trainer, LAST)
            self.saved = step
            if not trainer.limit_val_batches:
                self._save_model(trainer)
        if self.leaving and not ends:
            self._written(trainer)
            trainer.strategy.barrier()  # nobody goes before the checkpoint is there
            self.why = self.why or Left(self.leaving, step)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Only now, because the step that is left after is reported when this callback is through with it."""
        if self.why is not None:
            raise self.why
        self._beat(trainer, reads=False)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._written(trainer)

    def _save(self, trainer: L.Trainer, name: str) -> None:
        self._written(trainer)
        trainer.save_checkpoint(self.folder / "checkpoints" / name, weights_only=False)

    def _written(self, trainer: L.Trainer) -> None:
        """Wait for what is written in the background; then the newest checkpoint is one of those that are kept."""
        io = trainer.strategy.checkpoint_io
        if isinstance(io, AtomicCheckpointIO):
            io.wait()
        last = self.folder / "checkpoints" / LAST
        if self.saved == self.kept or not last.is_file():
            return
        self.kept = self.saved
        if self.settings.keep > 1 and trainer.is_global_zero:
            keep_copy(last, self.saved, self.settings.keep)

    def _save_model(self, trainer: L.Trainer) -> None:
        module = trainer.lightning_module
        assert isinstance(module, LCMModule)
        state = trainer.strategy.lightning_module_state_dict()  # by all processes together
        if trainer.is_global_zero:
            save_state(self.folder, {name.removeprefix("model."): t for name, t in state.items()}, module.config)
