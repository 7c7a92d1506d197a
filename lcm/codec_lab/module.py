"""Lightning's side of training a codec: loss, learning rates, protection, validation; saving and the lines on stderr.

Shapes.  B rows · P pieces of the source · Q of the target · D concept width · K protected directions · V vocabulary
"""

import math
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lcm.batch import derive_seed
from lcm.codec_lab import terms
from lcm.codec_lab.batches import PieceBatch, padded
from lcm.codec_lab.settings import CodecTraining, LimitSettings, OptimizerSettings
from lcm.codec_lab.start import Start, empty_directions, hold_code_units, parameter_groups, protect
from lcm.codec_lab.terms import Rounding, Teacher
from lcm.errors import UserError
from lcm.models import Normalizer
from lcm.training.checkpoint import LAST
from lcm.training.loggers import PlainLogger

EMBEDDING_EVERY = 8
"""Steps between projections of the embedding table, which is large and learns slowly."""


class CodecModule(L.LightningModule):
    """seconds, pieces: of training so far, without validation; target pieces with their ends
    reported:        the newest metrics by name
    """

    directions: Float[Tensor, "K D"]

    def __init__(
        self,
        settings: CodecTraining,
        start: Start,
        teacher: Teacher | None = None,
        bottleneck: Rounding | Normalizer | None = None,
    ) -> None:
        """bottleneck: fitted to the vectors of a frozen encoder, by its recipe."""
        super().__init__()
        self.settings, self.start, self.teacher, self.bottleneck = settings, start, teacher, bottleneck
        self.model = start.model
        self.model.requires_grad_(True)
        self.model.encoder.requires_grad_(settings.freeze == "none")
        none = torch.empty(0, self.model.sizes.dim)
        # In the checkpoint, because between two projections the table is not exactly empty there.
        self.register_buffer("directions", empty_directions(self.model) if settings.protect else none)
        self.seconds = 0.0
        self.pieces = 0
        self.reported: dict[str, float] = {}
        self._clock = time.perf_counter()
        self._window = (0.0, 0)
        self._gradient_norm = torch.zeros(())
        self._sums: dict[str, float] = defaultdict(float)

    @property
    def share_done(self) -> float:
        """Share of the limit that is reached, from 0 to 1."""
        return share_done(self.settings.limit, self.global_step, self.seconds)

    def on_train_batch_start(self, batch: PieceBatch, batch_idx: int) -> None:
        self._clock = time.perf_counter()
        factor = rate(self.global_step, self.share_done, self.settings.optimizer)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = factor * group["base"]

    def training_step(self, batch: PieceBatch, batch_idx: int) -> Tensor:
        torch.manual_seed(derive_seed(self.settings.run.seed, self.global_step))
        loss = self.loss(batch)
        pieces = int((batch.target_lengths + 1).sum())
        self.pieces += pieces
        self._window = (self._window[0] + float(loss.detach()) * pieces, self._window[1] + pieces)
        return loss

    def loss(self, batch: PieceBatch) -> Float[Tensor, ""]:
        """All terms of a batch of sentences, or of a batch of translations."""
        chosen, vectors = self.settings.terms, self._encode_source(batch)
        weight = chosen.translation if batch.is_translation else chosen.autoencode
        disturbed, pieces = self._disturbed(vectors), batch.target
        if chosen.unknown:
            pieces = terms.with_unknowns(pieces, chosen.unknown, self.start.unknown)
        logits = self.logits(pieces, batch.target_lang, disturbed)
        loss = weight * terms.cross_entropy(logits, self._targets(batch))
        if batch.is_translation and chosen.translation_mse:
            other = self.encode(batch.target, batch.target_lengths, batch.target_lang)
            loss = loss + chosen.translation_mse * (vectors - other).square().sum(1).mean()
        elif self.teacher and not batch.is_translation:
            loss = loss + chosen.similarity * self._similarity(batch, vectors, self.teacher)
        return loss

    def encode(
        self, pieces: Int[Tensor, "B P"], lengths: Int[Tensor, " B"], lang: Int[Tensor, " B"]
    ) -> Float[Tensor, "B D"]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.settings.freeze == "none"):
            ended = terms.targets(pieces, lengths, self.start.tokenizer.end).clamp(min=0)
            return self.model.encoder(torch.cat([lang[:, None], ended], 1), lengths + 2).float()

    def logits(
        self, pieces: Int[Tensor, "B Q"], lang: Int[Tensor, " B"], vectors: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B Q+1 V"]:
        """Scores of every next piece, given the vector and the pieces before it."""
        ends, memory = torch.full_like(lang, self.start.tokenizer.end), self.model.decoder.memory(vectors)
        states = self.model.decoder(torch.cat([ends[:, None], lang[:, None], pieces], 1), memory)
        return self.model.decoder.logits(states[:, 1:])

    def _encode_source(self, batch: PieceBatch) -> Float[Tensor, "B D"]:
        """Vectors of the sources, some of which are damaged first."""
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

    def _disturbed(self, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The vectors that the decoder reads in training."""
        chosen = self.settings.terms
        if isinstance(self.bottleneck, Normalizer):
            return terms.robust(vectors, self.bottleneck, chosen.robust)
        if isinstance(self.bottleneck, Rounding):
            vectors = self.bottleneck.in_training(vectors)
        return terms.with_noise(vectors, chosen.noise) if chosen.noise else vectors

    def _targets(self, batch: PieceBatch) -> Int[Tensor, "B W"]:
        return terms.targets(batch.target, batch.target_lengths, self.start.tokenizer.end)

    def _similarity(self, batch: PieceBatch, vectors: Float[Tensor, "B D"], teacher: Teacher) -> Float[Tensor, ""]:
        chosen, rows = self.settings.terms, teacher.row_of[batch.sentence.cpu()]
        known = (rows >= 0).nonzero()[:, 0]
        theirs = teacher.vectors[rows[known]].float().to(self.device)
        return terms.similarity_loss(
            vectors[known.to(self.device)], theirs, chosen.similarity_kind, chosen.similarity_temperature
        )

    def configure_optimizers(self) -> Optimizer:
        groups = parameter_groups(self.model, self.settings.optimizer)
        optimizer = AdamW(groups, betas=self.settings.optimizer.betas, weight_decay=0.0, fused=True)
        # On the optimizer, because Lightning's hooks after the step come after checkpoints are saved.
        optimizer.register_step_post_hook(lambda *_: self._after_step())
        return optimizer

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip by the norm over all parameters, and keep the norm for the report."""
        if len(self.directions):
            hold_code_units(self.model, self.start.max_pieces)
        self._gradient_norm = nn.utils.clip_grad_norm_(self.parameters(), self.settings.optimizer.clip or math.inf)

    def _after_step(self) -> None:
        self.protect(embedding=self.global_step % EMBEDDING_EVERY == 0)
        self.seconds += time.perf_counter() - self._clock

    def protect(self, embedding: bool) -> None:
        if len(self.directions):
            protect(self.model, self.directions, self.start.max_pieces, embedding)

    def on_train_batch_end(self, outputs: Any, batch: PieceBatch, batch_idx: int) -> None:
        """Report the mean over the steps since the last report. Raises UserError where training has diverged."""
        if self.global_step % self.settings.trainer.log_every:
            return
        if not self._gradient_norm.isfinite():
            raise UserError(
                f"the gradient is {float(self._gradient_norm)} at step {self.global_step}: training has diverged; "
                f"lower optimizer.lr={self.settings.optimizer.lr} and go on from the last checkpoint"
            )
        (loss, pieces), self._window = self._window, (0.0, 0)
        self._report(
            {
                "train/loss": loss / pieces,
                "train/gradient_norm": float(self._gradient_norm),
                "train/lr": self.trainer.optimizers[0].param_groups[0]["lr"],
                "train/pieces": float(self.pieces),
                "train/minutes": self.seconds / 60,
            }
        )

    def _report(self, metrics: dict[str, float]) -> None:
        self.reported = {**self.reported, **metrics}
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.global_step)

    def validation_step(self, batch: PieceBatch, batch_idx: int) -> None:
        vectors = self.encode(batch.source, batch.source_lengths, batch.source_lang)
        if isinstance(self.bottleneck, Rounding):
            vectors = self.bottleneck(vectors)
        self._measure(batch, vectors)
        if isinstance(self.bottleneck, Normalizer):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(batch_idx)
                noised = terms.robust(vectors, self.bottleneck, self.settings.terms.robust)
                self._measure(batch, noised, "noised_")

    def _measure(self, batch: PieceBatch, vectors: Float[Tensor, "B D"], prefix: str = "") -> None:
        logits, wanted = self.logits(batch.target, batch.target_lang, vectors), self._targets(batch)
        counts = wanted != terms.IGNORED
        loss = F.cross_entropy(logits.float()[counts], wanted[counts], reduction="sum")
        self._sums[f"{prefix}pieces"] += float(counts.sum())
        self._sums[f"{prefix}loss"] += float(loss)
        self._sums[f"{prefix}accuracy"] += float((logits.argmax(-1) == wanted)[counts].sum())

    def on_validation_epoch_end(self) -> None:
        """Sums over the pieces, divided by their number: no batch counts more than another."""
        sums, self._sums = self._sums, defaultdict(float)
        self._report({f"val/{name}": n / sums["pieces"] for name, n in sums.items() if not name.endswith("pieces")})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["trained"] = {"seconds": self.seconds, "pieces": self.pieces}
        checkpoint["metrics"] = dict(self.reported)
        checkpoint["settings"] = self.settings.model_dump(mode="json")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds, self.pieces = checkpoint["trained"]["seconds"], checkpoint["trained"]["pieces"]
        self.reported = checkpoint["metrics"]


def share_done(limit: LimitSettings, steps: int, seconds: float) -> float:
    """Share of the limit that is reached, from 0 to 1, in steps or in minutes."""
    return min(1.0, steps / limit.steps if limit.steps else seconds / (60 * (limit.minutes or 1.0)))


def rate(step: int, done: float, optimizer: OptimizerSettings) -> float:
    """Factor of every base rate: linear warm-up, constant, linear decay over the last `decay` of the limit."""
    warm = min(1.0, (step + 1) / optimizer.warmup_steps) if optimizer.warmup_steps else 1.0
    left = (1 - done) / optimizer.decay if optimizer.decay else 1.0
    low = optimizer.final_factor
    return warm * (low + (1 - low) * min(1.0, left))


class Saving(Checkpoint):
    """Saves last.ckpt at intervals and at the end, after that step's validation; ends training at its limit."""

    def __init__(self, folder: Path, settings: CodecTraining) -> None:
        self.path, self.settings = folder / "checkpoints" / LAST, settings.trainer

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, CodecModule)
        step = trainer.global_step
        if pl_module.share_done >= 1:
            trainer.should_stop = True  # Lightning then validates once more, whatever the interval
        elif step % self.settings.checkpoint_every == 0 and step % self.settings.validate_every:
            trainer.save_checkpoint(self.path, weights_only=False)  # the optimizer's state, too

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.should_stop or trainer.global_step % self.settings.checkpoint_every == 0:
            trainer.save_checkpoint(self.path, weights_only=False)


class Lines(PlainLogger):
    """One line a report, on stderr."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        shown = "  ".join(f"{name} {value:.5g}" for name, value in metrics.items() if name != "train/lr")
        print(f"step {step:,}  {shown}", file=sys.stderr, flush=True)
