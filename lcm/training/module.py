"""The Lightning module: loss scaling, optimizer, learning rate, skipped steps, throughput. Knows no model by name.

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
from lcm.batch import PAD, Batch, derive_seed
from lcm.config import Config
from lcm.errors import UserError
from lcm.evaluation import HeldOut
from lcm.models import ConceptModel, build_model
from lcm.training.engine import Engine, build_optimizer, computes_in_bf16, learning_rate
from lcm.training.loggers import peak_flops
from lcm.training.parts import freeze


class LCMModule(L.LightningModule):
    """Trains any ConceptModel on the batches of a DataModule. The hooks of a step stand in the order of their calls.

    The DataModule's `advance()` counts one more micro-batch as trained; its `metrics()` are reported beside the loss.

    reported: the newest metrics by name; `step` is the number of finished optimizer steps
    """

    def __init__(
        self,
        config: Config,
        model: ConceptModel,
        fill_buffers: Callable[[ConceptModel], None] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take a model that is ready or, with `fill_buffers`, one on the meta device, to build another in its place.

        fill_buffers: fills the buffers of the one that is built
        weights:      its parameters, for fine-tuning; otherwise they are drawn
        """
        super().__init__()
        self._weights = weights
        self.config, self.model, self._fill_buffers = config, model, fill_buffers
        self._holds_all_weights = True
        self.reported: dict[str, float] = {}
        self._step_targets = self._step_loss = torch.zeros(())
        self._gradient_norm = self._skipped = self._skipped_in_a_row = torch.zeros(())
        self._skipped_by_engine = 0
        self.held_out: HeldOut | None = None
        """Held-out examples to write for at validations, on rank 0."""
        self.scores_without_best = 0
        """Scores of `trainer.watch` in a row that were no new best."""
        self.stop_reason: str | None = None
        """Why training should end, once it has diverged. The weights are still good."""
        self._concepts = torch.zeros((), dtype=torch.long)
        self._clock = time.perf_counter()
        self._validation: dict[str, float] = {}
        self._prepare_blocks(model)

    @property
    def _engine(self) -> Engine:
        """The strategy itself where it overrides what Lightning does; otherwise the plain engine."""
        strategy = self.trainer.strategy
        return strategy if isinstance(strategy, Engine) else Engine()

    def configure_model(self) -> None:
        """Build the model block by block and shard each one, with the same weights: no rank ever holds all of it."""
        shard = self._engine.shard_fn
        self._holds_all_weights = shard is None
        if shard is None or self._fill_buffers is None:
            return
        torch.manual_seed(self.config.run.seed)
        self.model = build_model(self.config.model, shard)
        self._prepare_blocks(self.model)
        self._fill_buffers(self.model)
        self._fill_buffers = None
        shard(self.model)
        if self._weights is not None:
            self._engine.fill(self.model, self._weights)
            self._weights = None

    def _prepare_blocks(self, model: ConceptModel) -> None:
        freeze(model, self.config.optimizer)
        for stack in model.stacks():
            stack.recompute = self.config.trainer.checkpoint_activations
        if self.config.trainer.compile:
            for block in model.blocks():
                block.compile()  # type: ignore[no-untyped-call]  # in place: no name in the state dict changes

    def configure_optimizers(self) -> Optimizer:
        return build_optimizer(self.model, self.config.optimizer)

    def on_train_start(self) -> None:
        """Replace the optimizer settings that a checkpoint restored by those of the configuration."""
        fresh = self.configure_optimizers()
        for group, wanted in zip(self.trainer.optimizers[0].param_groups, fresh.param_groups, strict=True):
            group.update({name: value for name, value in wanted.items() if name != "params"})
        self._restart_clock()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """This micro-batch's share of the mean loss over all targets of the optimizer step.

        Scaled by the world size, because gradients are averaged over ranks, and by what the engine divides the loss by.
        So the gradient depends neither on padding, nor on accumulation, nor on the split over ranks.
        """
        accumulate = self.trainer.accumulate_grad_batches
        step, micro_batch = self.global_step, batch_idx % accumulate
        torch.manual_seed(derive_seed(self.config.run.seed, step, micro_batch, self.global_rank))  # for dropout
        # Not in on_train_batch_end: callbacks run before that hook, and those that save would save the old position.
        self.trainer.datamodule.advance()  # type: ignore[attr-defined]  # Trainer.fit sets it
        if micro_batch == 0:
            self._step_targets = self._over_all_ranks(batch.step_targets)
        try:
            with self._autocast():
                total = self.model(batch).per_target.sum()
        except torch.OutOfMemoryError as error:
            total = self._out_of_memory(error)
        loss = total * self.trainer.world_size / self._step_targets.clamp(min=1)
        done = loss.detach()
        self._step_loss = done if micro_batch == 0 else self._step_loss + done
        self._concepts = self._concepts.to(self.device) + (batch.doc != PAD).sum()
        return loss * self._engine.divisor(accumulate)

    def _over_all_ranks(self, targets: Tensor) -> Tensor:
        """The sum over ranks, on the device. Lightning's own `reduce` would put a barrier before it."""
        if self.trainer.world_size == 1 or not (distributed.is_available() and distributed.is_initialized()):
            return targets
        total = targets.clone()
        distributed.all_reduce(total)
        return total

    def _out_of_memory(self, error: torch.OutOfMemoryError) -> Tensor:
        """A NaN loss that touches every parameter: each rank still joins the all-reduce, and all of them skip the step.

        Raises UserError where ranks exchange weights during the forward pass, which they cannot do any more.
        """
        message = (
            f"rank {self.global_rank} is out of memory at step {self.global_step}: lower data.rows="
            f"{self.config.data.rows}, or set trainer.checkpoint_activations=true"
        )
        if not self._engine.skips_out_of_memory:
            raise UserError(message) from error
        print(f"{message}; the step is skipped", file=sys.stderr)
        torch.cuda.empty_cache()
        return math.nan * torch.stack([p.float().sum() for p in self.model.parameters()]).sum()

    def _autocast(self) -> AbstractContextManager[Any]:
        """bf16 by our own autocast, which means the same under every strategy.

        Its cache holds the weights in bf16 until the pass is over: too much where ranks hold shards.
        """
        enabled = computes_in_bf16(self.config.trainer.precision, self.device)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=self._holds_all_weights)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        lr = learning_rate(self.global_step, self.config.optimizer, self.config.trainer.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("factor", 1.0)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradients; skip the step where their norm is not finite."""
        norm = self._engine.clip(self.parameters(), gradient_clip_val or math.inf)
        if norm is None:
            return
        self._gradient_norm = norm
        # Every rank has the same norm, so all skip the step or none does. Fused AdamW reads found_inf on the device and
        # then leaves weights, moments and its count of steps alone: no rank waits for the GPU to decide.
        skip = (~norm.isfinite()).float()
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = skip  # type: ignore[attr-defined]  # GradScaler sets it in the same way
        self._skipped = self._skipped.to(self.device) + skip
        self._skipped_in_a_row = (self._skipped_in_a_row.to(self.device) + 1) * skip

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            return
        self._count_engine_skips()
        if self.global_step % self.config.trainer.log_every == 0:
            self._report_training()

    def _count_engine_skips(self) -> None:
        """Read the gradient norm and the skipped steps of an engine that clips by itself."""
        if (clipped := self._engine.own_clipping()) is None:
            return
        norm, skipped = clipped
        if norm is not None:
            self._gradient_norm = torch.tensor(norm)
        skips, self._skipped_by_engine = skipped - self._skipped_by_engine, skipped
        self._skipped = self._skipped + skips
        self._skipped_in_a_row = (self._skipped_in_a_row + 1) * skips

    def _report_training(self) -> None:
        self._notice_divergence()
        loss = float(self.trainer.strategy.reduce(self._step_loss, reduce_op="mean"))
        concepts = float(self.trainer.strategy.reduce(self._concepts, reduce_op="sum"))
        speed = concepts / (time.perf_counter() - self._clock)
        metrics = {
            "train/loss": loss,
            "train/gradient_norm": float(self._gradient_norm),
            "train/lr": learning_rate(self.global_step - 1, self.config.optimizer, self.config.trainer.max_steps),
            "train/concepts_per_second": speed,
        }
        if self._skipped:
            metrics["train/skipped"] = float(self._skipped)
        metrics |= self.trainer.datamodule.metrics()  # type: ignore[attr-defined]  # Trainer.fit sets it
        if peak := peak_flops(self.device, computes_in_bf16(self.config.trainer.precision, self.device)):
            metrics["train/mfu"] = speed * self._flops / (peak * self.trainer.world_size)
        self.report(metrics)
        self._restart_clock()

    @cached_property
    def _flops(self) -> int:
        """FLOPs per concept, counted on the meta device: the model of this rank may hold shards only."""
        with torch.device("meta"):
            return build_model(self.config.model).training_flops(self.config.data.slots)

    def _notice_divergence(self) -> None:
        """Set `stop_reason` after too many skipped steps in a row. Waits for the device: only for reports and saves."""
        if int(self._skipped_in_a_row) <= self.config.trainer.skips:
            return
        settings = self.config.optimizer
        self.stop_reason = self.stop_reason or (
            f"the gradient is {float(self._gradient_norm)} at step {self.global_step}: training has diverged; lower "
            f"optimizer.lr={settings.lr} or optimizer.clip={settings.clip}, and resume from the last checkpoint"
        )

    def report(self, metrics: Mapping[str, float]) -> None:
        """Log metrics of the step, and keep them for the next checkpoint."""
        self.reported = {**self.reported, **metrics, "step": self.global_step}
        for logger in self.loggers:
            logger.log_metrics(dict(metrics), step=self.global_step)

    def _restart_clock(self) -> None:
        self._clock = time.perf_counter()
        self._concepts.zero_()

    def on_validation_start(self) -> None:
        self._validation = {}
        self._clock -= time.perf_counter()  # pause: validation does not count as training time

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        with self._autocast():
            losses = self.model(batch)
        numbers = {"count": torch.ones_like(losses.per_target), "loss": losses.per_target, **losses.meters}
        for name, value in numbers.items():
            self._validation[name] = self._validation.get(name, 0.0) + float(value.sum())

    def on_validation_epoch_end(self) -> None:
        """Report means over all targets of all ranks, so that no batch counts more than another."""
        sums = torch.tensor(list(self._validation.values()), device=self.device)
        reduced = self.trainer.strategy.reduce(sums, reduce_op="sum")
        total = dict(zip(self._validation, reduced.tolist(), strict=True))
        if count := total.pop("count", 0.0):
            metrics = {f"val/{name}": value / count for name, value in total.items()}
            self.log_dict(metrics, logger=False, sync_dist=True)  # for callbacks; the same on every rank
            self.report(metrics)

    def on_validation_end(self) -> None:
        self._clock += time.perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._notice_divergence()
        checkpoint["config"] = self.config.model_dump(mode="json")
        checkpoint["metrics"] = dict(self.reported)
        checkpoint["scores_without_best"] = self.scores_without_best
        checkpoint["skipped"], checkpoint["world_size"] = int(self._skipped), self.trainer.world_size
        checkpoint["versions"] = {"lcm": __version__, "torch": str(torch.__version__), "lightning": L.__version__}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the metrics, and recount Lightning's micro-batches: the accumulation may have changed since."""
        self.reported = checkpoint["metrics"]
        self.scores_without_best = checkpoint.get("scores_without_best", 0)
        self._skipped = torch.tensor(float(checkpoint.get("skipped", 0)))
        batches = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        progress["is_last_batch"] = False  # max_steps may have been raised
        for counts in (progress["total"], progress["current"]):
            # A checkpoint saved in on_train_batch_end has its last batch ready, but not yet completed.
            unfinished = counts["ready"] - counts["completed"]
            counts.update(ready=batches, started=batches, processed=batches, completed=batches - unfinished)
