"""settings → corpus → model → Trainer → a codec folder: a training run, top to bottom.

runs/mine/codec/                                the codec, for load_codec: written when training ends
runs/mine/checkpoints/last.ckpt, metrics.csv    the same command resumes from the one and extends the other
runs/mine/settings.yaml                         every setting
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from jaxtyping import Float
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lcm import __version__
from lcm.codec import storage
from lcm.codec_lab.training.batches import Batches, Order, PieceRow, collate, fixed_batches
from lcm.codec_lab.training.corpus import Corpus, PieceRows, read_corpus, tokenize
from lcm.codec_lab.training.module import CodecModule
from lcm.codec_lab.training.settings import CodecTraining, LimitSettings
from lcm.codec_lab.training.start import Start, make_start
from lcm.codec_lab.training.terms import Rounding, fit_rounding, load_rounding, make_teacher
from lcm.data.manifest import location_and_scale
from lcm.errors import UserError
from lcm.models import Normalizer
from lcm.models.quantizer import save_quantizer
from lcm.training.checkpoint import LAST, AtomicCheckpointIO, latest
from lcm.training.loggers import MetricsFile, PlainLogger, quiet_lightning, say

FITTED = 20_000
"""Sentences whose vectors a normalizer or a quantizer is fitted to."""
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Without cuDNN's attention, which plans anew for each shape: batches of sentences nearly always have a new one, and a
step takes three times as long."""
CODEC, CODEBOOKS = "codec", "codebooks.safetensors"


