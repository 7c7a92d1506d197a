"""config → model + data + Trainer → fit: a training run, top to bottom.

    lcm train --config configs/base_toy.yaml --data.path data/mine --run.dir runs/mine [--trainer.max_steps 100 …]
    runs/mine/model.safetensors, config.yaml    the best model so far: for lcm.load, generate and evaluate
    runs/mine/checkpoints/                      last.ckpt and best.ckpt
    runs/mine/metrics.csv, events.out.*         what was logged

The same command resumes from last.ckpt.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors import SafetensorError, safe_open

from lcm import __version__
from lcm.config import Config
from lcm.data.datamodule import ConceptData
from lcm.errors import UserError, in_one_line
from lcm.evaluation import HeldOut
from lcm.models import MODEL, ConceptModel, build_model, check_sampling
from lcm.training import signals
from lcm.training.callbacks import Stopped
from lcm.training.checkpoint import BEST, CARD, LAST, check_disk_space, export, latest, open_checkpoint, write_card
from lcm.training.engine import BYTES_PER_PARAMETER, SHARDED, check_strategy, choose
from lcm.training.environment import Launch, read_environment
from lcm.training.finetune import read_start
from lcm.training.loggers import check_loggers, quiet_lightning, say
from lcm.training.module import LCMModule
from lcm.training.ownership import check_free, claimed
from lcm.training.parts import describe
from lcm.training.ranks import last_words
from lcm.training.start import Start, decide
from lcm.training.trainer import build_trainer, device_memory, host_memory


@in_one_line()
def train(config: Config) -> Path:
    """Train to `trainer.max_steps`, from the start or from where an earlier call stopped. Returns the run's folder.

    Raises UserError where the environment contradicts the configuration, the data does not fit the model, the folder is
    another run's or another process's, or no good model comes out.
    """
    folder, launch = Path(config.run.dir), read_environment(config)
    parameters = count_parameters(config)
    strategy, reason = choose(config.trainer.strategy, parameters, device_memory(launch), launch.world_size)
    check_strategy(strategy, config)
    check_loggers(config)
    module, data = assemble(config, on_meta=strategy in SHARDED)
    with ExitStack() as stack:
        owner = None
        if launch.rank == 0:
            check_disk_space(folder, parameters, config.trainer.keep)
            owner = stack.enter_context(claimed(folder))
        start = decide(module.config, launch.world_size)
        if owner is not None:
            say(f"lcm {__version__}, {owner.describe()}")
        for note in start.notes:
            say(note)
        if start.stopped_early(config):
            say(
                f"{folder}: ended early, after step {start.step:,}: no new best {config.trainer.watch} in "
                f"{start.scores_without_best} scores; trainer.early_stop=0 trains on"
            )
        elif start.finished(config):
            say(f"{folder}: all {config.trainer.max_steps:,} steps are done; raise trainer.max_steps to train more")
        else:
            if config.trainer.write_every:
                module.held_out = _held_out(module, data) if launch.rank == 0 else None
            trainer = build_trainer(
                module.config, launch, folder, data.has_validation, strategy, owner, start.step
            )  # fmt: skip
            say(f"{folder}: {config.model.kind}, {parameters:,} parameters, on {trainer.strategy.root_device}")
            if trainer.world_size > 1:
                say(f"{trainer.world_size} processes, {strategy}: {reason}")
            if stopped := _fit(trainer, module, data, start):
                return _requeue_or_raise(stopped, folder, trainer.is_global_zero)
        if owner is not None:
            _check_model(folder, data.has_validation, module.config)
    return folder


def _fit(trainer: L.Trainer, module: LCMModule, data: ConceptData, start: Start) -> Stopped | None:
    """Train, and return the request by which the run stopped before its end."""
    config, folder = module.config, Path(module.config.run.dir)
    if config.trainer.start and not start.checkpoint:
        say(f"fine-tuning {config.trainer.start}: its weights, codec record and normalizer")
    if start.checkpoint:
        say(f"resuming from {start.checkpoint}, after step {start.step:,}")
    if not data.has_validation:
        say("the data has no validation split: the newest model counts as the best")
    if config.trainer.precision == "bf16" and trainer.strategy.root_device.type == "cpu":
        say("trainer.precision=bf16 is slow on most CPUs; auto takes it where it is fast, else fp32")
    try:
        try:
            with quiet_lightning():
                trainer.fit(module, datamodule=data, ckpt_path=start.checkpoint, weights_only=True)
        finally:
            trainer.strategy.checkpoint_io.teardown()  # finishes writing; FSDP's own teardown leaves it out
    except Stopped as stopped:
        return stopped
    except SystemExit:  # Lightning's answer to Ctrl-C
        if latest(folder):
            say(f"{folder}: the same command resumes from {latest(folder)}")
        raise KeyboardInterrupt from None
    except Exception as error:
        words = last_words(error, trainer, folder)
        if words is error:
            raise
        raise words from error
    if trainer.global_step < config.trainer.max_steps:
        say(
            f"{folder}: ended early, after step {trainer.global_step:,}: no new best {config.trainer.watch} in "
            f"{module.scores_without_best} scores"
        )
    if trainer.is_global_zero:
        best = folder / "checkpoints" / (BEST if data.has_validation else LAST)
        if best.is_file():
            parameters = count_parameters(config)
            write_card(folder, parameters, config, open_checkpoint(best))
    return None


def _requeue_or_raise(stopped: Stopped, folder: Path, is_global_zero: bool) -> Path:
    """Requeue the Slurm job on SIGUSR1. Raises UserError where the run does not start again by itself."""
    job = os.environ.get("SLURM_JOB_ID")  # each task of an array has its own
    if stopped.request != signals.REQUEUE or not job:
        if not is_global_zero:
            raise UserError("")  # rank 0 says it for all
        signal = "SIGUSR1" if stopped.request == signals.REQUEUE else "SIGTERM"
        slurm = f"after a preemption Slurm queues job {job} again by itself; otherwise " if job else ""
        raise UserError(
            f"{folder}: asked to stop by {signal}, and did after step {stopped.step:,}; "
            f"{slurm}the same command resumes from {latest(folder)}"
        )
    if is_global_zero:
        signals.requeue(job)
    say(f"{folder}: stopped after step {stopped.step:,}; job {job} is queued again and resumes from there")
    return folder


def _check_model(folder: Path, validates: bool, config: Config) -> None:
    """Make sure that a finished run has a model that opens, and its card: else write them, from their checkpoint.

    Raises UserError where there is none.
    """
    best = folder / "checkpoints" / (BEST if validates else LAST)
    try:
        with safe_open(folder / MODEL, "pt"):
            if best.is_file() and not (folder / CARD).is_file():  # ended between its last checkpoint and its card
                write_card(folder, count_parameters(config), config, open_checkpoint(best))
            return
    except (OSError, SafetensorError):
        pass
    if not best.is_file():
        raise UserError(
            f"run.dir={folder}: all steps are done, but no model was chosen as the best, as val/loss was never a "
            f"finite number; 'lcm export --checkpoint {folder} --output DIR' writes the newest"
        )
    say(f"{folder / MODEL} was missing or damaged: written again from {best}")
    export(best, folder)


def assemble(config: Config, on_meta: bool = False) -> tuple[LCMModule, ConceptData]:
    """The data, and the model with its end-of-text vector and, but for fine-tuning, its normalizer in it.

    on_meta: leave the model on the meta device; LCMModule builds it, shard by shard, once the ranks have met
    """
    trained = read_start(config)
    torch.manual_seed(config.run.seed)
    with torch.device("meta") if on_meta else nullcontext():
        model = build_model(config.model)
    check_sampling(config, model)  # before training, which does not need it
    data = ConceptData(config, predicts_first=model.predicts_first)
    data.setup()
    codec = data.prepared.codec
    known: dict[str, Any] = {"codec": codec}
    if trained:
        known = {"codec": trained.record(codec), "trainer": config.trainer.model_copy(update={"start": trained.start})}

    def fill_buffers(model: ConceptModel) -> None:
        model.normalizer.set(*data.prepared.normalizer)
        if trained:
            trained.fill_buffers(model, codec.fingerprint)
        else:
            model.load_fitted(codec.fingerprint)
        model.end_of_text.copy_(data.end_of_text)

    if not on_meta:
        fill_buffers(model)
        if trained:
            model.load_state_dict({name: trained.weights[name] for name, _ in model.named_parameters()}, strict=False)
    later = (fill_buffers, trained.weights if trained else None) if on_meta else ()
    return LCMModule(config.model_copy(update=known), model, *later), data


def _held_out(module: LCMModule, data: ConceptData) -> HeldOut:
    """Held-out examples to write for. Raises UserError where there are none, or no codec."""
    if not data.has_validation:
        setting = f"trainer.write_every={module.config.trainer.write_every}"
        raise UserError(f"{setting}: the data has no validation split to write for; expected one, or 0")
    held_out = HeldOut.open(module.config)
    say(held_out.describe())
    return held_out


def count_parameters(config: Config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(config.model).parameters())


def check(config: Config) -> Launch:
    """Check all that `train` would refuse before its first step. Prints what it finds and writes nothing."""
    launch = read_environment(config, checks_only=True)
    module, data = assemble(config, on_meta=True)
    parameters = count_parameters(config)
    print(f"model      {config.model.kind}, {parameters:,} parameters")
    for line in describe(module.model, config.optimizer):
        print(line)
    for line in data.describe():
        print(f"data       {line}")
    strategy, reason = choose(config.trainer.strategy, parameters, device_memory(launch), launch.world_size)
    check_strategy(strategy, config)
    check_loggers(config)
    folder = Path(config.run.dir)
    check_disk_space(folder, parameters, config.trainer.keep)
    check_free(folder)
    print(f"processes  {launch.world_size}, {strategy}: {reason}")
    start = decide(module.config, launch.world_size)
    beginning = f", fine-tuning {config.trainer.start}" if config.trainer.start else ""
    where = f", resuming from {start.checkpoint}" if start.checkpoint else beginning
    print(f"run        {config.trainer.max_steps:,} steps into {config.run.dir}{where}")
    for note in start.notes:
        say(note)
    if config.trainer.write_every:
        _held_out(module, data)
    return launch


def dry_run(config: Config) -> None:
    """Run `check`, then train one step if the host has the memory for it."""
    check(config)
    parameters = count_parameters(config)
    needed, memory = BYTES_PER_PARAMETER * parameters, host_memory()
    if needed > 0.75 * memory and not torch.cuda.is_available():
        print(f"one step   not run: weights and AdamW take {needed >> 30} GiB, this machine has {memory >> 30} GiB")
        return
    short = {"max_steps": 1, "loggers": (), "devices": 1, "nodes": 1, "log_every": 1}
    config = config.model_copy(update={"trainer": config.trainer.model_copy(update=short)})
    module, data = assemble(config)
    start = time.perf_counter()
    with quiet_lightning():
        build_trainer(config, Launch("lcm train", 0, 1, 1), None, False).fit(module, datamodule=data)
    print(f"one step   loss {module.reported['train/loss']:.4g}, {time.perf_counter() - start:.1f} s")


def main(argv: Sequence[str] | None = None) -> int:
    """`lcm train`: prints the run's folder on stdout, everything else on stderr."""
    parser = argparse.ArgumentParser(
        prog="lcm train",
        usage="%(prog)s --config FILE [--dry-run] [--SECTION.SETTING VALUE …]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--check", action="store_true", help="check configuration and data, write nothing")
    parser.add_argument("--dry-run", action="store_true", help="check everything, train one step, write nothing")
    args, config = Config.from_command_line(parser, argv)
    if args.check or args.dry_run:
        signals.ignore()
    if args.check:
        check(config)
    elif args.dry_run:
        dry_run(config)
    else:
        say(str(train(config)), file=sys.stdout)
    return 0
