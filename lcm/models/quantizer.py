"""A residual quantizer: each codebook quantizes the residual that the codebooks before it leave (paper §2.3.5).

From r_0 = z and s_0 = 0: u_k = argmin_u |C_k[u] - r_k|², r_{k+1} = r_k - C_k[u_k], s_{k+1} = s_k + C_k[u_k]. k counts
from 0 here and from 1 in the paper: s_k is the sum of k units, and C_k the codebook that comes next.

Shapes.  N vectors · D concept width · Q codebooks · V units of a codebook
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Float32, Int, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lcm.errors import UserError
from lcm.files import atomic_path
from lcm.models.interface import Normalizer
from lcm.options import existing_file

DISTANCES = 2**24
"""Size of the largest table of distances (64 MiB); longer batches are split."""


class ResidualQuantizer(nn.Module):
    """Vectors ↔ codes, the index of a unit of each codebook, in fp32, also under autocast. Zero until they are set."""

    codebooks: Float[Tensor, "Q V D"]
    squares: Float[Tensor, "Q V"]
    """|u|² of every unit, computed from the codebooks; in no state dict."""

    def __init__(self, codebooks: int, units: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(codebooks, units, dim, dtype=torch.float32))
        self.register_buffer("squares", torch.zeros(codebooks, units, dtype=torch.float32), persistent=False)
        self.register_load_state_dict_post_hook(_compute_squares)  # type: ignore[no-untyped-call]

    def set(self, codebooks: Float[Tensor, "Q V D"]) -> None:
        self.codebooks.copy_(codebooks)
        _compute_squares(self)

    def forward(self, z: Float[Tensor, "N D"]) -> Float32[Tensor, "N D"]:
        """The quantized vectors, s_Q."""
        return self.dequantize(self.encode(z))

    @torch.no_grad()
    def encode(self, z: Float[Tensor, "N D"]) -> Int64[Tensor, "N Q"]:
        """u_0, …, u_{Q-1} of each row."""
        residual, codes = z.float(), []
        for k in range(len(self.codebooks)):
            codes.append(self.nearest(residual, k))
            residual = residual - self.centroid(k, codes[-1])
        return torch.stack(codes, 1)

    @torch.no_grad()
    def dequantize(self, codes: Int[Tensor, "N Q"], k: Int[Tensor, " N"] | None = None) -> Float32[Tensor, "N D"]:
        """s_k of each row, k in 0..Q; by default s_Q."""
        if k is None:
            k = torch.full_like(codes[:, 0], len(self.codebooks))
        order, deeper = self._deepest_first(k)
        sums, sorted_codes = self.codebooks.new_zeros(len(codes), self.codebooks.shape[2]), codes[order]
        for j, n in enumerate(deeper):
            sums[:n] += self.centroid(j, sorted_codes[:n, j])
        return sums[order.argsort()]

    @torch.no_grad()
    def targets(
        self, z: Float[Tensor, "N D"], k: Int[Tensor, " N"]
    ) -> tuple[Float32[Tensor, "N D"], Int64[Tensor, " N"]]:
        """s_k and u_k of each row, k in 0..Q-1, from a search in its first k + 1 codebooks alone."""
        order, deeper = self._deepest_first(k)
        assert not deeper[-1], "k is at most Q-1: no codebook comes after the last"
        residuals = z.float()[order]
        sums = torch.zeros_like(residuals)
        units, active = torch.empty_like(order), len(z)
        for j, n in enumerate(deeper):
            units[:active] = self.nearest(residuals[:active], j)
            centroids = self.centroid(j, units[:n])
            sums[:n] += centroids
            residuals[:n] -= centroids
            active = n
        back = order.argsort()
        return sums[back], units[back]

    @torch.no_grad()
    def nearest(self, residuals: Float[Tensor, "N D"], k: int) -> Int64[Tensor, " N"]:
        """The unit of C_k nearest to each row, the first one of a tie."""
        rows = max(1, DISTANCES // self.codebooks.shape[1])
        return torch.cat([self._scores(part, k).argmin(1) for part in torch.split(residuals.float(), rows)])

    def squared_distances(self, residuals: Float[Tensor, "N D"], k: int) -> Float32[Tensor, "N V"]:
        """|C_k[u] - r|² of every unit u."""
        residuals = residuals.float()
        return (self._scores(residuals, k) + residuals.square().sum(1, keepdim=True)).clamp(min=0)

    def centroid(self, k: int | Int[Tensor, " N"], units: Int[Tensor, " N"]) -> Float32[Tensor, "N D"]:
        """C_k[u], for one k or one for each row."""
        return self.codebooks[k, units]

    def _scores(self, residuals: Float32[Tensor, "N D"], k: int) -> Float32[Tensor, "N V"]:
        """|u|² - 2 r·u: |C_k[u] - r|² up to |r|², which all units share."""
        with torch.autocast(residuals.device.type, enabled=False):
            return torch.addmm(self.squares[k], residuals, self.codebooks[k].T, alpha=-2)

    def _deepest_first(self, k: Int[Tensor, " N"]) -> tuple[Int64[Tensor, " N"], list[int]]:
        """Rows sorted by falling k, and for each codebook j the number of rows with k > j, which come first."""
        each = torch.arange(len(self.codebooks), device=k.device)
        return k.argsort(descending=True, stable=True), (k[:, None] > each).sum(0).tolist()


def _compute_squares(quantizer: nn.Module, _: object = None) -> None:
    """Codebook by codebook: the square of all codebooks at once would take as much memory as they do."""
    assert isinstance(quantizer, ResidualQuantizer)
    quantizer.squares = torch.stack([units.square().sum(1) for units in quantizer.codebooks])


Space = Literal["raw", "normalised"]
"""Space of the quantized vectors: the codec's own, or behind the data's normalizer."""
_RECORD = "lcm quantizer"
"""The only key of the file's metadata, because safetensors writes several keys in no fixed order."""


