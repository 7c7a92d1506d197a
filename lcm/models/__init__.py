"""The concept models: `build_model` makes one, `ConceptModel` says what may be assumed of any.

Read interface, then base (the simplest), then diffusion and two_tower. schedules, diffusion and samplers are the three
seams of a diffusion model. Nothing here reads data, trains or knows text.
"""

from lcm.models.build import build_model
from lcm.models.diffusion import alpha_bar, sampling_timesteps
from lcm.models.folder import assembled, load_model, save_model, save_state
from lcm.models.fragility import Fragility, save_fragility
from lcm.models.interface import ConceptModel, Sampling, settle
from lcm.models.normalizer import Normalizer
from lcm.models.quantizer import QuantizerRecord, ResidualQuantizer, load_quantizer, save_quantizer
from lcm.models.quantizer_fitting import fit_quantizer, variance
from lcm.models.transformer import BlockHook

__all__ = [
    "BlockHook",
    "ConceptModel",
    "Fragility",
    "Normalizer",
    "QuantizerRecord",
    "ResidualQuantizer",
    "Sampling",
    "alpha_bar",
    "assembled",
    "build_model",
    "fit_quantizer",
    "load_model",
    "load_quantizer",
    "sampling_timesteps",
    "save_fragility",
    "save_model",
    "save_quantizer",
    "save_state",
    "settle",
    "variance",
]
