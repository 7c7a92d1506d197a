"""config → model + data + Trainer → fit: a training run, top to bottom.

    lcm train --config configs/base_toy.yaml --data.path data/mine --run.dir runs/mine [--trainer.max_steps 100 …]
    runs/mine/model.safetensors, config.yaml    the best model so far: for lcm.load, generate and evaluate
    runs/mine/checkpoints/                      last.ckpt and best.ckpt
    runs/mine/metrics.csv, events.out.*         what was logged

The same command goes on from last.ckpt.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from lcm.config import Config
from lcm.data import ConceptData
from lcm.errors import UserError
from lcm.models import ConceptModel, build_model
from lcm.settings import from_command_line
from lcm.training import signals
from lcm.training.callbacks import Checkpoints, Left
from lcm.training.checkpoint import (
    BEST,
    LAST,
    AtomicCheckpointIO,
    check_room,
    is_finished,
    latest,
    open_checkpoint,
    resume_from,
)
from lcm.training.export import write_card
from lcm.training.loggers import build_loggers, quiet_lightning, say
from lcm.training.module import LCMModule
from lcm.training.strategies import SLICED, build_strategy, check_strategy, choose


def train(config: Config) -> Path:
    """Train to `trainer.max_steps`, or go on from where an earlier call was killed. Returns the run's folder.

    Raises UserError where the data does not fit the model, the folder is another run's, or training diverges.
    """
    folder = Path(config.run.dir)
    check_slurm(config)
    parameters = count_parameters(config)
    strategy, reason = choose(config.trainer.strategy, parameters, memory_of_a_device(config), processes_of(config))
    check_strategy(strategy, config)
    module, data = assemble(config, sliced=strategy in SLICED)
    checkpoint = resume_from(module.config)
    if checkpoint and is_finished(checkpoint, module.config):
        say(f"{folder}: all {config.trainer.max_steps:,} steps are done; raise trainer.max_steps to go on")
        return folder
    if int(os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", 0))) == 0:
        check_room(folder, parameters, config.trainer.keep)
    trainer = build_trainer(module.config, folder, validates=data.has_validation, strategy=strategy)
    device = trainer.strategy.root_device
    say(f"{folder}: {config.model.kind}, {parameters:,} parameters, on {device}")
    if trainer.world_size > 1:
        say(f"{trainer.world_size} processes, {strategy}: {reason}")
    if checkpoint:
        say(f"going on from {checkpoint}")
    if not data.has_validation:
        say("the data has nothing to validate on: the newest model counts as the best")
    if config.trainer.precision == "bf16" and device.type == "cpu":
        say("trainer.precision=bf16 is slow on most CPUs; fp32 may be many times faster")
    try:
        with quiet_lightning(), closing_files(trainer):
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except Left as left:
        return _left(left, folder, trainer.is_global_zero)
    except SystemExit:  # what Lightning makes of Ctrl-C
        if latest(folder):
            say(f"{folder}: the same command goes on from {latest(folder)}")
        raise KeyboardInterrupt from None
    best = folder / "checkpoints" / (BEST if data.has_validation else LAST)
    if trainer.is_global_zero and best.is_file():
        write_card(folder, parameters, module.config, open_checkpoint(best))
    return folder


@contextmanager
def closing_files(trainer: L.Trainer) -> Iterator[None]:
    """However training ends, what is being written is written first."""
    try:
        yield
    finally:
        io = trainer.strategy.checkpoint_io
        assert isinstance(io, AtomicCheckpointIO)
        io.wait()


def _left(left: Left, folder: Path, owner: bool) -> Path:
    """owner: asks Slurm, for all processes. Raises UserError unless the run starts again by itself."""
    job = signals.job()
    if left.wish != signals.COME_BACK or job is None:
        asked = "SIGUSR1" if left.wish == signals.COME_BACK else "SIGTERM"
        raise UserError(
            f"{folder}: asked to stop by {asked}, and did after step {left.step:,}; "
            f"the same command goes on from {latest(folder)}"
        )
    if owner:
        signals.requeue(job)
    say(f"{folder}: stopped after step {left.step:,}; job {job} is queued again and goes on from there")
    return folder


def assemble(config: Config, sliced: bool = False) -> tuple[LCMModule, ConceptData]:
    """The model, with the data's normalizer and end-of-text vector in it, and the data.

    sliced: the model is a sketch without memory, and is built when the processes have met
    """
    torch.manual_seed(config.run.seed)
    with torch.device("meta") if sliced else nullcontext():
        model = build_model(config.model)
    data = ConceptData(config, predicts_first=model.predicts_first)
    data.setup()

    def fill(model: ConceptModel) -> None:
        model.normalizer.set(*data.normalizer)
        model.end_of_text.copy_(data.end_of_text)
        model.read_fitted(data.codec.fingerprint)

    if not sliced:
        fill(model)
    config = config.model_copy(update={"codec": data.codec})
    return LCMModule(config, model, fill if sliced else None), data


def count_parameters(config: Config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(config.model).parameters())


def processes_of(config: Config) -> int:
    """Of the whole run."""
    devices = config.trainer.devices
    return config.trainer.nodes * (devices if isinstance(devices, int) else torch.cuda.device_count() or 1)


def check_slurm(config: Config) -> None:
    """Raises UserError where Slurm started another number of processes than there are to be."""
    if under_slurm() and (tasks := int(os.environ["SLURM_NTASKS"])) != processes_of(config):
        settings = config.trainer
        raise UserError(
            f"trainer.nodes={settings.nodes} and trainer.devices={settings.devices} make {processes_of(config)} "
            f"processes, but Slurm started {tasks}; slurm/train.sbatch sets both as Slurm does"
        )


def under_slurm() -> bool:
    with quiet_lightning():
        return SLURMEnvironment.detect()


def memory_of_a_device(config: Config) -> int:
    """In bytes; processes on a CPU share the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * config.trainer.nodes // processes_of(config)


