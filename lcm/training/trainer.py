"""The Trainer of a run, and the memory that its ranks have."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lcm.config import Config
from lcm.training.callbacks import Checkpoints
from lcm.training.checkpoint import AtomicCheckpointIO
from lcm.training.deepspeed import build_strategy
from lcm.training.environment import Launch
from lcm.training.loggers import build_loggers, quiet_lightning
from lcm.training.ownership import Owner
from lcm.training.ranks import watch_children
from lcm.training.writing import Writing


def device_memory(launch: Launch) -> int:
    """Bytes of memory per rank: of a GPU, or this rank's part of the host's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return host_memory() // launch.devices


def host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def build_trainer(
    config: Config, launch: Launch, folder: Path | None, validates: bool, strategy: str = "single",
    owner: Owner | None = None, start: int = 0,
) -> L.Trainer:  # fmt: skip
    """A Trainer for one endless epoch; validation and checkpoints count optimizer steps.

    folder: the run's folder; None writes nothing
    owner:  rank 0's hold on it
    start:  the step from which the run resumes
    """
    settings = config.trainer
    plugins: list[Any] = [AtomicCheckpointIO(background=True, owner=owner), launch.plugin()]
    writing = Writing(settings.write_every)
    callbacks = [writing, Checkpoints(folder, settings, writing)] if folder else None
    if launch.world_size > 1:
        launch.mark()
        watch_children()
    with quiet_lightning():
        trainer = L.Trainer(
            devices=launch.devices,
            num_nodes=launch.world_size // launch.devices,
            strategy=build_strategy(strategy, launch.world_size, settings),
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
            logger=build_loggers(config, folder, start) if folder else False,
            callbacks=callbacks,
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
