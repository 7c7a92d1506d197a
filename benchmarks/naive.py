"""Plain implementations of all model families, the reference for results and speed of lcm/models.

    naive = naive_of(model)     # any family, with copies of its weights

Shapes.  B rows · S slots · C slots of context · D concept width · M model width · N targets

The mathematics is the same, without any of the savings: one document a row, padded to the longest; every slot computed.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from naive_diffusion import Denoiser, Noising, ddim, draw, noised
from naive_interleaved import NaiveOneTower, NaiveQuant
from naive_transformer import KeysAndValues, Transformer
from torch import Tensor, nn
from torch.nn.functional import pad

from lcm.config import BaseLCMConfig, TwoTowerConfig
from lcm.models.base import BaseLCM
from lcm.models.diffusion import Diffusion, DiffusionSampling
from lcm.models.interface import ConceptModel, Normalizer
from lcm.models.one_tower import OneTowerLCM
from lcm.models.quantized import QuantLCM
from lcm.models.samplers import sampling_timesteps
from lcm.models.two_tower import TwoTowerLCM


class NaiveBase(nn.Module):
    def __init__(self, config: BaseLCMConfig) -> None:
        super().__init__()
        self.normalizer = Normalizer(config.dim)
        self.pre, self.post = nn.Linear(config.dim, config.width), nn.Linear(config.width, config.dim)
        self.transformer = Transformer(config.width, config.heads, config.layers, config.dropout)

    def loss(self, emb: Float[Tensor, "B S D"], is_target: Bool[Tensor, "B S"]) -> Float[Tensor, " N"]:
        z = self.normalizer(emb)
        out = self.post(self.transformer(self.pre(z)))
        return (out[:, :-1] - z[:, 1:]).square().sum(-1)[is_target[:, 1:]]

    @torch.no_grad()
    def generate(self, prompts: Float[Tensor, "B C D"], count: int) -> Float[Tensor, "B count D"]:
        """Without a cache: runs the whole document again for each concept."""
        concepts = prompts
        for _ in range(count):
            new = self.post(self.transformer(self.pre(self.normalizer(concepts)))[:, -1:])
            concepts = torch.cat([concepts, self.normalizer.inverse(new)], dim=1)
        return concepts[:, prompts.shape[1] :]


class NaiveTwoTower(nn.Module):
    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        assert (config.diffusion.prediction, config.diffusion.weight) == ("x0", "none"), "all that is written here"
        self.config = config
        self.normalizer = Normalizer(config.dim)
        self.diffusion = Diffusion(config.diffusion, config.dim)
        self.pre = nn.Linear(config.dim, config.width)
        self.contextualiser = Transformer(config.width, config.heads, config.context_layers, config.dropout)
        self.denoiser = Denoiser(config.dim, config.width, config.heads, config.denoiser_layers, config.dropout)

    def loss(
        self, emb: Float[Tensor, "B S D"], is_target: Bool[Tensor, "B S"], noising: Noising | None = None
    ) -> Float[Tensor, " N"]:
        z, settings = self.normalizer(emb), self.config.diffusion
        noising = noising or draw(z, settings.steps, settings.context_drop)
        x_t = noised(z, self.diffusion.alpha_bar, noising)
        seen = torch.ones(z.shape[1], z.shape[1], dtype=torch.bool).tril(-1) & ~noising.dropped[:, :, None]
        out = self.denoiser(x_t, noising.t, self.contextualiser(self.pre(z)), pad(seen, (1, 0), value=True)[:, None])
        return (out - z).square().sum(-1)[is_target]

    @torch.no_grad()
    def generate(
        self, prompts: Float[Tensor, "B C D"], noise: Sequence[Float[Tensor, "B D"]], settings: DiffusionSampling
    ) -> Float[Tensor, "B count D"]:
        """A new concept for each entry of `noise`. Only the contextualizer's keys and values are cached."""
        cache: list[KeysAndValues] = []
        z = self.normalizer(prompts)
        context, made = self.contextualiser(self.pre(z), cache=cache), []
        for start in noise:
            made.append(self.denoised(start, context, settings))
            new = self.contextualiser(self.pre(made[-1].unsqueeze(1)), cache=cache)
            context = torch.cat([context, new], dim=1)
        return self.normalizer.inverse(torch.stack(made, dim=1))

    def denoised(
        self, noise: Float[Tensor, "B D"], context: Float[Tensor, "B C M"], settings: DiffusionSampling
    ) -> Float[Tensor, "B D"]:
        """Guidance doubles the rows; the second half sees the zero vector alone."""
        rows, slots = context.shape[:2]
        twice = torch.cat([context, context])
        seen = torch.ones(2 * rows, 1, 1, slots + 1, dtype=torch.bool)
        seen[rows:, :, :, 1:] = False

        def both(x: Float[Tensor, "B D"], t: int) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
            out = self.denoiser(torch.cat([x, x]).unsqueeze(1), torch.full((2 * rows, 1), t), twice, seen)[:, 0]
            return out[:rows], out[rows:]

        timesteps = sampling_timesteps(self.config.diffusion.steps, settings.steps)
        return ddim(both, noise, self.diffusion.alpha_bar.tolist(), timesteps, settings)


PARTS = {
    "qkv": ("q", "k", "v"),
    "kv": ("k", "v"),
    "gate_and_inner": ("gate", "inner"),
    "self_value": ("self_attention.v",),
    "self_out": ("self_attention.out",),
}
"""Our fused matrices, as the separate ones of a plain implementation: equal blocks of rows."""


def in_parts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters, or their gradients, under the names of the plain implementation."""
    found = {}
    for name, tensor in tensors.items():
        *parents, module, kind = ("", *name.split("."))
        parts = PARTS.get(module, (module,))
        for part, block in zip(parts, tensor.chunk(len(parts)), strict=True):
            found[".".join([*parents, part, kind]).strip(".")] = block
    return found


def naive_of(model: ConceptModel) -> NaiveBase | NaiveTwoTower | NaiveOneTower | NaiveQuant:
    """The plain form of a model, with copies of its weights. Only its idle queries and keys have no counterpart."""
    naive = _plain(model)
    missing, unknown = naive.load_state_dict(in_parts(model.state_dict()), strict=False)
    assert all(".self_attention.q." in name or ".self_attention.k." in name for name in missing), missing
    assert unknown == ["end_of_text"], unknown
    return naive.train(model.training)


def _plain(model: ConceptModel) -> NaiveBase | NaiveTwoTower | NaiveOneTower | NaiveQuant:
    match model:
        case BaseLCM():
            return NaiveBase(_config_of(model))
        case TwoTowerLCM():
            return NaiveTwoTower(model.config)
        case OneTowerLCM():
            return NaiveOneTower(model.config)
        case QuantLCM():
            return NaiveQuant(model.config)
    raise AssertionError(f"no plain form of {type(model).__name__}")


def _config_of(model: BaseLCM) -> BaseLCMConfig:
    blocks = model.transformer.blocks
    return BaseLCMConfig(
        kind="base",
        dim=model.dim,
        width=model.pre.out_features,
        heads=model.transformer.heads,
        layers=len(blocks),
        dropout=blocks[0].dropout.p,
    )