def build_trainer(config: Config, folder: Path | None, validates: bool, strategy: str = "single") -> L.Trainer:
    """Lightning sees one long epoch; validation and checkpoints are counted in optimizer steps.

    folder: where the run is written; None writes nothing
    """
    settings = config.trainer
    plugins: list[Any] = [AtomicCheckpointIO(background=True)]
    if under_slurm():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    with quiet_lightning():
        trainer = L.Trainer(
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=build_strategy(strategy, processes_of(config), settings),
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
    # Lightning talks to the other processes inside its signal handlers, wherever these are, and makes them and the GPU
    # wait for one another before each batch, to ask whether anybody was told to stop. `Checkpoints` does without.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


def check(config: Config) -> None:
    """Configuration, data, the run's folder and the processes, without a step; print the numbers, write nothing."""
    with torch.device("meta"):
        model = build_model(config.model)
    data = ConceptData(config, predicts_first=model.predicts_first)
    data.setup()
    parameters = count_parameters(config)
    targets = sum(row.targets for row in data.order.rows(0, np.arange(len(data.order))))
    print(f"model      {config.model.kind}, {parameters:,} parameters")
    print(f"data       {', '.join(config.data.path)}: {targets:,} targets an epoch")
    processes = processes_of(config)
    strategy, reason = choose(config.trainer.strategy, parameters, memory_of_a_device(config), processes)
    check_strategy(strategy, config)
    check_room(Path(config.run.dir), parameters, config.trainer.keep)
    print(f"processes  {processes}, {strategy}: {reason}")
    if checkpoint := resume_from(config):
        is_finished(checkpoint, config.model_copy(update={"codec": data.codec}))
    beginning = f", going on from {checkpoint}" if checkpoint else ""
    print(f"run        {config.trainer.max_steps:,} steps into {config.run.dir}{beginning}")


def dry_run(config: Config) -> None:
    """`check`, and train one step where memory allows it."""
    check(config)
    parameters = count_parameters(config)
    needed, memory = 16 * parameters, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
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
    args, config = from_command_line(Config, parser, argv)
    if args.check or args.dry_run:
        signals.ignore()
    if args.check:
        check(config)
    elif args.dry_run:
        dry_run(config)
    else:
        say(str(train(config)), file=sys.stdout)
    return 0