@dataclass
class CodecRun:
    """A run without its Trainer."""

    module: CodecModule
    rows: PieceRows
    order: Order

    def fit(self, folder: Path | None, checkpoint: Path | None = None) -> None:
        """Train to the limit. folder: of the run; None writes nothing."""
        fixed = fixed_batches(self.rows.validation, self.module.settings.data.tokens)
        validation = Batches(lambda: iter(fixed))
        # One endless epoch, from the step that training has reached when iteration begins.
        batches = Batches(lambda: self.order.batches(self.rows.train, self.module.global_step))
        try:
            with quiet_lightning(), sdpa_kernel(KERNELS):
                trainer = codec_trainer(self.module.settings, folder)
                trainer.fit(self.module, batches, validation, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from None


def train_codec(settings: CodecTraining) -> Path:
    """Train to the limit, or resume an earlier call that was killed. Returns the codec's folder.

    Raises UserError for anything a person can put right.
    """
    folder = Path(settings.run.dir)
    checkpoint = latest(folder)
    run = prepare_run(settings, folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (folder / "settings.yaml").write_text(text, encoding="utf-8")
    if checkpoint:
        say(f"going on from {checkpoint}")
    run.fit(folder, checkpoint)
    save_codec(folder, run.module)
    return folder / CODEC


def prepare_run(settings: CodecTraining, folder: Path | None, corpus: Corpus | None = None) -> CodecRun:
    """Read the corpus, make the model, and fit or compute what the terms need.

    folder: keeps the public encoder's vectors; None keeps nothing. corpus: of the settings, if it is read already.
    """
    if settings.trainer.threads:
        torch.set_num_threads(settings.trainer.threads)
    began, data = time.perf_counter(), settings.data
    corpus = corpus or read_corpus(data)
    start = make_start(settings, corpus.texts, corpus.languages)
    rows = tokenize(corpus, start, data)
    pieces = sum(len(row.target) for row in rows.train)
    say(
        f"{corpus.documents:,} documents ({corpus.left_out:,} held out, {corpus.refused:,} rows refused): "
        f"{len(rows.texts):,} sentences and {len(corpus.pairs):,} translations, {pieces:,} pieces, "
        f"{', '.join(corpus.languages)}; {len(rows.validation):,} sentences to validate on "
        f"({time.perf_counter() - began:.0f} s)"
    )
    if not rows.validation:
        raise UserError("there is nothing to validate on: name data.held_out, or add documents with split: validation")
    teacher = None
    if settings.terms.similarity:
        teacher = make_teacher(rows.texts, settings, folder)
        taught = (teacher.row_of >= 0).tolist()
        rows = replace(rows, train=[replace(r, taught=not r.is_translation and taught[r.sentence]) for r in rows.train])
    module = CodecModule(settings, start, teacher, _bottleneck(settings, start, rows))
    if settings.protect:
        say(f"protected: {len(module.directions)} of {start.model.sizes.dim} directions, which carry positions")
    return CodecRun(module, rows, Order(data, settings.run.seed, start.starts_word.tolist()))


def _bottleneck(settings: CodecTraining, start: Start, rows: PieceRows) -> Rounding | Normalizer | None:
    """Fitted to vectors of the training sentences, which a frozen encoder never changes."""
    chosen = settings.terms
    if chosen.quantizer:
        return load_rounding(chosen.quantizer, start)
    if not chosen.robust and not chosen.codebooks:
        return None
    step = max(1, len(rows.texts) // FITTED)
    vectors = encode_all(CodecModule(settings, start), rows.train[: len(rows.texts) : step])
    normalizer = Normalizer(start.model.sizes.dim)
    normalizer.set(*location_and_scale(vectors))
    return fit_rounding(vectors, normalizer, settings, start) if chosen.codebooks else normalizer


@torch.no_grad()
def encode_all(module: CodecModule, rows: Sequence[PieceRow], tokens: int = 4096) -> Float[Tensor, "n D"]:
    """Vectors of the sources, in the order of the rows."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].source))
    vectors = torch.empty(len(rows), module.model.sizes.dim)
    size = max(1, tokens // (module.start.max_pieces + 2))
    for place in range(0, len(order), size):
        chosen = order[place : place + size]
        batch = collate([rows[i] for i in chosen])
        vectors[chosen] = module.encode(batch.source, batch.source_lengths, batch.source_lang).cpu()
    return vectors


def codec_trainer(settings: CodecTraining, folder: Path | None) -> L.Trainer:
    """Lightning sees one long epoch. folder: of the run; None writes nothing."""
    chosen = settings.trainer
    return L.Trainer(
        accelerator=chosen.accelerator,
        devices=1,
        precision="bf16-mixed" if chosen.precision == "bf16-mixed" else "32-true",
        max_steps=settings.limit.steps or -1,
        max_epochs=-1,
        val_check_interval=chosen.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=[Lines(), MetricsFile(folder / "metrics.csv")] if folder else False,
        callbacks=[Saving(folder, settings)] if folder else None,
        enable_checkpointing=folder is not None,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


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


def save_codec(folder: Path, module: CodecModule) -> None:
    """Write the codec, with the record of its training in card.json, and in config.json where the encoder moved.

    With a frozen encoder the decoder alone is new: all else is a copy of the start's files (`storage.save_decoder`).
    """
    settings, start = module.settings, module.start
    module.protect(embedding=True)
    record = {
        "start": settings.start,
        "steps": module.global_step,
        "target_pieces": module.pieces,
        "minutes": round(module.seconds / 60, 2),
        "validation": {name.removeprefix("val/"): value for name, value in module.reported.items() if "val/" in name},
        "settings": settings.model_dump(mode="json"),
        "versions": {"lcm": __version__, "torch": str(torch.__version__)},
    }
    card = {"training": record}
    if settings.freeze == "encoder":
        assert start.folder, "the settings refuse a frozen encoder without a codec"
        storage.save_decoder(folder / CODEC, start.folder, start.model, card)
    else:
        storage.save(folder / CODEC, start.model, start.vocabulary, start.config | card, card, torch.float16)
    if isinstance(module.bottleneck, Rounding):
        save_quantizer(folder / CODEBOOKS, module.bottleneck.quantizer, module.bottleneck.record)


def shortened(settings: CodecTraining, steps: int, terms: dict[str, float]) -> CodecTraining:
    """A copy of the settings that ends after `steps`, validates then, and has other values of `terms`."""
    changed = {
        "limit": LimitSettings(steps=steps, minutes=None),
        "trainer": settings.trainer.model_copy(update={"validate_every": steps}),
        "terms": settings.terms.model_copy(update=terms),
    }
    return settings.model_copy(update=changed)


def dry_run_codec(settings: CodecTraining) -> None:
    """Read everything, train one step, print the numbers; write nothing, and leave the public encoder out."""
    run = prepare_run(shortened(settings, 1, {"similarity": 0.0}), folder=None)
    epoch = run.order.epoch(run.order.with_spans(run.rows.train, 0), 0)
    began = time.perf_counter()
    run.fit(folder=None)
    parameters = sum(p.numel() for p in run.module.model.parameters())
    print(f"model      {parameters:,} parameters, dim {run.module.model.sizes.dim}, start {settings.start}")
    print(f"data       {len(run.rows.train):,} examples, {len(epoch):,} batches an epoch")
    print(f"one step   {time.perf_counter() - began:.1f} s, validation {run.module.reported}")
