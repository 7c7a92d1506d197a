"""Vectors of a frozen encoder, rounded by a residual quantizer, for a quantized decoder to read (paper §2.3.5).

Shapes.  n vectors · D concept width
"""

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from lcm.codec import storage
from lcm.codec_lab.training.settings import CodecTraining
from lcm.codec_lab.training.start import Start
from lcm.data.manifest import location_and_scale
from lcm.errors import UserError
from lcm.models import Normalizer
from lcm.models.quantizer import QuantizerRecord, ResidualQuantizer, load_quantizer
from lcm.models.quantizer_fitting import fit_quantizer, variance
from lcm.training.loggers import say

PARTIAL = 0.3
"""Chance that a training vector is rounded by some of the codebooks only, 2/3 of them at least."""


class Rounding(nn.Module):
    """Raw vectors → rounded raw vectors, in fp32."""

    def __init__(self, quantizer: ResidualQuantizer, record: QuantizerRecord) -> None:
        super().__init__()
        self.quantizer, self.record, self.normalizer = quantizer, record, record.normalizer

    def forward(self, vectors: Float[Tensor, "n D"], k: Int64[Tensor, " n"] | None = None) -> Float32[Tensor, "n D"]:
        """Round by the first k codebooks; without k, by all."""
        codes = self.quantizer.encode(self.normalizer(vectors))
        return self.normalizer.inverse(self.quantizer.dequantize(codes, k))

    def in_training(self, vectors: Float[Tensor, "n D"]) -> Float32[Tensor, "n D"]:
        """Round by all codebooks or, with probability PARTIAL, by a random number of them."""
        most = len(self.quantizer.codebooks)
        some = torch.randint(-(-2 * most // 3), most + 1, (len(vectors),), device=vectors.device)
        drawn = torch.rand(len(vectors), device=vectors.device) < PARTIAL
        return self(vectors, torch.where(drawn, some, most))


def load_rounding(path: str, start: Start) -> Rounding:
    """Rounding by existing codebooks. Raises UserError where they were fitted to another codec."""
    assert start.folder, "the settings refuse a frozen encoder without a codec"
    quantizer, record = load_quantizer(path)
    fingerprint = storage.fingerprint(start.folder)
    if record.fingerprint != fingerprint:
        raise UserError(
            f"terms.quantizer={path}: fitted to vectors of codec '{record.codec}' (fingerprint {record.fingerprint}), "
            f"but start has {fingerprint}; start from that codec, or fit it again: python data_prep/fit_quantizer.py"
        )
    return Rounding(quantizer, record)


def fit_rounding(vectors: Float[Tensor, "n D"], settings: CodecTraining, start: Start) -> Rounding:
    """Rounding by codebooks, and a normalizer before them, that are fitted to these vectors of the start."""
    assert start.folder, "the settings refuse a frozen encoder without a codec"
    chosen, normalizer = settings.terms, Normalizer(vectors.shape[1])
    if len(vectors) < chosen.units:
        raise UserError(f"terms.units={chosen.units}, but there are only {len(vectors)} sentences to fit them to")
    normalizer.set(*location_and_scale(vectors))
    quantizer = fit_quantizer(normalizer(vectors), chosen.codebooks, chosen.units, settings.run.seed)
    record = QuantizerRecord(settings.start, storage.fingerprint(start.folder), "normalised", normalizer)
    rounding = Rounding(quantizer, record)
    left = float((vectors - rounding(vectors)).square().sum()) / variance(vectors)
    say(f"{chosen.codebooks} codebooks of {chosen.units} units leave {left:.1%} of the variance")
    return rounding
