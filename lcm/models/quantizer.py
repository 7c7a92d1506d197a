"""A residual quantizer: each codebook rounds what the ones before it have left (paper §2.3.5).

From r_0 = z and s_0 = 0: u_k = argmin_u |C_k[u] - r_k|², r_{k+1} = r_k - C_k[u_k], s_{k+1} = s_k + C_k[u_k]. Here k
counts from 0, in the paper from 1: s_k is the sum of k units, and C_k the codebook that comes next.

Shapes.  N vectors · D concept width · Q codebooks · V units of a codebook
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float32, Int, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lcm.errors import UserError, existing_file
from lcm.files import atomic_path
from lcm.models.normalizer import Normalizer

DISTANCES = 2**24
"""Numbers of the largest table of distances (64 MiB): rows are cut accordingly."""


class Targets(NamedTuple):
    """What a model of quantized concepts is trained on: `sums` and k are given, `units` or `rests` are asked for."""

    sums: Float32[Tensor, "N D"]
    units: Int64[Tensor, " N"]
    rests: Float32[Tensor, "N D"]


class ResidualQuantizer(nn.Module):
    """Vectors ↔ the numbers of the nearest units, one of each codebook. In fp32, also under autocast.

    Starts with zeros; `set` or a state dict fills it.
    """

    codebooks: Float[Tensor, "Q V D"]
    squares: Float[Tensor, "Q V"]
    """|u|² of every unit: follows the codebooks, and is in no state dict."""

    def __init__(self, codebooks: int, units: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(codebooks, units, dim, dtype=torch.float32))
        self.register_buffer("squares", torch.zeros(codebooks, units, dtype=torch.float32), persistent=False)
        self.register_load_state_dict_post_hook(_square_again)  # type: ignore[no-untyped-call]

    def set(self, codebooks: Float[Tensor, "Q V D"]) -> None:
        self.codebooks.copy_(codebooks)
        _square_again(self)

    def forward(self, z: Float[Tensor, "N D"]) -> Float32[Tensor, "N D"]:
        """The rounded vectors, s_Q."""
        return self.dequantize(self.encode(z))

    @torch.no_grad()
    def encode(self, z: Float[Tensor, "N D"]) -> Int64[Tensor, "N Q"]:
        """u_0, …, u_{Q-1} of each row."""
        rest, codes = z.float(), []
        for k in range(len(self.codebooks)):
            codes.append(self.nearest(rest, k))
            rest = rest - self.centroid(k, codes[-1])
        return torch.stack(codes, 1)

    @torch.no_grad()
    def dequantize(self, codes: Int[Tensor, "N Q"], k: Int[Tensor, " N"] | None = None) -> Float32[Tensor, "N D"]:
        """s_k of each row, k in 0..Q; without k: s_Q."""
        if k is None:
            k = torch.full_like(codes[:, 0], len(self.codebooks))
        order, deeper = self._deepest_first(k)
        sums, sorted_codes = self._zeros(len(codes)), codes[order]
        for j, n in enumerate(deeper):
            sums[:n] += self.centroid(j, sorted_codes[:n, j])
        return _unsorted(sums, order)

    @torch.no_grad()
    def targets(self, z: Float[Tensor, "N D"], k: Int[Tensor, " N"]) -> Targets:
        """s_k, u_k and r_k of each row, k in 0..Q-1. A row asks its first k + 1 codebooks, and no more."""
        order, deeper = self._deepest_first(k)
        assert not deeper[-1], "k is at most Q-1: no codebook comes after the last"
        sums, rests = self._zeros(len(z)), z.float()[order]
        units, asked = torch.empty_like(order), len(z)
        for j, n in enumerate(deeper):
            units[:asked] = self.nearest(rests[:asked], j)
            step = self.centroid(j, units[:n])
            sums[:n] += step
            rests[:n] -= step
            asked = n
        return Targets(_unsorted(sums, order), _unsorted(units, order), _unsorted(rests, order))

    @torch.no_grad()
    def nearest(self, rests: Float[Tensor, "N D"], k: int) -> Int64[Tensor, " N"]:
        """The unit of C_k at the smallest distance from each row; of several, the first."""
        rows = max(1, DISTANCES // self.codebooks.shape[1])
        found = [self._compared(part, k).argmin(1) for part in torch.split(rests.float(), rows)]
        return torch.cat(found)

    def squared_distances(self, rests: Float[Tensor, "N D"], k: int) -> Float32[Tensor, "N V"]:
        """|C_k[u] - r|² of every unit u."""
        rests = rests.float()
        return (self._compared(rests, k) + rests.square().sum(1, keepdim=True)).clamp(min=0)

    def centroid(self, k: int | Int[Tensor, " N"], units: Int[Tensor, " N"]) -> Float32[Tensor, "N D"]:
        """C_k[u], for one k or each row's own."""
        return self.codebooks[k, units]

    def _compared(self, rests: Float32[Tensor, "N D"], k: int) -> Float32[Tensor, "N V"]:
        """|u|² - 2 r·u: |C_k[u] - r|² without what all units share."""
        with torch.autocast(rests.device.type, enabled=False):
            return torch.addmm(self.squares[k], rests, self.codebooks[k].T, alpha=-2)

    def _zeros(self, rows: int) -> Float32[Tensor, "{rows} D"]:
        return self.codebooks.new_zeros(rows, self.codebooks.shape[2])

    def _deepest_first(self, k: Int[Tensor, " N"]) -> tuple[Int64[Tensor, " N"], list[int]]:
        """The rows by falling k; and for each codebook j, how many rows have k > j: they are the first ones."""
        each = torch.arange(len(self.codebooks), device=k.device)
        return k.argsort(descending=True, stable=True), (k[:, None] > each).sum(0).tolist()


