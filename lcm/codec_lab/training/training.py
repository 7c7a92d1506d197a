"""settings → corpus → model → Trainer → a codec folder: a training run, top to bottom.

runs/mine/codec/                                the codec, for load_codec: written when training ends
runs/mine/checkpoints/last.ckpt, metrics.csv    what the same command goes on from; what was measured
runs/mine/settings.yaml                         every setting
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lcm import __version__
from lcm.codec import storage
from lcm.codec_lab.training.batches import Order, TrainingBatches, ValidationBatches, collate
from lcm.codec_lab.training.corpus import Corpus, read_corpus
from lcm.codec_lab.training.examples import Examples, make_examples
from lcm.codec_lab.training.module import CodecModule
from lcm.codec_lab.training.rounding import Rounding, fit_rounding, load_rounding
from lcm.codec_lab.training.settings import CodecTraining, Limit
from lcm.codec_lab.training.start import Start, make_start
from lcm.codec_lab.training.teacher import LoadTeacher, Teacher, ask_teacher, load_teacher
from lcm.data import fit
from lcm.errors import UserError
from lcm.models import Normalizer, save_quantizer
from lcm.training import LAST, AtomicCheckpointIO, MetricsFile, PlainLogger, latest, quiet_lightning, say

FITTED = 20_000
"""Sentences whose vectors a normalizer or a quantizer is fitted to."""
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Not cuDNN's attention, which plans anew for each shape: batches of sentences have a new one nearly every time, and a
step takes three times as long."""
CODEC, CODEBOOKS = "codec", "codebooks.safetensors"


