"""The concept models: `build_model` builds one, `ConceptModel` is the interface of them all.

Read interface, then base, the simplest model, then two_tower and diffusion, which hold a diffusion model's objective.
schedules, diffusion and samplers are its three seams; transformer and denoiser are its networks. interleaved is the
common part of one_tower and quantized. What only makes generation faster is in fast. Nothing here reads data sets,
trains, or knows text.
"""

from lcm.models.build import build_from_tensors, build_model, load_model, save_model
from lcm.models.interface import ConceptModel, Normalizer, Sampling, resolve_sampling
from lcm.models.transformer import BlockHook

__all__ = [
    "BlockHook",
    "ConceptModel",
    "Normalizer",
    "Sampling",
    "build_from_tensors",
    "build_model",
    "fragility",
    "load_model",
    "quantizer",
    "quantizer_fitting",
    "resolve_sampling",
    "save_model",
    "schedules",
]