@dataclass(frozen=True)
class QuantizerRecord:
    """The codec and the space that a quantizer was fitted to, and the normalizer into it; the identity if it is raw."""

    codec: str
    fingerprint: str
    space: Space
    normalizer: Normalizer

    def check(self, setting: str, fingerprint: str, normalizer: Normalizer) -> None:
        """Raises UserError, which begins with `setting`, for data of another codec or, if it matters, normalizer."""
        if fingerprint != self.fingerprint:
            raise UserError(
                f"{setting}: fitted to vectors of codec '{self.codec}' (fingerprint {self.fingerprint}), but the data "
                f"was encoded with fingerprint {fingerprint}; fit it to this data: python data_prep/fit_quantizer.py"
            )
        scalings = [torch.stack([n.location, n.scale]).cpu() for n in (self.normalizer, normalizer)]
        if self.space == "normalised" and not torch.equal(*scalings):
            raise UserError(
                f"{setting}: was fitted with a different normalizer than this data set's; fit it to this data: "
                "python data_prep/fit_quantizer.py"
            )


def save_quantizer(path: str | Path, quantizer: ResidualQuantizer, record: QuantizerRecord) -> None:
    """Write a safetensors file atomically: codebooks (Q V D), location and scale (D), and the record."""
    path, about = Path(path), {"codec": record.codec, "fingerprint": record.fingerprint, "space": record.space}
    tensors = quantizer.state_dict() | record.normalizer.state_dict()
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        save_file(tensors, partial, {_RECORD: json.dumps(about)})


def load_quantizer(path: str | Path) -> tuple[ResidualQuantizer, QuantizerRecord]:
    """Read the file of `save_quantizer`, on the CPU. Raises UserError if it is missing, broken or of another kind."""
    path = existing_file(path, "quantizer")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_RECORD])
            codebooks, *scaling = (file.get_tensor(name) for name in ("codebooks", "location", "scale"))
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy it again") from error
    except KeyError as error:
        raise UserError(f"{path}: not a quantizer; expected a file of data_prep/fit_quantizer.py") from error
    with torch.device("meta"):
        quantizer = ResidualQuantizer(*codebooks.shape)
    quantizer.load_state_dict({"codebooks": codebooks}, assign=True)
    normalizer = Normalizer(codebooks.shape[2])
    normalizer.set(*scaling)
    return quantizer, QuantizerRecord(about["codec"], about["fingerprint"], about["space"], normalizer)
