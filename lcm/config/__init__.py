"""The configuration of a training run: one YAML file, one frozen record.

    config = load_config("configs/base_toy.yaml", ["model.width=512", "trainer.max_steps=100"])

Four hops from a YAML value to the tensor it changes: the file, a field here, `build_model` or `train`, the constructor.
Read run first (the whole record), then models and training (its sections).
"""

from lcm.config.models import (
    BaseLCMConfig,
    DiffusionConfig,
    InterleavedConfig,
    ModelConfig,
    OneTowerConfig,
    QuantConfig,
    TwoTowerConfig,
)
from lcm.config.run import CodecRecord, Config, SamplingConfig, load_config, save_config
from lcm.config.training import DataConfig, MixedSet, OptimizerConfig, RunConfig, TrainerConfig

__all__ = [
    "BaseLCMConfig",
    "CodecRecord",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "InterleavedConfig",
    "MixedSet",
    "ModelConfig",
    "OneTowerConfig",
    "OptimizerConfig",
    "QuantConfig",
    "RunConfig",
    "SamplingConfig",
    "TrainerConfig",
    "TwoTowerConfig",
    "load_config",
    "save_config",
]