def _unsorted(values: Tensor, order: Tensor) -> Tensor:
    found = torch.empty_like(values)
    found[order] = values
    return found


def _square_again(quantizer: nn.Module, _: object = None) -> None:
    """Codebook by codebook: a square of all of them at once would need their memory again."""
    assert isinstance(quantizer, ResidualQuantizer)
    quantizer.squares = torch.stack([units.square().sum(1) for units in quantizer.codebooks])


Space = Literal["raw", "normalised"]
"""Of the vectors that were quantized: as the codec makes them, or as the data's normalizer scales them."""
_RECORD = "lcm quantizer"
"""The one key of the file's metadata: safetensors writes several in no fixed order."""


@dataclass(frozen=True)
class QuantizerRecord:
    """Where a quantizer belongs. normalizer: raw codec vectors → the quantizer's; the identity in raw space."""

    codec: str
    fingerprint: str
    space: Space
    normalizer: Normalizer

    def check(self, setting: str, fingerprint: str, normalizer: Normalizer) -> None:
        """Raises UserError where the data has another codec or, in normalized space, another normalizer.

        setting: what named the file, such as "model.quantizer=q.safetensors"
        """
        if fingerprint != self.fingerprint:
            raise UserError(
                f"{setting}: fitted to vectors of codec '{self.codec}' (fingerprint {self.fingerprint}), but the data "
                f"was encoded with fingerprint {fingerprint}; fit it to this data: python data_prep/fit_quantizer.py"
            )
        pairs = zip(_scaling(self.normalizer), _scaling(normalizer), strict=True)
        same = all(torch.equal(ours.cpu(), theirs.cpu()) for ours, theirs in pairs)
        if self.space == "normalised" and not same:
            raise UserError(
                f"{setting}: fitted behind another normalizer than this data's; fit it to this data: "
                "python data_prep/fit_quantizer.py"
            )


def save_quantizer(path: str | Path, quantizer: ResidualQuantizer, record: QuantizerRecord) -> None:
    """A safetensors file: codebooks (Q V D), location and scale (D), and the record. It appears complete or not."""
    path, about = Path(path), {"codec": record.codec, "fingerprint": record.fingerprint, "space": record.space}
    location, scale = _scaling(record.normalizer)
    tensors = {"codebooks": quantizer.codebooks, "location": location, "scale": scale}
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        save_file(tensors, partial, {_RECORD: json.dumps(about)})


def load_quantizer(path: str | Path) -> tuple[ResidualQuantizer, QuantizerRecord]:
    """What `save_quantizer` wrote, on the CPU. Raises UserError for a file that is missing, broken or another kind."""
    path = existing_file(path, "quantizer")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_RECORD])
            codebooks, location, scale = (file.get_tensor(name) for name in ("codebooks", "location", "scale"))
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy it again") from error
    except KeyError as error:
        raise UserError(f"{path}: not a quantizer; expected a file of data_prep/fit_quantizer.py") from error
    with torch.device("meta"):
        quantizer = ResidualQuantizer(*codebooks.shape)
    quantizer.load_state_dict({"codebooks": codebooks}, assign=True)
    normalizer = Normalizer(codebooks.shape[2])
    normalizer.set(location, scale)
    return quantizer, QuantizerRecord(about["codec"], about["fingerprint"], about["space"], normalizer)


def _scaling(normalizer: Normalizer) -> tuple[Tensor, Tensor]:
    return normalizer.location, normalizer.scale
