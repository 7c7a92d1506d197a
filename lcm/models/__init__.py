"""The concept models: `build_model` makes one, `ConceptModel` says what may be assumed of any.

Read interface, then base (the simplest), then diffusion and two_tower. schedules, diffusion and samplers are the three
seams of a diffusion model. Nothing here reads data, trains or knows text.
"""

from lcm.models.build import build_model
from lcm.models.folder import assembled, load_model, save_model, save_state
from lcm.models.fragility import FragilityNetwork, save_fragility
from lcm.models.interface import ConceptModel, Sampling, resolve_sampling
from lcm.models.normalizer import Normalizer
from lcm.models.quantizer import QuantizerRecord, ResidualQuantizer, load_quantizer, save_quantizer
from lcm.models.quantizer_fitting import fit_quantizer, variance
from lcm.models.schedules import alpha_bar, sampling_timesteps
from lcm.models.transformer import BlockHook

__all__ = [
    "BlockHook",
    "ConceptModel",
    "FragilityNetwork",
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
    "resolve_sampling",
    "sampling_timesteps",
    "save_fragility",
    "save_model",
    "save_quantizer",
    "save_state",
    "variance",
]
