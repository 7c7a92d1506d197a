"""The model families. The one dispatch in lcm/ is here."""

from lcm.config import BaseLCMConfig, ModelConfig
from lcm.models.base import BaseLCM
from lcm.models.concept_model import ConceptModel

__all__ = ["ConceptModel", "build_model"]


def build_model(config: ModelConfig) -> ConceptModel:
    """A freshly initialised model; its normaliser is the identity and its end-of-text vector zero until they are set.

    Works under `torch.device("meta")`, which gives shapes and counts without memory.
    """
    match config:
        case BaseLCMConfig():
            return BaseLCM(config)
