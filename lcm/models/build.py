"""The one place that builds a model by its kind; CONTRIBUTING.md lists what else a new family needs."""

from lcm.config import BaseLCMConfig, ModelConfig, OneTowerConfig, QuantConfig, TwoTowerConfig
from lcm.models.base import BaseLCM
from lcm.models.interface import ConceptModel
from lcm.models.one_tower import OneTowerLCM
from lcm.models.quantized import QuantLCMc, QuantLCMd
from lcm.models.transformer import BlockHook, no_hook
from lcm.models.two_tower import TwoTowerLCM


def build_model(config: ModelConfig, on_block: BlockHook = no_hook) -> ConceptModel:
    """Build and initialize a model. Until they are set, its normalizer is the identity, its end-of-text vector zero.

    Under `torch.device("meta")` it has shapes and counts, but takes no memory.

    on_block: called with each block as soon as it is built, to shard it; must not draw random numbers
    """
    match config:
        case BaseLCMConfig():
            return BaseLCM(config, on_block)
        case TwoTowerConfig():
            return TwoTowerLCM(config, on_block)
        case OneTowerConfig():
            return OneTowerLCM(config, on_block)
        case QuantConfig(kind="quant_c"):
            return QuantLCMc(config, on_block)
        case QuantConfig():
            return QuantLCMd(config, on_block)
