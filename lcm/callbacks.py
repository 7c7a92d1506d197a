"""When a training run is saved."""

import math
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from lcm.checkpoint import BEST, LAST, save_model
from lcm.module import LCMModule


class Checkpoints(Checkpoint):
    """last.ckpt every `every` steps and after the final one; best.ckpt and model.safetensors at each lowest val/loss.

    last.ckpt is written after the validation of its step, where there is one: saved before, a resumed run would
    skip that validation and not know the newest best score. Without validation, the last model counts as the best.
    """

    def __init__(self, folder: Path, every: int, validate_every: int) -> None:
        self.folder = folder
        self.every = every
        self.validate_every = validate_every
        self.best = math.inf
        self.saved = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The best score counts only beside the model that reached it: not in a run that starts from another's."""
        if (self.folder / "checkpoints" / BEST).is_file():
            self.best = state_dict["best"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        if step == trainer.max_steps:
            trainer.should_stop = True  # Lightning then validates once more, whatever the interval
        validates = trainer.limit_val_batches and (trainer.should_stop or step % self.validate_every == 0)
        if not validates:
            self._save_last(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = float(trainer.callback_metrics["val/loss"])
        if loss < self.best:
            self.best = loss
            trainer.save_checkpoint(self.folder / "checkpoints" / BEST, weights_only=False)
            self._save_model(trainer)
        self._save_last(trainer)

    def _save_last(self, trainer: L.Trainer) -> None:
        step = trainer.global_step
        if step == self.saved or (step % self.every and step != trainer.max_steps):
            return
        self.saved = step
        trainer.save_checkpoint(self.folder / "checkpoints" / LAST, weights_only=False)
        if not trainer.limit_val_batches:
            self._save_model(trainer)

    def _save_model(self, trainer: L.Trainer) -> None:
        module = trainer.lightning_module
        assert isinstance(module, LCMModule)
        if trainer.is_global_zero:
            save_model(self.folder, module.model, module.config)
