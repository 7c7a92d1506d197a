"""Quant-LCM: a concept is a sum of units, each chosen from the context and the sum so far (paper §2.3.5).

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

from lcm.batch import Batch, draw_rows
from lcm.config import QuantConfig
from lcm.errors import UserError
from lcm.models.interface import Losses, resolve_sampling
from lcm.models.one_tower import Conditioning, InterleavedLCM
from lcm.models.quantizer import ResidualQuantizer, load_quantizer
from lcm.models.transformer import BlockHook, no_hook
from lcm.sampling import Sampling

COLD = 1e-6
"""Stands for a temperature of 0, by which fp32 cannot divide."""


@dataclass(frozen=True)
class QuantSampling:
    """The paper's settings for texts of several sentences (§2.4.1). c: temperature is 1/β of p(u) ∝ exp(-β|u - r|)."""

    temperature: float
    top_k: int
    guidance: float


class QuantLCM(InterleavedLCM):
    """Step k predicts the unit of codebook k - 1 from the sum of the units before. Subclasses define the output."""

    defaults: ClassVar[QuantSampling]

    def __init__(self, config: QuantConfig, on_block: BlockHook = no_hook) -> None:
        super().__init__(config, nn.Embedding(config.codebooks + 1, config.step_width), on_block)
        self.config = config
        self.quantizer = ResidualQuantizer(config.codebooks, config.units, config.dim)
        self.post = nn.Linear(config.width, config.dim if config.kind == "quant_c" else config.units)

    def load_fitted(self, fingerprint: str) -> None:
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
        record.check(setting, fingerprint, self.normalizer)
        self.quantizer.set(fitted.codebooks)

    def loss(self, batch: Batch) -> Losses:
        """The loss of predicting each target's unit in a codebook of its own, all of them in one pass; in fp32."""
        z, pos = self.normalizer(batch.emb), batch.pos
        clean = self.clean_inputs(z, pos)
        k, dropped = self.draw_codebooks(batch.row, z.shape[1])
        index = batch.targets(self.predicts_first).flatten().nonzero()[:, 0]
        concepts, k = z.flatten(0, 1)[index], k.flatten()[index]
        sums, units = self.quantizer.targets(concepts, k)
        codebooks, which = torch.unique(k, return_inverse=True)
        step = embedding(which, self.step_inputs(codebooks + 1))
        inputs = self.trunk.inputs(sums, step, pos.flatten()[index])
        states = self.trunk(clean, inputs, batch.doc, pos, index, dropped & self.training)
        return self.losses(self.post(states).float(), concepts, units)

    def draw_codebooks(
        self, row: Int[Tensor, " B"], slots: int
    ) -> tuple[Int[Tensor, "B slots"], Bool[Tensor, "B slots"]]:
        """The codebook of every slot, and whether its context is dropped: functions of each row's number alone."""

        def draw(g: torch.Generator) -> tuple[Tensor, Tensor]:
            k = torch.randint(self.config.codebooks, (slots,), generator=g)
            return k, torch.rand(slots, generator=g) < self.config.context_drop

        k, dropped = draw_rows(row, draw)
        return k, dropped

    @abstractmethod
    def losses(self, out: Float[Tensor, "N outputs"], z: Float[Tensor, "N D"], units: Int[Tensor, " N"]) -> Losses:
        """The loss of the network's output for concepts z, whose next units are `units`."""

    @abstractmethod
    def scores(self, out: Float[Tensor, "N outputs"], sums: Float[Tensor, "N D"], k: int) -> Float[Tensor, "N V"]:
        """Logits over the units of codebook k, at temperature 1."""

    def sample(self, conditioning: Conditioning, sampling: Sampling) -> Float[Tensor, "N D"]:
        """Choose a unit from one codebook after the other, with guidance on the network's output (§2.3.5)."""
        settings = resolve_sampling(sampling, self.defaults)
        u = conditioning.draws.uniform(0, self.config.codebooks)
        steps = self.step_inputs(1 + torch.arange(self.config.codebooks, device=u.device))
        sums = u.new_zeros(len(u), self.dim)
        for k in range(self.config.codebooks):
            out = self.post(self.states(sums, steps[k : k + 1], conditioning, settings.guidance != 1)).float()
            if settings.guidance != 1:
                conditional, unconditional = out.chunk(2)
                out = unconditional + settings.guidance * (conditional - unconditional)
            unit = sample_top_k(self.scores(out, sums, k), settings.top_k, u[:, k], settings.temperature)
            sums = sums + self.quantizer.centroid(k, unit)
        return sums


class QuantLCMd(QuantLCM):
    """Quant-LCM-d: a softmax over the units of the codebook."""

    defaults: ClassVar[QuantSampling] = QuantSampling(temperature=1.0, top_k=3, guidance=1.0)

    def losses(self, out: Float[Tensor, "N V"], z: Float[Tensor, "N D"], units: Int[Tensor, " N"]) -> Losses:
        """Cross-entropy, in nats. Meter accuracy: whether the likeliest unit is the target."""
        accuracy = (out.argmax(1) == units).float().detach()
        return Losses(cross_entropy(out, units, reduction="none"), {"accuracy": accuracy})

    def scores(self, out: Float[Tensor, "N V"], sums: Float[Tensor, "N D"], k: int) -> Float[Tensor, "N V"]:
        return out


class QuantLCMc(QuantLCM):
    """Quant-LCM-c: predicts the whole concept, and chooses a unit near the residual that the sum so far leaves."""

    defaults: ClassVar[QuantSampling] = QuantSampling(temperature=0.005, top_k=5, guidance=1.5)

    def losses(self, out: Float[Tensor, "N D"], z: Float[Tensor, "N D"], units: Int[Tensor, " N"]) -> Losses:
        """Squared error in normalized space, summed over channels. Meter l2: distance as raw codec vectors."""
        return Losses((out - z).square().sum(-1), {"l2": self.normalizer.distance(out, z)})

    def scores(self, out: Float[Tensor, "N D"], sums: Float[Tensor, "N D"], k: int) -> Float[Tensor, "N V"]:
        """-|u - r|. Of the two distances that the paper's equation 23 can mean, the plain one."""
        return -self.quantizer.squared_distances(out - sums, k).sqrt()


def sample_top_k(
    scores: Float[Tensor, "N V"], top_k: int, u: Float[Tensor, " N"], temperature: float = 1.0
) -> Int[Tensor, " N"]:
    """Sample among the `top_k` best units by softmax, inverting the cumulative distribution at u in [0, 1)."""
    best, unit = (scores / max(temperature, COLD)).topk(min(top_k, scores.shape[1]), dim=1)
    cumulative = best.softmax(1).cumsum(1)
    number = (u[:, None] >= cumulative[:, :-1]).sum(1, keepdim=True)
    chosen: Int[Tensor, " N"] = unit.gather(1, number)[:, 0]
    return chosen
