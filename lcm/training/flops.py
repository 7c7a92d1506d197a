"""Operations: how many training takes, and how many a device could do.

Shapes.  S slots
"""

import warnings

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import nn

from lcm.models.denoiser import CrossAttention, DenoiserBlock, TimestepEmbedding
from lcm.models.interleaved_blocks import Interleaved
from lcm.models.transformer import Attention


def training_flops(model: nn.Module, slots: int) -> int:
    """Of one concept, forward and backward: 6 a parameter, and 12 · width · slots an attention layer.

    The convention of Chowdhery et al. 2022, appendix B: recomputed activations and empty slots count for nothing. Nor
    do a denoiser's modulations, made once a timestep; and a concept goes through interleaved blocks twice.
    """
    used, attention = sum(p.numel() for p in model.parameters()), 0
    for part in model.modules():
        match part:
            case Attention() | CrossAttention():
                attention += 12 * part.out.in_features * slots
            case DenoiserBlock():
                used -= sum(p.numel() for p in part.modulator.parameters())
            case TimestepEmbedding():
                used -= sum(p.numel() for p in part.parameters())
            case Interleaved():
                used += sum(p.numel() for p in part.blocks.parameters())
                attention += 12 * len(part.norm.weight) * slots * len(part.blocks)
    return 6 * used + attention


def peak_flops(device: torch.device, precision: str) -> float | None:
    """What the device could do by its data sheet; None for a CPU, and for a device that Lightning does not know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_available_flops(device, torch.bfloat16 if precision == "bf16" else torch.float32)
