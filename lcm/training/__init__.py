"""A training run: `lcm train` and `lcm export`.

Read run (configuration → model, data, Trainer → fit), then module (one step), then checkpoint and callbacks (what is
saved, and when a run stops). engine and deepspeed hold what differs between engines, strategies the choice between
them. Nothing here knows a model family by name, and nothing here is needed to generate.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcm.training.checkpoint import LAST, AtomicCheckpointIO, checkpoint_bytes, latest
    from lcm.training.loggers import MetricsFile, PlainLogger, quiet_lightning, say
    from lcm.training.module import LCMModule
    from lcm.training.run import train
    from lcm.training.strategies import SHARDED, check_strategy, choose

__all__ = [
    "LAST",
    "SHARDED",
    "AtomicCheckpointIO",
    "LCMModule",
    "MetricsFile",
    "PlainLogger",
    "check_strategy",
    "checkpoint",
    "checkpoint_bytes",
    "choose",
    "latest",
    "quiet_lightning",
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
    "checkpoint_bytes": "checkpoint",
    "MetricsFile": "loggers",
    "PlainLogger": "loggers",
    "quiet_lightning": "loggers",
    "say": "loggers",
    "SHARDED": "strategies",
    "check_strategy": "strategies",
    "choose": "strategies",
}
"""Module of each name. They import Lightning, which takes seconds, so they are loaded on first use."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
