"""The Lightning side of training: loss scaling, optimizer, learning rate, throughput. Knows no model by name.

Shapes.  B rows · S slots · N targets in the batch
"""

import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import lightning as L
import torch
from torch import Tensor, distributed
from torch.optim import Optimizer

from lcm import __version__
from lcm.batch import PAD, Batch
from lcm.config import Config
from lcm.errors import UserError
from lcm.models import ConceptModel, build_model
from lcm.seeds import derive_seed
from lcm.training.deepspeed import ZeRO
from lcm.training.flops import peak_flops
from lcm.training.optimizer import build_optimizer, learning_rate
from lcm.training.strategies import FSDP, clip, clipped_norm, divisor, left_out_by_engine, slicer


class LCMModule(L.LightningModule):
    """Trains any ConceptModel on the batches of a DataModule whose `advance()` moves its position one micro-batch on.

    What its `metrics()` say is reported beside the loss.

    reported: the metrics of the newest report, by name; `step` counts the optimizer steps that are done.
    """

    def __init__(self, config: Config, model: ConceptModel, fill: Callable[[ConceptModel], None] | None = None) -> None:
        """fill: puts what the data says into a model; for one on `torch.device("meta")`, which is built in slices."""
        super().__init__()
        self.config = config
        self.model = model
        self._fill = fill
        self.reported: dict[str, float] = {}
        self._step_targets = self._step_loss = torch.zeros(())
        self._gradient_norm = torch.zeros(())
        self._skipped = torch.zeros(())
        self._in_a_row = torch.zeros(())
        self._skipped_by_engine = 0
        self.hopeless: str | None = None
        """Why training should end, once it should; the weights are good."""
        self._concepts = torch.zeros((), dtype=torch.long)
        self._clock = time.perf_counter()
        self._validation: dict[str, float] = {}
        self._set_up(model)

    def configure_model(self) -> None:
        """Build the model in slices, block by block, so that no process ever holds all of it; the same as in one."""
        slice_up = slicer(self.trainer.strategy)
        if slice_up is None or self._fill is None:
            return

        torch.manual_seed(self.config.run.seed)
        self.model = build_model(self.config.model, slice_up)
        self._set_up(self.model)
        self._fill(self.model)
        self._fill = None
        slice_up(self.model)

    def _set_up(self, model: ConceptModel) -> None:
        for stack in model.stacks():
            stack.recompute = self.config.trainer.checkpoint_activations
        if self.config.trainer.compile:
            for block in model.blocks():
                block.compile()  # type: ignore[no-untyped-call]  # in place: no name in the state dict changes

    # ---- one optimizer step ----

    def on_train_start(self) -> None:
        """A resumed optimizer brings its old settings along; the configuration's count."""
        fresh = self.configure_optimizers()
        for group, wanted in zip(self.trainer.optimizers[0].param_groups, fresh.param_groups, strict=True):
            group.update({name: value for name, value in wanted.items() if name != "params"})
        self._restart_clock()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        lr = learning_rate(self.global_step, self.config.optimizer, self.config.trainer.max_steps)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = lr

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss over the targets of the whole optimizer step, of which this is one rank's micro-batch.

        Scaled by the world size, because ranks are averaged, and by the accumulation, because Lightning divides by
        it: the gradient then depends neither on padding, nor on the accumulation, nor on the split over ranks.
        """
        accumulate = self.trainer.accumulate_grad_batches
        step, micro_batch = self.global_step, batch_idx % accumulate
        torch.manual_seed(derive_seed(self.config.run.seed, step, micro_batch, self.global_rank))  # for dropout
        # Here and not in on_train_batch_end, before which Lightning's own ModelCheckpoint saves.
        self.trainer.datamodule.advance()  # type: ignore[attr-defined]  # Trainer.fit sets it
        if micro_batch == 0:
            self._step_targets = self._over_all_ranks(batch.step_targets)

        try:
            with self._autocast():
                total = self.model(batch).per_target.sum()
        except torch.OutOfMemoryError as error:
            total = self._without_memory(error)
        loss = total * self.trainer.world_size / self._step_targets.clamp(min=1)
        done = loss.detach()
        self._step_loss = done if micro_batch == 0 else self._step_loss + done
        self._concepts = self._concepts.to(self.device) + (batch.doc != PAD).sum()
        return loss * divisor(self.trainer.strategy, accumulate)

    def _over_all_ranks(self, targets: Tensor) -> Tensor:
        """The sum, on the device. Lightning's own `reduce` would put a barrier before it."""
        if self.trainer.world_size == 1 or not (distributed.is_available() and distributed.is_initialized()):
            return targets
        total = targets.clone()
        distributed.all_reduce(total)
        return total

    def _without_memory(self, error: torch.OutOfMemoryError) -> Tensor:
        """NaN for every parameter, so that all processes meet as they would have, and leave the step out.

        Raises UserError where processes wait for one another during the forward pass: then they cannot meet any more.
        """
        settings = self.config
        told = (
            f"process {self.global_rank} is out of memory at step {self.global_step}: lower data.rows="
            f"{settings.data.rows}, or set trainer.checkpoint_activations=true"
        )
        if isinstance(self.trainer.strategy, FSDP | ZeRO):
            raise UserError(told) from error
        print(f"{told}; the step is left out", file=sys.stderr)
        torch.cuda.empty_cache()
        return math.nan * torch.stack([p.float().sum() for p in self.model.parameters()]).sum()

    def _autocast(self) -> AbstractContextManager[Any]:
        """Ours, so that it means the same with every strategy.

        A cache of the weights in bf16 would hold all of them at the end of the pass: not where the model is sliced.
        """
        is_whole = slicer(self.trainer.strategy) is None
        enabled = self.config.trainer.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=is_whole)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm over all parameters, and keep the norm for the report."""
        norm = clip(self.trainer.strategy, self.parameters(), gradient_clip_val or math.inf)
        if norm is None:
            return
        self._gradient_norm = norm
        # The norm is the same for every process, so all leave the step out or none. Fused AdamW does so by itself, with
        # weights, moments and count of steps: nobody waits for a GPU to say how it was.
        left_out = (~norm.isfinite()).float()
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = left_out  # type: ignore[attr-defined]  # by which GradScaler tells it
        self._skipped = self._skipped.to(self.device) + left_out
        self._in_a_row = (self._in_a_row.to(self.device) + 1) * left_out

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        steps_every, accumulate = self.config.trainer.log_every, self.trainer.accumulate_grad_batches
        if (batch_idx + 1) % accumulate == 0:
            self._ask_engine()
        if (batch_idx + 1) % accumulate == 0 and self.global_step % steps_every == 0:
            self._report_training()

    def _ask_engine(self) -> None:
        """What an engine that clips and leaves out steps by itself says of the newest."""
        if (norm := clipped_norm(self.trainer.strategy)) is not None:
            self._gradient_norm = torch.tensor(norm)
        if (skipped := left_out_by_engine(self.trainer.strategy)) is not None:
            left_out = skipped - self._skipped_by_engine
            self._skipped_by_engine = skipped
            self._skipped = self._skipped + left_out
            self._in_a_row = (self._in_a_row + 1) * left_out

    def configure_optimizers(self) -> Optimizer:
        return build_optimizer(self.model, self.config.optimizer)

    # ---- reports ----

    def _report_training(self) -> None:
        self._notice_divergence()
        loss = float(self.trainer.strategy.reduce(self._step_loss, reduce_op="mean"))
        concepts = float(self.trainer.strategy.reduce(self._concepts, reduce_op="sum"))
        speed = concepts / (time.perf_counter() - self._clock)
        metrics = {
            "train/loss": loss,
            "train/gradient_norm": float(self._gradient_norm),
            "train/lr": self.trainer.optimizers[0].param_groups[0]["lr"],
            "train/concepts_per_second": speed,
        }
        peak = peak_flops(self.device, self.config.trainer.precision)
        if self._skipped:
            metrics["train/skipped"] = float(self._skipped)
        metrics |= self.trainer.datamodule.metrics()  # type: ignore[attr-defined]  # Trainer.fit sets it
        if peak:
            metrics["train/mfu"] = speed * self._flops / (peak * self.trainer.world_size)
        self._report(metrics)
        self._restart_clock()

    @cached_property
    def _flops(self) -> int:
        """Of one concept. Counted on a sketch: of the model itself this process may hold a slice."""
        with torch.device("meta"):
            return build_model(self.config.model).training_flops(self.config.data.slots)

    def _notice_divergence(self) -> None:
        """By the gradient's norm, which is the same for every process."""
        in_a_row, allowed = int(self._in_a_row), self.config.trainer.skips
        if in_a_row <= allowed:
            return
        settings = self.config.optimizer
        why = (
            f"the gradient is {float(self._gradient_norm)} at step {self.global_step}: training has diverged; lower "
            f"optimizer.lr={settings.lr} or optimizer.clip={settings.clip}, and go on from the last checkpoint"
        )
        self.hopeless = self.hopeless or why

    def _report(self, metrics: Mapping[str, float]) -> None:
        self.reported = {**self.reported, **metrics, "step": self.global_step}
        for logger in self.loggers:
            logger.log_metrics(dict(metrics), step=self.global_step)

    def _restart_clock(self) -> None:
        self._clock = time.perf_counter()
        self._concepts.zero_()

    # ---- validation ----

    def on_validation_start(self) -> None:
        self._validation = {}
        self._clock -= time.perf_counter()  # stopped: validation does not count as training time

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        with self._autocast():
            losses = self.model(batch)
        numbers = {"count": torch.ones_like(losses.per_target), "loss": losses.per_target, **losses.meters}
        for name, value in numbers.items():
            self._validation[name] = self._validation.get(name, 0.0) + float(value.sum())

    def on_validation_epoch_end(self) -> None:
        """Sums over all ranks, divided by the number of targets: no batch counts more than another."""
        sums = torch.tensor(list(self._validation.values()), device=self.device)
        reduced = self.trainer.strategy.reduce(sums, reduce_op="sum")
        total = dict(zip(self._validation, reduced.tolist(), strict=True))
        count = total.pop("count", 0.0)
        if count:
            metrics = {f"val/{name}": value / count for name, value in total.items()}
            self.log_dict(metrics, logger=False, sync_dist=True)  # for callbacks: the same number on every rank
            self._report(metrics)

    def on_validation_end(self) -> None:
        self._clock += time.perf_counter()

    # ---- checkpoints ----

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._notice_divergence()
        checkpoint["config"] = self.config.model_dump(mode="json")
        checkpoint["metrics"] = dict(self.reported)
        checkpoint["skipped"] = int(self._skipped)
        checkpoint["versions"] = {"lcm": __version__, "torch": str(torch.__version__), "lightning": L.__version__}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Recount Lightning's batches, because the accumulation may have changed since: steps · accumulation."""
        self.reported = checkpoint["metrics"]
        self._skipped = torch.tensor(float(checkpoint.get("skipped", 0)))
        batches = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        progress["is_last_batch"] = False  # max_steps may have been raised
        for counts in (progress["total"], progress["current"]):
            # A checkpoint saved in on_train_batch_end has its last batch ready, but not yet completed.
            unfinished = counts["ready"] - counts["completed"]
            counts.update(ready=batches, started=batches, processed=batches, completed=batches - unfinished)
