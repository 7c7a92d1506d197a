"""Validation that writes: texts of the model as it is, scored beside the loss."""

import lightning as L

from lcm.training.module import LCMModule


class Writing(L.Callback):
    """Has texts written and scored at each validation after `trainer.write_every` steps, and at the last one.

    Rank 0 writes, for `LCMModule.held_out` and with a copy of the model, so nothing of the training changes; the other
    ranks wait for it.

    scores: by name; empty where the newest validation wrote nothing
    """

    def __init__(self, every: int) -> None:
        """every: optimizer steps; 0 for never"""
        self.every = every
        self.scores: dict[str, float] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.scores = {}
        if not self.every or (trainer.global_step % self.every and not trainer.should_stop):
            return
        assert isinstance(pl_module, LCMModule)
        state = trainer.strategy.lightning_module_state_dict()  # a collective: every rank calls it
        found = dict[str, float]()
        if trainer.is_global_zero:
            assert pl_module.held_out, "opened before training"
            whole = {name.removeprefix("model."): tensor for name, tensor in state.items()}
            found = pl_module.held_out.scores(whole, pl_module.device)
        self.scores = trainer.strategy.broadcast(found)
