"""A training run: `lcm train` and `lcm export`.

Read run (configuration → model, data, Trainer → fit), then module (one step), then checkpoint and callbacks (what is
saved and when a run stops). strategies and deepspeed hold what differs between engines. Nothing here knows a model
family by name, and nothing of this is needed to generate.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcm.training.checkpoint import LAST, AtomicCheckpointIO, latest, room_of_checkpoints
    from lcm.training.loggers import MetricsFile, PlainLogger, quiet_lightning, say
    from lcm.training.module import LCMModule
    from lcm.training.run import train
    from lcm.training.strategies import SLICED, check_strategy, choose

__all__ = [
    "LAST",
    "SLICED",
    "AtomicCheckpointIO",
    "LCMModule",
    "MetricsFile",
    "PlainLogger",
    "check_strategy",
    "choose",
    "export",
    "latest",
    "quiet_lightning",
    "room_of_checkpoints",
    "run",
    "say",
    "signals",
    "train",
]

_MODULES = {
    "train": "run",
    "LCMModule": "module",
    "LAST": "checkpoint",
    "AtomicCheckpointIO": "checkpoint",
    "latest": "checkpoint",
    "room_of_checkpoints": "checkpoint",
    "MetricsFile": "loggers",
    "PlainLogger": "loggers",
    "quiet_lightning": "loggers",
    "say": "loggers",
    "SLICED": "strategies",
    "check_strategy": "strategies",
    "choose": "strategies",
}
"""Modules that import Lightning, which takes seconds: loaded when one of their names is asked for."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
