"""The peak FLOP/s of a device, by its data sheet."""

import warnings

import torch
from lightning.fabric.utilities.throughput import get_available_flops


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s of a device by its data sheet; None for a CPU, and for a device that Lightning does not know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_available_flops(device, torch.bfloat16 if precision == "bf16" else torch.float32)
