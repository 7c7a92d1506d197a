"""One-Tower and Quant-LCM as the paper draws them: every concept twice in one sequence, under a dense mask.

Shapes.  B rows · S slots · D concept width · M model width

The sequence is noisy 0, clean 0, noisy 1, clean 1, …; both copies of a concept have its position (paper, figure 7).
"""

import torch
from jaxtyping import Bool, Float, Int
from naive_diffusion import Noising, ddim, draw, noised
from naive_transformer import Transformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from lcm.config import InterleavedConfig, OneTowerConfig, QuantConfig
from lcm.models.diffusion import Diffusion, DiffusionSampling
from lcm.models.interface import Normalizer
from lcm.models.layers import TimestepEmbedding
from lcm.models.quantized import QuantSampling, sample_top_k
from lcm.models.quantizer import ResidualQuantizer
from lcm.models.samplers import sampling_timesteps


def interleaved_mask(dropped: Bool[Tensor, "B S"]) -> Bool[Tensor, "B 1 S2 S2"]:
    """Each slot sees itself and the clean slots of earlier concepts; dropped noisy ones see themselves alone."""
    slot = torch.arange(2 * dropped.shape[1])
    earlier_and_clean = (slot[None] // 2 < slot[:, None] // 2) & (slot[None] % 2 == 1)
    alone = torch.stack([dropped, torch.zeros_like(dropped)], dim=2).flatten(1)
    return ((earlier_and_clean & ~alone[:, :, None]) | (slot[None] == slot[:, None])).unsqueeze(1)


class Trunk(Transformer):
    def __init__(self, config: InterleavedConfig) -> None:
        super().__init__(config.width, config.heads, config.layers, config.dropout)
        self.pre = nn.Linear(config.dim + config.step_width, config.width)
        self.learned = config.positions == "learned"
        if self.learned:
            self.positions = nn.Embedding(config.max_positions, config.width)

    def both(self, x: Float[Tensor, "B S2 E"], mask: Bool[Tensor, "B 1 S2 S2"]) -> Float[Tensor, "B S2 M"]:
        x, pos = self.pre(x), torch.arange(x.shape[1]) // 2
        return self(x + self.positions(pos), 0 * pos, mask) if self.learned else self(x, pos, mask)


class NaiveInterleaved(nn.Module):
    def __init__(self, config: InterleavedConfig, step_embedding: nn.Module, outputs: int) -> None:
        super().__init__()
        self.config = config
        self.normalizer = Normalizer(config.dim)
        self.step_embedding = step_embedding
        self.trunk = Trunk(config)
        self.post = nn.Linear(config.width, outputs)

    def forward(
        self,
        z: Float[Tensor, "B S D"],
        making: Float[Tensor, "B S D"],
        step: Int[Tensor, "B S"],
        dropped: Bool[Tensor, "B S"],
    ) -> Float[Tensor, "B S outputs"]:
        noisy = torch.cat([making, self._embedded(step)], dim=-1)
        clean = torch.cat([z, self._embedded(torch.zeros_like(step))], dim=-1)
        together = torch.stack([noisy, clean], dim=2).flatten(1, 2)
        return self.post(self.trunk.both(together, interleaved_mask(dropped))[:, 0::2])

    def last(
        self, context: Float[Tensor, "B C D"], x: Float[Tensor, "B D"], step: int
    ) -> tuple[Float[Tensor, "B outputs"], Float[Tensor, "B outputs"]]:
        """The output for one more concept with the context and without it, each from the whole sequence."""
        room = torch.zeros_like(x).unsqueeze(1)
        z = torch.cat([context, room], dim=1).repeat(2, 1, 1)
        making = pad(x.unsqueeze(1), (0, 0, context.shape[1], 0)).repeat(2, 1, 1)
        dropped = (torch.arange(len(z)) >= len(x))[:, None].expand(-1, z.shape[1])
        out = self(z, making, torch.full(z.shape[:2], step), dropped)[:, -1]
        return out[: len(x)], out[len(x) :]

    def _embedded(self, step: Int[Tensor, "B S"]) -> Float[Tensor, "B S E"]:
        return self.step_embedding(step.flatten()).unflatten(0, step.shape)


class NaiveOneTower(NaiveInterleaved):
    def __init__(self, config: OneTowerConfig) -> None:
        super().__init__(config, TimestepEmbedding(config.step_width), config.dim)
        self.diffusion = Diffusion(config.diffusion, config.dim)

    def loss(
        self, emb: Float[Tensor, "B S D"], is_target: Bool[Tensor, "B S"], noising: Noising | None = None
    ) -> Float[Tensor, " N"]:
        z, settings = self.normalizer(emb), self.config.diffusion
        noising = noising or draw(z, settings.steps, settings.context_drop)
        x_t = noised(z, self.diffusion.alpha_bar, noising)
        out = self(z, x_t, noising.t + 1, noising.dropped)
        return (out - z).square().sum(-1)[is_target]

    @torch.no_grad()
    def next(
        self, concepts: Float[Tensor, "B C D"], noise: Float[Tensor, "B D"], settings: DiffusionSampling
    ) -> Float[Tensor, "B D"]:
        z = self.normalizer(concepts)
        timesteps = sampling_timesteps(self.config.diffusion.steps, settings.steps)
        alpha_bar = self.diffusion.alpha_bar.tolist()
        return self.normalizer.inverse(ddim(lambda x, t: self.last(z, x, t + 1), noise, alpha_bar, timesteps, settings))


class NaiveQuant(NaiveInterleaved):
    def __init__(self, config: QuantConfig) -> None:
        outputs = config.dim if config.kind == "quant_c" else config.units
        super().__init__(config, nn.Embedding(config.codebooks + 1, config.step_width), outputs)
        self.quantizer = ResidualQuantizer(config.codebooks, config.units, config.dim)

    def loss(
        self,
        emb: Float[Tensor, "B S D"],
        is_target: Bool[Tensor, "B S"],
        k: Int[Tensor, "B S"],
        dropped: Bool[Tensor, "B S"],
    ) -> Float[Tensor, " N"]:
        """k: the codebook of each slot."""
        z = self.normalizer(emb)
        residual, sums, unit = z, torch.zeros_like(z), torch.zeros_like(k)
        for number, codebook in enumerate(self.quantizer.codebooks):
            nearest = torch.cdist(residual, codebook.float()).argmin(-1)
            unit = torch.where(k == number, nearest, unit)
            sums = torch.where((k > number)[..., None], sums + codebook.float()[nearest], sums)
            residual = residual - codebook.float()[nearest]
        out = self(z, sums, k + 1, dropped)
        if self.config.kind == "quant_c":
            return (out - z).square().sum(-1)[is_target]
        return cross_entropy(out[is_target], unit[is_target], reduction="none")

    @torch.no_grad()
    def next(
        self, concepts: Float[Tensor, "B C D"], chances: Float[Tensor, "B Q"], settings: QuantSampling
    ) -> Float[Tensor, "B D"]:
        z = self.normalizer(concepts)
        sums = torch.zeros_like(z[:, 0])
        for k, codebook in enumerate(self.quantizer.codebooks):
            with_context, without = self.last(z, sums, k + 1)
            out = without + settings.guidance * (with_context - without)
            scores = -torch.cdist(out - sums, codebook) if self.config.kind == "quant_c" else out
            sums = sums + codebook[sample_top_k(scores / settings.temperature, settings.top_k, chances[:, k])]
        return self.normalizer.inverse(sums)
