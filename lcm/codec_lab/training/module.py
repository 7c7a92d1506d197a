"""The Lightning side of training a codec: the loss, the learning rates, protection, validation.

Shapes.  B rows · P pieces of the source · Q pieces of the target · D concept width · K protected directions
"""

import math
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lcm.codec_lab.training import protection, terms
from lcm.codec_lab.training.batches import PieceBatch, padded
from lcm.codec_lab.training.rates import parameter_groups, rate, share_done
from lcm.codec_lab.training.rounding import Rounding
from lcm.codec_lab.training.settings import CodecTraining
from lcm.codec_lab.training.start import Start
from lcm.codec_lab.training.teacher import Teacher
from lcm.errors import UserError
from lcm.models import Normalizer
from lcm.seeds import derive_seed


class CodecModule(L.LightningModule):
    """Trains a codec. `seconds` and `pieces` count what is trained; `reported` holds the newest metrics."""

    directions: Float[Tensor, "K D"]

    def __init__(
        self,
        settings: CodecTraining,
        start: Start,
        teacher: Teacher | None = None,
        bottleneck: Rounding | Normalizer | None = None,
    ) -> None:
        """bottleneck: what a recipe on a frozen encoder has fitted to its vectors."""
        super().__init__()
        self.settings, self.start, self.teacher, self.bottleneck = settings, start, teacher, bottleneck
        self.model = start.model
        frozen = settings.freeze == "encoder"
        self.model.requires_grad_(True)
        self.model.encoder.requires_grad_(not frozen)
        found = protection.empty_directions(self.model) if settings.protect else torch.empty(0, self.model.sizes.dim)
        # In the checkpoint, because between two projections the table is not exactly empty there.
        self.register_buffer("directions", found)
        self.seconds = 0.0
        self.pieces = 0
        self.reported: dict[str, float] = {}
        self._clock = time.perf_counter()
        self._window: list[tuple[float, int, float]] = []
        self._gradient_norm = torch.zeros(())
        self._validation: dict[str, float] = {}

    # ---- one step ----

    @property
    def share_done(self) -> float:
        """How much of the limit is behind: of the steps, or of the minutes."""
        return share_done(self.settings.limit, self.global_step, self.seconds)

    def on_train_batch_start(self, batch: PieceBatch, batch_idx: int) -> None:
        self._clock = time.perf_counter()
        factor = rate(self.global_step, self.share_done, self.settings.optimizer)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = factor * group["base"]

    def training_step(self, batch: PieceBatch, batch_idx: int) -> Tensor:
        torch.manual_seed(derive_seed(self.settings.run.seed, self.global_step))
        loss = self.loss(batch)
        counted = int((batch.target_lengths + 1).sum())
        self.pieces += counted
        self._window.append((float(loss.detach()), counted, time.perf_counter()))
        return loss

    def loss(self, batch: PieceBatch) -> Float[Tensor, ""]:
        """All terms of a batch of sentences, or of a batch of translations."""
        chosen = self.settings.terms
        vectors = self._encode_source(batch)
        said = self._piece_loss(batch, self._noised(vectors))
        if batch.is_translation:
            loss = chosen.translation * said
            if chosen.translation_mse:
                other = self.encode(batch.target, batch.target_lengths, batch.target_lang)
                loss = loss + chosen.translation_mse * (vectors - other).square().sum(1).mean()
            return loss
        loss = chosen.autoencode * said
        if chosen.similarity and self.teacher is not None:
            loss = loss + chosen.similarity * self._similarity(batch, vectors)
        return loss

    def encode(
        self, pieces: Int[Tensor, "B P"], lengths: Int[Tensor, " B"], lang: Int[Tensor, " B"]
    ) -> Float[Tensor, "B D"]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.settings.freeze == "none"):
            ended = terms.targets(pieces, lengths, self.start.tokenizer.end).clamp(min=0)
            return self.model.encoder(torch.cat([lang[:, None], ended], 1), lengths + 2).float()

    def _encode_source(self, batch: PieceBatch) -> Float[Tensor, "B D"]:
        """The vectors of the sources, some of them damaged."""
        chosen = self.settings.terms
        if not chosen.denoise or batch.is_translation:
            return self.encode(batch.source, batch.source_lengths, batch.source_lang)
        damage = (torch.rand(len(batch.source)) < chosen.denoise).tolist()
        rows = [
            terms.damaged(row, self.start.starts_word, chosen.drop_words, chosen.swap_words) if hurt else row
            for row, hurt in zip(batch.source.tolist(), damage, strict=True)
        ]
        source, lengths = (x.to(self.device) for x in padded(rows))
        return self.encode(source, lengths, batch.source_lang)

    def _noised(self, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """What the decoder reads while training."""
        chosen = self.settings.terms
        if isinstance(self.bottleneck, Normalizer):
            return terms.robust(vectors, self.bottleneck, chosen.robust)
        if isinstance(self.bottleneck, Rounding):
            vectors = self.bottleneck.in_training(vectors)
        return terms.with_noise(vectors, chosen.noise) if chosen.noise else vectors

    def _piece_loss(self, batch: PieceBatch, vectors: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        unknown = self.settings.terms.unknown
        read = terms.with_unknowns(batch.target, unknown, self.start.unknown) if unknown else batch.target
        return terms.cross_entropy(self.logits(read, batch.target_lang, vectors), self._wanted(batch))

    def logits(
        self, pieces: Int[Tensor, "B Q"], lang: Int[Tensor, " B"], vectors: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B Q+1 V"]:
        """Scores of every next piece, given the pieces before it."""
        ends = torch.full_like(lang, self.start.tokenizer.end)
        states = self.model.decoder(
            torch.cat([ends[:, None], lang[:, None], pieces], 1), self.model.decoder.memory(vectors)
        )
        return self.model.decoder.logits(states[:, 1:])

    def _wanted(self, batch: PieceBatch) -> Int[Tensor, "B W"]:
        return terms.targets(batch.target, batch.target_lengths, self.start.tokenizer.end)

    def _similarity(self, batch: PieceBatch, vectors: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        assert self.teacher is not None
        chosen, rows = self.settings.terms, self.teacher.rows(batch.sentence)
        known = (rows >= 0).nonzero()[:, 0]
        teacher = self.teacher.vectors[rows[known]].float().to(self.device)
        return terms.similarity_loss(
            vectors[known.to(self.device)], teacher, chosen.similarity_kind, chosen.similarity_temperature
        )

    # ---- the optimizer ----

    def configure_optimizers(self) -> Optimizer:
        groups = parameter_groups(self.model, self.settings.optimizer)
        return AdamW(groups, betas=self.settings.optimizer.betas, weight_decay=0.0, fused=True)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if len(self.directions):
            protection.hold_code_units(self.model, self.start.max_pieces)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm over all parameters, and keep it for the report."""
        self._gradient_norm = nn.utils.clip_grad_norm_(self.parameters(), self.settings.optimizer.clip or math.inf)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.protect(embedding=self.global_step % protection.EMBEDDING_EVERY == 0)
        self.seconds += time.perf_counter() - self._clock

    def protect(self, embedding: bool) -> None:
        """Here and not after the batch, before which checkpoints are saved."""
        if len(self.directions):
            protection.protect(self.model, self.directions, self.start.max_pieces, embedding)

    def on_train_batch_end(self, outputs: Any, batch: PieceBatch, batch_idx: int) -> None:
        if self.global_step % self.settings.trainer.log_every == 0:
            self.report_training()

    def report_training(self) -> None:
        """Log the mean over the steps since the last report. Raises UserError where training has diverged."""
        if not self._window:
            return
        if not self._gradient_norm.isfinite():
            raise UserError(
                f"the gradient is {float(self._gradient_norm)} at step {self.global_step}: training has diverged; "
                f"lower optimizer.lr={self.settings.optimizer.lr} and go on from the last checkpoint"
            )
        pieces = sum(count for _, count, _ in self._window)
        self._report(
            {
                "train/loss": sum(loss * count for loss, count, _ in self._window) / pieces,
                "train/gradient_norm": float(self._gradient_norm),
                "train/lr": self.trainer.optimizers[0].param_groups[0]["lr"],
                "train/pieces": float(self.pieces),
                "train/minutes": self.seconds / 60,
            }
        )
        self._window = []

    def _report(self, metrics: dict[str, float]) -> None:
        self.reported = {**self.reported, **metrics}
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.global_step)

    # ---- validation ----

    def on_validation_epoch_start(self) -> None:
        self._validation = {"pieces": 0.0, "loss": 0.0, "accuracy": 0.0}

    def validation_step(self, batch: PieceBatch, batch_idx: int) -> None:
        vectors = self.encode(batch.source, batch.source_lengths, batch.source_lang)
        if isinstance(self.bottleneck, Rounding):
            vectors = self.bottleneck(vectors)
        self._measure(batch, vectors, "")
        if isinstance(self.bottleneck, Normalizer):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(batch_idx)
                self._measure(batch, terms.robust(vectors, self.bottleneck, self.settings.terms.robust), "noised_")

    def _measure(self, batch: PieceBatch, vectors: Float[Tensor, "B D"], name: str) -> None:
        logits, wanted = self.logits(batch.target, batch.target_lang, vectors), self._wanted(batch)
        counts = wanted != terms.IGNORED
        sums = {
            f"{name}pieces": float(counts.sum()),
            f"{name}loss": float(F.cross_entropy(logits.float()[counts], wanted[counts], reduction="sum")),
            f"{name}accuracy": float((logits.argmax(-1) == wanted)[counts].sum()),
        }
        for key, value in sums.items():
            self._validation[key] = self._validation.get(key, 0.0) + value

    def on_validation_epoch_end(self) -> None:
        measured = self._validation
        shares = {f"val/{k}": v / measured["pieces"] for k, v in measured.items() if not k.endswith("pieces")}
        if measured["pieces"]:
            self._report(shares)

    # ---- checkpoints ----

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["trained"] = {"seconds": self.seconds, "pieces": self.pieces}
        checkpoint["metrics"] = dict(self.reported)
        checkpoint["settings"] = self.settings.model_dump(mode="json")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds, self.pieces = checkpoint["trained"]["seconds"], checkpoint["trained"]["pieces"]
        self.reported = checkpoint["metrics"]
