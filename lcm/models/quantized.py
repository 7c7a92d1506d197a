"""Quant-LCM: a concept is the sum of units, each chosen beside the context and the sum so far (paper §2.3.5).

Shapes.  B rows · S slots · N concepts · D concept width · M model width · Q codebooks · V units
         outputs: V or D
"""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding

from lcm.batch import Batch
from lcm.config import QuantConfig
from lcm.errors import UserError
from lcm.models.interface import Losses, Sampling, settle
from lcm.models.interleaved import InterleavedLCM, Places
from lcm.models.quantizer import ResidualQuantizer, load_quantizer
from lcm.models.transformer import BlockHook, no_hook
from lcm.seeds import generators


@dataclass(frozen=True)
class QuantSampling:
    """The paper's settings for texts of several sentences (§2.4.1); `Sampling` says what each does.

    temperature: d: of the softmax over units. c: 1/β, as p(u) ∝ exp(-β · |u - r|)
    """

    temperature: float
    top_k: int
    guidance: float


class QuantLCM(InterleavedLCM):
    """Step k asks for the unit of codebook k - 1, given the sum of those before. Subclasses: what the network says."""

    defaults: ClassVar[QuantSampling]

    def __init__(self, config: QuantConfig, outputs: int, on_block: BlockHook) -> None:
        super().__init__(config, nn.Embedding(config.codebooks + 1, config.step_width), on_block)
        self.config = config
        self.quantizer = ResidualQuantizer(config.codebooks, config.units, config.dim)
        self.post = nn.Linear(config.width, outputs)

    def read_fitted(self, codec: str) -> None:
        setting = f"model.quantizer={self.config.quantizer}"
        if not Path(self.config.quantizer).is_file():
            what = "no such file" if self.config.quantizer else "is empty"
            raise UserError(f"{setting}: {what}; expected the file that data_prep/fit_quantizer.py wrote")
        fitted, record = load_quantizer(self.config.quantizer)
        if fitted.codebooks.shape != self.quantizer.codebooks.shape:
            codebooks, units, dim = fitted.codebooks.shape
            raise UserError(
                f"{setting}: {codebooks} codebooks of {units} units of {dim} numbers, but the model has "
                f"model.codebooks={self.config.codebooks}, model.units={self.config.units}, model.dim={self.dim}"
            )
        record.check(setting, codec, self.normalizer)
        self.quantizer.set(fitted.codebooks)

    def loss(self, batch: Batch) -> Losses:
        """Of each target at a codebook of its own, all of them in one pass; in fp32."""
        z, pos = self.normalizer(batch.emb), batch.pos
        given = self.clean(z, pos)
        slots = z.shape[1]
        drawn = [
            (torch.randint(self.config.codebooks, (slots,), generator=g), torch.rand(slots, generator=g))
            for g in generators(0, batch.row[:, None])
        ]
        k, chance = (torch.stack(parts).to(z.device) for parts in zip(*drawn, strict=True))
        dropped: Bool[Tensor, "B S"] = (chance < self.config.context_drop) & self.training
        index = batch.targets(self.predicts_first).flatten().nonzero()[:, 0]
        clean, k = z.flatten(0, 1)[index], k.flatten()[index]
        asked = self.quantizer.targets(clean, k)
        steps, which = torch.unique(k, return_inverse=True)
        making = self.trunk.inputs(asked.sums, embedding(which, self.steps(steps + 1)), pos.flatten()[index])
        state = self.trunk(given, making, batch.doc, pos, index, dropped)
        return self.losses(self.post(state).float(), clean, asked.units)

    @abstractmethod
    def losses(self, out: Float[Tensor, "N outputs"], z: Float[Tensor, "N D"], units: Int[Tensor, " N"]) -> Losses:
        """Of what the network says of the concepts z, whose next units are `units`."""

    @abstractmethod
    def scores(
        self, out: Float[Tensor, "N outputs"], sums: Float[Tensor, "N D"], k: int, temperature: float
    ) -> Float[Tensor, "N V"]:
        """Of each unit of codebook k: the higher, the likelier; a softmax over them gives their probabilities."""

    def sample(self, places: Places, sampling: Sampling) -> Float[Tensor, "N D"]:
        """One unit of each codebook after the other; guidance on what the network says (§2.3.5)."""
        settings = settle(sampling, self.defaults)
        chances = places.draws.uniform(0, self.config.codebooks)
        steps = self.steps(1 + torch.arange(self.config.codebooks, device=chances.device))
        sums = chances.new_zeros(len(chances), self.dim)
        for k in range(self.config.codebooks):
            out = self._guided(sums, steps[k : k + 1], places, settings.guidance)
            unit = choose(self.scores(out, sums, k, settings.temperature), settings.top_k, chances[:, k])
            sums = sums + self.quantizer.centroid(k, unit)
        return sums

    def _guided(
        self, sums: Float[Tensor, "N D"], step: Float[Tensor, "1 M"], places: Places, guidance: float
    ) -> Float[Tensor, "N outputs"]:
        if guidance == 1:
            alone: Tensor = self.post(self.made(sums, step, places)).float()
            return alone
        out = self.post(self.made(torch.cat([sums, sums]), step, places, without=len(sums))).float()
        with_context, without = out[: len(sums)], out[len(sums) :]
        return without + guidance * (with_context - without)


