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
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from lcm.config import Config
from lcm.data.datamodule import ConceptData
from lcm.errors import UserError, in_one_line, without_secrets
from lcm.models import ConceptModel, build_model, check_sampling
from lcm.training import signals
from lcm.training.callbacks import Checkpoints, Stopped
from lcm.training.checkpoint import (
    BEST,
    LAST,
    AtomicCheckpointIO,
    check_disk_space,
    is_finished,
    latest,
    open_checkpoint,
    resume_from,
    write_card,
)
from lcm.training.deepspeed import build_strategy
from lcm.training.engine import BYTES_PER_PARAMETER, SHARDED, check_strategy, choose
from lcm.training.loggers import build_loggers, quiet_lightning, say
from lcm.training.module import LCMModule


@in_one_line()
def train(config: Config) -> Path:
    """Train to `trainer.max_steps`, from the start or from where an earlier call stopped. Returns the run's folder.

    Raises UserError where the data does not fit the model, the folder is another run's, or training diverges.
    """
    folder = Path(config.run.dir)
    check_slurm(config)
    parameters = count_parameters(config)
    strategy, reason = choose(config.trainer.strategy, parameters, device_memory(config), world_size(config))
    check_strategy(strategy, config)
    module, data = assemble(config, on_meta=strategy in SHARDED)
    checkpoint = resume_from(module.config)
    if checkpoint and is_finished(checkpoint, module.config):
        say(f"{folder}: all {config.trainer.max_steps:,} steps are done; raise trainer.max_steps to train more")
        return folder
    if int(os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", 0))) == 0:
        check_disk_space(folder, parameters, config.trainer.keep)
    trainer = build_trainer(module.config, folder, validates=data.has_validation, strategy=strategy)
    device = trainer.strategy.root_device
    say(f"{folder}: {config.model.kind}, {parameters:,} parameters, on {device}")
    if trainer.world_size > 1:
        say(f"{trainer.world_size} processes, {strategy}: {reason}")
    if checkpoint:
        say(f"resuming from {checkpoint}")
    if not data.has_validation:
        say("the data has no validation split: the newest model counts as the best")
    if config.trainer.precision == "bf16" and device.type == "cpu":
        say("trainer.precision=bf16 is slow on most CPUs; auto takes it where it is fast, else fp32")
    try:
        try:
            with quiet_lightning():
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        finally:
            trainer.strategy.checkpoint_io.teardown()  # finishes writing; FSDP's own teardown leaves it out
    except Stopped as stopped:
        return _requeue_or_raise(stopped, folder, trainer.is_global_zero)
    except SystemExit:  # Lightning's answer to Ctrl-C
        if latest(folder):
            say(f"{folder}: the same command resumes from {latest(folder)}")
        raise KeyboardInterrupt from None
    best = folder / "checkpoints" / (BEST if data.has_validation else LAST)
    if trainer.is_global_zero and best.is_file():
        write_card(folder, parameters, module.config, open_checkpoint(best))
    return folder


def _requeue_or_raise(stopped: Stopped, folder: Path, is_global_zero: bool) -> Path:
    """Requeue the Slurm job on SIGUSR1. Raises UserError where the run does not start again by itself."""
    job = os.environ.get("SLURM_JOB_ID")  # each task of an array has its own
    if stopped.request != signals.REQUEUE or not job:
        signal = "SIGUSR1" if stopped.request == signals.REQUEUE else "SIGTERM"
        raise UserError(
            f"{folder}: asked to stop by {signal}, and did after step {stopped.step:,}; "
            f"the same command resumes from {latest(folder)}"
        )
    if is_global_zero:
        signals.requeue(job)
    say(f"{folder}: stopped after step {stopped.step:,}; job {job} is queued again and resumes from there")
    return folder


def assemble(config: Config, on_meta: bool = False) -> tuple[LCMModule, ConceptData]:
    """The data, and the model with the data's normalizer and end-of-text vector in it.

    on_meta: leave the model on the meta device; LCMModule builds it, shard by shard, once the ranks have met
    """
    torch.manual_seed(config.run.seed)
    with torch.device("meta") if on_meta else nullcontext():
        model = build_model(config.model)
    check_sampling(config, model)  # before training, which does not need it
    data = ConceptData(config, predicts_first=model.predicts_first)
    data.setup()

    def fill_buffers(model: ConceptModel) -> None:
        model.normalizer.set(*data.prepared.normalizer)
        model.end_of_text.copy_(data.end_of_text)
        model.load_fitted(data.prepared.codec.fingerprint)

    if not on_meta:
        fill_buffers(model)
    config = config.model_copy(update={"codec": data.prepared.codec})
    return LCMModule(config, model, fill_buffers if on_meta else None), data


def count_parameters(config: Config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(config.model).parameters())


def world_size(config: Config) -> int:
    devices = config.trainer.devices
    return config.trainer.nodes * (devices if isinstance(devices, int) else torch.cuda.device_count() or 1)


def check_slurm(config: Config) -> None:
    """Raises UserError where Slurm has started another number of tasks than the configuration has ranks."""
    if under_slurm() and (tasks := int(os.environ["SLURM_NTASKS"])) != world_size(config):
        settings = config.trainer
        raise UserError(
            f"trainer.nodes={settings.nodes} and trainer.devices={settings.devices} make {world_size(config)} "
            f"processes, but Slurm started {tasks}; slurm/train.sbatch sets both as Slurm does"
        )


def under_slurm() -> bool:
    """True in a batch job of Slurm, False in an interactive one."""
    with quiet_lightning():
        return SLURMEnvironment.detect()


def device_memory(config: Config) -> int:
    """Bytes of memory per rank: of a GPU, or this rank's part of the host's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return host_memory() * config.trainer.nodes // world_size(config)


def host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def build_trainer(config: Config, folder: Path | None, validates: bool, strategy: str = "single") -> L.Trainer:
    """A Trainer for one endless epoch; validation and checkpoints count optimizer steps.

    folder: the run's folder; None writes nothing
    """
    settings = config.trainer
    plugins: list[Any] = [AtomicCheckpointIO(background=True)]
    if under_slurm():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    with quiet_lightning():
        trainer = L.Trainer(
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=build_strategy(strategy, world_size(config), settings),
            precision="32-true",  # LCMModule does bf16 itself
            max_steps=settings.max_steps,
            max_epochs=-1,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=config.optimizer.clip,
            val_check_interval=settings.validate_every * settings.accumulate,
            check_val_every_n_epoch=None,
            limit_val_batches=1.0 if validates else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            logger=build_loggers(config, folder) if folder else False,
            callbacks=[Checkpoints(folder, settings)] if folder else None,
            enable_checkpointing=folder is not None,
            plugins=plugins,
            default_root_dir=folder,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    # Lightning's signal handlers run collectives, wherever the other ranks are; and before each batch it synchronizes
    # ranks and GPU to ask whether any rank got SIGTERM. `Checkpoints` needs neither.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


def check(config: Config) -> None:
    """Check configuration, data, run folder and ranks, without a step. Prints what it finds and writes nothing."""
    module, data = assemble(config, on_meta=True)
    parameters = count_parameters(config)
    targets = sum(row.targets for row in data.order.rows(0, np.arange(len(data.order))))
    print(f"model      {config.model.kind}, {parameters:,} parameters")
    print(f"data       {without_secrets(', '.join(config.data.path))}: {targets:,} targets an epoch")
    ranks = world_size(config)
    strategy, reason = choose(config.trainer.strategy, parameters, device_memory(config), ranks)
    check_strategy(strategy, config)
    check_disk_space(Path(config.run.dir), parameters, config.trainer.keep)
    print(f"processes  {ranks}, {strategy}: {reason}")
    if checkpoint := resume_from(config):
        is_finished(checkpoint, module.config)
    start = f", resuming from {checkpoint}" if checkpoint else ""
    print(f"run        {config.trainer.max_steps:,} steps into {config.run.dir}{start}")


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
        build_trainer(config, folder=None, validates=False).fit(module, datamodule=data)
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
