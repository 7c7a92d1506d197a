"""settings → corpus → model → Trainer → a codec folder: a training run, top to bottom; and the ablation.

runs/mine/codec/                                the codec, for load_codec: written when training ends
runs/mine/checkpoints/last.ckpt, metrics.csv    the same command resumes from the one and extends the other
runs/mine/settings.yaml                         every setting
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lcm import __version__
from lcm.codec import storage
from lcm.codec_lab.batches import Batches, Order, PieceRow, collate, fixed_batches
from lcm.codec_lab.corpus import Corpus, PieceRows, read_corpus, tokenize
from lcm.codec_lab.module import CodecModule, Lines, Saving
from lcm.codec_lab.sentences import load_public_encoder
from lcm.codec_lab.settings import CodecTraining, LimitSettings
from lcm.codec_lab.space import dense_ranks, participation_ratio, similarities, spearman
from lcm.codec_lab.start import Start, make_start
from lcm.codec_lab.terms import Rounding, fit_rounding, load_rounding, make_teacher
from lcm.data.manifest import location_and_scale
from lcm.errors import UserError
from lcm.files import write_result
from lcm.models import Normalizer
from lcm.models.quantizer import save_quantizer
from lcm.training.checkpoint import AtomicCheckpointIO, latest
from lcm.training.loggers import MetricsFile, quiet_lightning, say

FITTED = 20_000
"""Sentences whose vectors a normalizer or a quantizer is fitted to."""
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Without cuDNN's attention, which plans anew for each shape: batches of sentences nearly always have a new one, and a
step takes three times as long."""
CODEC, CODEBOOKS = "codec", "codebooks.safetensors"
ABLATED = {"denoise": 0.3, "unknown": 0.04, "noise": 0.3, "similarity": 1.0, "translation": 1.0, "translation_mse": 0.1}
"""Terms of the ablation, with values that switch on one which the configuration leaves off."""
COLUMNS = ("validation CE", "piece accuracy", "Spearman", "participation ratio")


@dataclass
class CodecRun:
    """A run without its Trainer."""

    module: CodecModule
    rows: PieceRows
    order: Order

    def fit(self, folder: Path | None, checkpoint: Path | None = None) -> None:
        """Train to the limit. folder: of the run; None writes nothing."""
        settings, chosen = self.module.settings, self.module.settings.trainer
        fixed = fixed_batches(self.rows.validation, settings.data.tokens)
        validation = Batches(lambda: iter(fixed))
        # One endless epoch, from the step that training has reached when iteration begins.
        batches = Batches(lambda: self.order.batches(self.rows.train, self.module.global_step))
        try:
            with quiet_lightning(), sdpa_kernel(KERNELS):
                trainer = L.Trainer(
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
                trainer.fit(self.module, batches, validation, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from None


def train_codec(settings: CodecTraining) -> Path:
    """Train to the limit, or resume an earlier call that was killed; return the codec's folder."""
    folder = Path(settings.run.dir)
    checkpoint = latest(folder)
    run = prepare_run(settings, folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_result(folder / "settings.yaml", text)
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
        f"{corpus.documents:,} documents ({corpus.left_out:,} held out, {corpus.refused.total:,} refused): "
        f"{len(rows.texts):,} sentences and {len(corpus.pairs):,} translations, {pieces:,} pieces, "
        f"{', '.join(corpus.languages)}; {len(rows.validation):,} sentences to validate on "
        f"({time.perf_counter() - began:.0f} s)"
    )
    if corpus.refused:
        say(corpus.refused.line)
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


def variants(settings: CodecTraining) -> dict[str, dict[str, float]]:
    """Row of the ablation → changed terms: the configuration as it is, no term at all, and each term switched."""
    impossible = {"similarity"} if settings.data.spans else set()  # it compares whole sentences
    impossible |= {"similarity", "translation_mse"} if settings.freeze == "encoder" else set()
    impossible |= set() if settings.data.pairs else {"translation", "translation_mse"}
    chosen = {name: float(getattr(settings.terms, name)) for name in ABLATED if name not in impossible}
    switched = {
        f"without {name}" if value else f"with {name} {ABLATED[name]:g}": {name: 0.0 if value else ABLATED[name]}
        for name, value in chosen.items()
    }
    return {"as configured": {}, "autoencoding alone": dict.fromkeys(chosen, 0.0), **switched}


def ablate(settings: CodecTraining, steps: int) -> str:
    """Train every variant in equally many steps from the same start; return a table of what each term does.

    Writes ablation.md and ablation.json into the run's folder. A row that an earlier call with the same settings has
    finished is not trained again. Raises UserError where the folder holds rows of other settings.
    """
    folder = Path(settings.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ablation.json"
    ours = settings.model_dump(mode="json", exclude={"run": {"dir"}, "trainer": {"threads"}})
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"settings": ours, "rows": {}}
    if before["settings"] != ours:
        raise UserError(f"run.dir={folder}: holds an ablation of other settings; name another folder")
    done: dict[str, Any] = before["rows"]
    corpus = read_corpus(settings.data)
    for name, changed in variants(settings).items():
        key = f"{name}, {steps} steps"
        if key in done:
            continue
        say(f"ablation: {key}")
        run = prepare_run(shortened(settings, steps, changed), folder, corpus)
        run.fit(folder=None)
        run.module.protect(embedding=True)
        done[key] = _scores(run)
        write_result(path, json.dumps({"settings": ours, "rows": done}, indent=1))
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'--:|' * len(COLUMNS)}"]
    for key, row in done.items():
        if key.endswith(f", {steps} steps"):
            lines.append(f"| {key} | {' | '.join(f'{row[column]:.4g}' for column in COLUMNS)} |")
    text = "\n".join([*lines, ""])
    write_result(folder / "ablation.md", text)
    return text


def _scores(run: CodecRun) -> dict[str, float]:
    vectors = encode_all(run.module, run.rows.validation)
    public = load_public_encoder(run.module.settings.terms.similarity_folder).encode(run.rows.validation_texts)
    pairs = torch.triu_indices(len(vectors), len(vectors), offset=1).unbind()
    ours, theirs = (dense_ranks(similarities(x)[pairs].double().numpy()) for x in (vectors, public))
    reported, agreed = run.module.reported, spearman(ours, theirs, np.ones(len(ours)))
    values = (reported["val/loss"], reported["val/accuracy"], agreed, participation_ratio(vectors) or math.nan)
    return dict(zip(COLUMNS, values, strict=True))