@dataclass
class Assembled:
    """Everything of a run but the Trainer."""

    module: CodecModule
    start: Start
    examples: Examples
    order: Order

    def fit(self, trainer: L.Trainer, checkpoint: Path | None = None) -> None:
        batches = TrainingBatches(self.examples.train, self.order, lambda: self.module.global_step)
        validation = ValidationBatches(self.examples.validation, self.order.tokens)
        try:
            with quiet_lightning(), sdpa_kernel(KERNELS):
                trainer.fit(self.module, batches, validation, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None


def train_codec(settings: CodecTraining, load: LoadTeacher = load_teacher) -> Path:
    """Train to the limit, or go on from where an earlier call was killed. Returns the codec's folder.

    load: what gives the public encoder. Raises UserError for anything a person can put right.
    """
    folder = Path(settings.run.dir)
    checkpoint = latest(folder)
    run = assemble(settings, load, folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (folder / "settings.yaml").write_text(text, encoding="utf-8")
    if checkpoint:
        say(f"going on from {checkpoint}")
    run.fit(build_trainer(settings, folder), checkpoint)
    save_codec(folder, run)
    return folder / CODEC


def assemble(
    settings: CodecTraining, load: LoadTeacher, folder: Path | None, corpus: Corpus | None = None
) -> Assembled:
    """Corpus, model, and what the terms need. folder: where the public encoder's answers are kept, None: nowhere."""
    if settings.trainer.threads:
        torch.set_num_threads(settings.trainer.threads)
    began = time.perf_counter()
    corpus = corpus or read_corpus(settings.data)
    start = make_start(settings, corpus.texts, corpus.languages)
    data = settings.data
    examples = make_examples(corpus, start, data.max_characters, data.validation_sentences)
    say(_described(corpus, examples, time.perf_counter() - began))
    if not examples.validation:
        raise UserError("there is nothing to validate on: name data.held_out, or add documents with split: validation")
    teacher = _teacher(settings, examples, load, folder)
    if teacher:
        asked = teacher.rows(torch.tensor([example.sentence for example in examples.train])) >= 0
        marked = zip(examples.train, asked.tolist(), strict=True)
        examples = replace(examples, train=[replace(e, taught=taught and not e.is_translation) for e, taught in marked])
    module = CodecModule(settings, start, teacher, _bottleneck(settings, start, examples))
    if settings.protect:
        say(f"protected: {len(module.directions)} of {start.model.sizes.dim} directions, which carry positions")
    starts_word = start.starts_word.tolist()
    order = Order(data.tokens, settings.run.seed, data.short_pieces, data.short_share, data.spans, starts_word)
    return Assembled(module, start, examples, order)


def _described(corpus: Corpus, examples: Examples, seconds: float) -> str:
    pieces = sum(len(example.target) for example in examples.train)
    return (
        f"{corpus.documents:,} documents ({corpus.left_out:,} held out, {corpus.refused:,} rows refused): "
        f"{len(examples.texts):,} sentences and {len(corpus.pairs):,} translations, {pieces:,} pieces, "
        f"{', '.join(corpus.languages)}; {len(examples.validation):,} sentences to validate on "
        f"({seconds:.0f} s)"
    )


def _teacher(settings: CodecTraining, examples: Examples, load: LoadTeacher, folder: Path | None) -> Teacher | None:
    chosen = settings.terms
    if not chosen.similarity:
        return None
    return ask_teacher(
        examples.texts, chosen.similarity_sentences, settings.run.seed, folder, load, chosen.similarity_folder, say
    )


def _bottleneck(settings: CodecTraining, start: Start, examples: Examples) -> Rounding | Normalizer | None:
    """Fitted to the vectors of the training sentences, which a frozen encoder never changes."""
    chosen = settings.terms
    if chosen.quantizer:
        return load_rounding(chosen.quantizer, start)
    if not chosen.robust and not chosen.codebooks:
        return None
    step = max(1, len(examples.texts) // FITTED)
    vectors = encode_all(CodecModule(settings, start), examples.train[: len(examples.texts) : step])
    if chosen.codebooks:
        return fit_rounding(vectors, settings, start)
    normalizer = Normalizer(start.model.sizes.dim)
    normalizer.set(*fit(vectors))
    return normalizer


@torch.no_grad()
def encode_all(module: CodecModule, examples: list[Any], tokens: int = 4096) -> Tensor:
    """Vectors of the sources, in the order given."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].source))
    vectors = torch.empty(len(examples), module.model.sizes.dim)
    size = max(1, tokens // (module.start.max_pieces + 2))
    for place in range(0, len(order), size):
        chosen = order[place : place + size]
        batch = collate([examples[i] for i in chosen])
        vectors[chosen] = module.encode(batch.source, batch.source_lengths, batch.source_lang).cpu()
    return vectors


def build_trainer(settings: CodecTraining, folder: Path | None) -> L.Trainer:
    """folder: where the run is written; None writes nothing."""
    chosen = settings.trainer
    with quiet_lightning():
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
    """last.ckpt every so many steps and at the end, after that step's validation; ends training at its limit."""

    def __init__(self, folder: Path, settings: CodecTraining) -> None:
        self.path = folder / "checkpoints" / LAST
        self.settings = settings

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, CodecModule)
        chosen, step = self.settings.trainer, trainer.global_step
        if pl_module.share_done >= 1:
            trainer.should_stop = True  # Lightning then validates once more, whatever the interval
        elif step % chosen.checkpoint_every == 0 and step % chosen.validate_every:
            trainer.save_checkpoint(self.path, weights_only=False)  # the optimizer's state, too

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.should_stop or trainer.global_step % self.settings.trainer.checkpoint_every == 0:
            trainer.save_checkpoint(self.path, weights_only=False)


class Lines(PlainLogger):
    """A line for each report, on stderr."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        shown = "  ".join(f"{name} {value:.5g}" for name, value in metrics.items() if name != "train/lr")
        print(f"step {step:,}  {shown}", file=sys.stderr, flush=True)


def save_codec(folder: Path, run: Assembled) -> None:
    """The codec as it stands, with the record of its training in card.json, and in config.json where the encoder moved.

    On a frozen encoder the decoder alone is new: all else is a copy of the start's files (`storage.save_decoder`).
    """
    module, settings = run.module, run.module.settings
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
    start, card = run.start, {"training": record}
    if settings.freeze == "encoder":
        assert start.folder, "the settings refuse a frozen encoder without a codec"
        storage.save_decoder(folder / CODEC, start.folder, start.model, card)
    else:
        config = {**start.config, "training": record}
        storage.save(folder / CODEC, start.model, start.vocabulary, config, card, torch.float16)
    if isinstance(module.bottleneck, Rounding):
        save_quantizer(folder / CODEBOOKS, module.bottleneck.quantizer, module.bottleneck.record)


def shortened(settings: CodecTraining, steps: int) -> CodecTraining:
    """The same run of so many steps, validated at its end."""
    trainer = settings.trainer.model_copy(update={"validate_every": steps})
    return settings.model_copy(update={"limit": Limit(steps=steps, minutes=None), "trainer": trainer})


def dry_run(settings: CodecTraining, load: LoadTeacher = load_teacher) -> None:
    """Read everything, train one step, print the numbers; write nothing. The public encoder is not asked."""
    without = settings.terms.model_copy(update={"similarity": 0.0})
    settings = shortened(settings, 1).model_copy(update={"terms": without})
    run = assemble(settings, load, folder=None)
    epoch = run.order.epoch(run.order.with_spans(run.examples.train, 0), 0)
    began = time.perf_counter()
    run.fit(build_trainer(settings, folder=None))
    parameters = sum(p.numel() for p in run.start.model.parameters())
    print(f"model      {parameters:,} parameters, dim {run.start.model.sizes.dim}, start {settings.start}")
    print(f"data       {len(run.examples.train):,} examples, {len(epoch):,} batches an epoch")
    print(f"one step   {time.perf_counter() - began:.1f} s, validation {run.module.reported}")
