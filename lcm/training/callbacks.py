"""When a run is saved, and when it stops before its end."""

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint

from lcm.config import TrainerConfig
from lcm.errors import UserError
from lcm.models import save_model
from lcm.training import signals
from lcm.training.checkpoint import BEST, LAST, AtomicCheckpointIO, keep_copy
from lcm.training.engine import collective_timeout
from lcm.training.module import LCMModule
from lcm.training.writing import Writing


class Stopped(Exception):
    """All ranks have stopped after the same step, which last.ckpt holds. request: one of lcm.training.signals."""

    def __init__(self, request: int, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.request, self.step = request, step


class Agreement:
    """Agree across ranks whether to stop. The answer arrives one step late, so no GPU ever waits for it.

    At the end of a step, each rank reads the answer of the step before and asks again: an all-reduce during the next.
    """

    def __init__(self, world_size: int, timeout: timedelta) -> None:
        self._group = dist.new_group(backend="gloo", timeout=timeout) if world_size > 1 else None
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def requested(self) -> int:
        """The largest request of any rank. Every rank calls this once a step, and all get the same answer."""
        if self._group is None:
            return signals.requested()
        answer = signals.CONTINUE
        if self._pending is not None:
            largest, work = self._pending
            work.wait()
            answer = int(largest)
        largest = torch.tensor([signals.requested()])
        started = dist.all_reduce(largest, dist.ReduceOp.MAX, self._group, async_op=True)
        assert started is not None
        self._pending = largest, started
        return answer


class Checkpoints(Checkpoint):
    """last.ckpt every `every` steps and after the final one; best.ckpt and model.safetensors at each best score.

    The score is that of `trainer.watch`: val/loss, or one of the texts that `Writing` scores. After
    `trainer.early_stop` scores without a new best one the run ends as after its last step.

    A request to stop takes effect after the first step by which all ranks know of it; last.ckpt is of that step.

    last.ckpt is written after the validation of its step, if there is one: a run resumed from an earlier save would
    skip that validation, and not know the newest best score. Without validation, the last model counts as the best.
    """

    def __init__(self, folder: Path, settings: TrainerConfig, writing: Writing) -> None:
        self.folder, self.settings, self.writing = folder, settings, writing
        self.watchdog: signals.Watchdog | None = None
        self.best = math.inf
        """The best score so far; of scores of which more is better, with the other sign."""
        self.saved = self.copied = 0
        """Steps of last.ckpt, also while it is still being written, and of the newest step-*.ckpt."""
        self.request = signals.CONTINUE
        self.early = False
        self.ending: Exception | None = None
        """Ends training before the next step; last.ckpt is of the newest step by then."""
        self.agreement: Agreement | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "watch": self.settings.watch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, but only beside the model that reached it: a run may start from another run's.

        Where another score is watched than before, the next one is the best so far.
        """
        same = state_dict.get("watch", "val/loss") == self.settings.watch
        if same and (self.folder / "checkpoints" / BEST).is_file():
            self.best = state_dict["best"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.begin()
        self.saved = self.copied = trainer.global_step
        self.agreement = Agreement(trainer.world_size, collective_timeout(self.settings))
        if trainer.world_size > 1:
            self._check_same_start(trainer)
            self.watchdog = signals.Watchdog(trainer.global_rank, trainer.world_size, self.settings.patience)
            self.watchdog.start(trainer.global_step)

    def _check_same_start(self, trainer: L.Trainer) -> None:
        """Take rank 0's best score. Raises UserError where ranks resume from different steps.

        Each rank looks for checkpoints by itself, and ranks on other nodes may see other files.
        """
        starts: list[tuple[int, float]] = [(0, 0.0)] * trainer.world_size
        dist.all_gather_object(starts, (trainer.global_step, self.best))
        steps, self.best = [step for step, _ in starts], starts[0][1]
        if other := [rank for rank, step in enumerate(steps) if step != steps[0]]:
            raise UserError(
                f"rank 0 begins after step {steps[0]:,}, rank {other[0]} after step {steps[other[0]]:,}; "
                f"run.dir={self.folder} must be one folder for all of them, so choose one on a shared disk"
            )

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self._beat(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.watchdog is not None:
            self.watchdog.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def _beat(self, trainer: L.Trainer, reads: bool = True) -> None:
        if self.watchdog is not None:
            self.watchdog.beat(trainer.global_step, reads)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        self._beat(trainer)
        assert isinstance(pl_module, LCMModule)
        assert self.agreement is not None
        self.request = self.agreement.requested()
        if pl_module.stop_reason:
            self.request, self.ending = signals.STOP, UserError(pl_module.stop_reason)
        if step == trainer.max_steps:
            trainer.should_stop = True  # Lightning then validates once more, whatever the interval
        validates = trainer.limit_val_batches and (trainer.should_stop or step % self.settings.validate_every == 0)
        if not validates:
            self._save_last(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raises UserError, here or before the next step, where no model can be chosen by the validation's loss."""
        loss = float(trainer.callback_metrics.get("val/loss", math.nan))
        if not math.isfinite(loss):
            self.request, self.ending = signals.STOP, UserError(self._no_score(loss, trainer))
            self._save_last(trainer)
            if trainer.global_step == trainer.max_steps:
                raise self.ending
            return
        assert isinstance(pl_module, LCMModule)
        metrics = {f"val/{name}": value for name, value in self.writing.scores.items()}
        if (score := self._score(loss)) is not None:
            pl_module.scores_without_best = 0 if score < self.best else pl_module.scores_without_best + 1
            if self.settings.early_stop:
                metrics["val/scores_without_best"] = float(pl_module.scores_without_best)
        if metrics:
            pl_module.report(metrics)
        if score is not None and score < self.best:
            self.best = score
            self._save(trainer, BEST)
            self._save_model(trainer)
        if 0 < self.settings.early_stop <= pl_module.scores_without_best:
            self.early = trainer.should_stop = True
        self._save_last(trainer)

    def _score(self, loss: float) -> float | None:
        """The newest score, of which less is better; None where this validation has none."""
        if (watch := self.settings.watch) == "val/loss":
            return loss
        score = self.writing.scores.get(watch)
        return None if score is None else -score

    def _no_score(self, loss: float, trainer: L.Trainer) -> str:
        step, last = trainer.global_step, self.folder / "checkpoints" / LAST
        if "val/loss" not in trainer.callback_metrics:
            return (
                f"data.path: the validation split has nothing to predict, so after step {step:,} no model can be "
                "chosen as the best; expected documents of two sentences or more there, or no validation split"
            )
        best = (
            f"the best model so far is of {self.settings.watch} {abs(self.best):.4g}"
            if self.best < math.inf
            else "there is no model yet"
        )
        return (
            f"val/loss is {loss} after step {step:,}, so no model can be chosen by it: the validation split holds a "
            f"number that is not finite, or training has diverged; {best}; put it right, and the same command resumes "
            f"from {last}"
        )

    def _save_last(self, trainer: L.Trainer) -> None:
        step = trainer.global_step
        ends = step == trainer.max_steps or self.early
        if step != self.saved and (step % self.settings.checkpoint_every == 0 or ends or self.request):
            self._save(trainer, LAST)
            self.saved = step
            if not trainer.limit_val_batches:
                self._save_model(trainer)
        if self.request and not ends:
            self._finish_writing(trainer)
            trainer.strategy.barrier()  # no rank ends before the checkpoint is on disk
            self.ending = self.ending or Stopped(self.request, step)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Stop here rather than at the end of the last step, which the module reports after this callback."""
        if self.ending is not None:
            raise self.ending
        self._beat(trainer, reads=False)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish_writing(trainer)

    def _save(self, trainer: L.Trainer, name: str) -> None:
        self._finish_writing(trainer)
        trainer.save_checkpoint(self.folder / "checkpoints" / name, weights_only=False)

    def _finish_writing(self, trainer: L.Trainer) -> None:
        """Wait for the background writer; then keep a copy of last.ckpt, if `trainer.keep` asks for more than one."""
        io = trainer.strategy.checkpoint_io
        if isinstance(io, AtomicCheckpointIO):
            io.wait()
        last = self.folder / "checkpoints" / LAST
        if self.saved == self.copied or not last.is_file():
            return
        self.copied = self.saved
        if self.settings.keep > 1 and trainer.is_global_zero:
            keep_copy(last, self.saved, self.settings.keep)

    def _save_model(self, trainer: L.Trainer) -> None:
        module = trainer.lightning_module
        assert isinstance(module, LCMModule)
        if not any((self.folder / "checkpoints").glob("*.ckpt")):
            self._finish_writing(trainer)  # killed before the first is on disk, a run would have a model and no start
        state = trainer.strategy.lightning_module_state_dict()  # a collective: every rank calls it
        if trainer.is_global_zero:
            if bad := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
                raise UserError(
                    f"{bad[0]} is not finite after step {trainer.global_step:,}: training has diverged; "
                    f"lower optimizer.lr={module.config.optimizer.lr}, and resume from an older checkpoint"
                )
            save_model(self.folder, {name.removeprefix("model."): t for name, t in state.items()}, module.config)