class QuantLCMd(QuantLCM):
    """Quant-LCM-d: a softmax over the units of the codebook that is asked for."""

    defaults: ClassVar[QuantSampling] = QuantSampling(temperature=1.0, top_k=3, guidance=1.0)

    def __init__(self, config: QuantConfig, on_block: BlockHook = no_hook) -> None:
        super().__init__(config, config.units, on_block)

    def losses(self, out: Float[Tensor, "N V"], z: Float[Tensor, "N D"], units: Int[Tensor, " N"]) -> Losses:
        """Cross-entropy, in nats. Meter accuracy: how often the likeliest unit is the right one."""
        return Losses(
            cross_entropy(out, units, reduction="none"), {"accuracy": (out.argmax(1) == units).float().detach()}
        )

    def scores(
        self, out: Float[Tensor, "N V"], sums: Float[Tensor, "N D"], k: int, temperature: float
    ) -> Float[Tensor, "N V"]:
        return out / max(temperature, COLD)


class QuantLCMc(QuantLCM):
    """Quant-LCM-c: predicts the whole concept, of which the sum so far leaves a residual; takes a unit near that."""

    defaults: ClassVar[QuantSampling] = QuantSampling(temperature=0.005, top_k=5, guidance=1.5)

    def __init__(self, config: QuantConfig, on_block: BlockHook = no_hook) -> None:
        super().__init__(config, config.dim, on_block)

    def losses(self, out: Float[Tensor, "N D"], z: Float[Tensor, "N D"], units: Int[Tensor, " N"]) -> Losses:
        """Squared error in normalized space, summed over channels. Meter l2: the distance as raw vectors."""
        with torch.no_grad():
            l2 = (self.normalizer.inverse(out) - self.normalizer.inverse(z)).norm(dim=-1)
        return Losses((out - z).square().sum(-1), {"l2": l2})

    def scores(
        self, out: Float[Tensor, "N D"], sums: Float[Tensor, "N D"], k: int, temperature: float
    ) -> Float[Tensor, "N V"]:
        """-|u - r| / temperature; the plain distance, of the two that the paper's equation 23 can mean."""
        return -self.quantizer.squared_distances(out - sums, k).sqrt() / max(temperature, COLD)


COLD = 1e-6
"""A temperature of 0, as near as fp32 can divide by."""


def choose(scores: Float[Tensor, "N V"], top_k: int, chance: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """A unit among the best `top_k`, with softmax probabilities; chance: in [0, 1), which one it is."""
    best, unit = scores.topk(min(top_k, scores.shape[1]), dim=1)
    up_to = best.softmax(1).cumsum(1)
    number = (chance[:, None] >= up_to[:, :-1]).sum(1, keepdim=True)
    chosen: Int[Tensor, " N"] = unit.gather(1, number)[:, 0]
    return chosen
