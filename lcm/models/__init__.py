"""The model families. The one dispatch in lcm/ is here."""

from lcm.config import BaseLCMConfig, ModelConfig, OneTowerConfig, QuantConfig, TwoTowerConfig
from lcm.models.base import BaseLCM
from lcm.models.concept_model import ConceptModel
from lcm.models.one_tower import OneTowerLCM
from lcm.models.quantized import QuantLCMc, QuantLCMd
from lcm.models.two_tower import TwoTowerLCM

__all__ = ["ConceptModel", "build_model"]


def build_model(config: ModelConfig) -> ConceptModel:
    """A freshly initialised model; its normaliser is the identity and its end-of-text vector zero until they are set.

    Works under `torch.device("meta")`, which gives shapes and counts without memory.
    """
    match config:
        case BaseLCMConfig():
            return BaseLCM(config)
        case TwoTowerConfig():
            return TwoTowerLCM(config)
        case OneTowerConfig():
            return OneTowerLCM(config)
        case QuantConfig(kind="quant_c"):
            return QuantLCMc(config)
        case QuantConfig():
            return QuantLCMd(config)
