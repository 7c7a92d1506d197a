"""The concept models: `build_model` builds one, `ConceptModel` is the interface of them all.

Read interface, then base, the simplest model, then two_tower and diffusion, which hold a diffusion model's objective.
schedules, diffusion and samplers are its three seams; transformer and denoiser are its networks. interleaved is the
common part of one_tower and quantized. What only makes generation faster is in fast. Nothing here reads data sets,
trains, or knows text.
"""

from lcm.models.build import build_from_tensors, build_model, load_model, save_model, save_state
from lcm.models.fragility import FragilityNetwork, save_fragility
from lcm.models.interface import ConceptModel, Normalizer, Sampling, resolve_sampling
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
    "build_from_tensors",
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
