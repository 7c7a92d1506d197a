"""Every model family at a tiny size, and random numbers that a test decides."""

from unittest.mock import patch

import torch
from pydantic import TypeAdapter
from synthetic import DIM
from torch import nn

from lcm.batch import Batch, Draws
from lcm.config import ModelConfig
from lcm.models import build_model
from lcm.models.denoiser import FastDenoiser
from lcm.models.diffusion import Diffusion, Noising
from lcm.models.interface import Sampling
from lcm.models.interleaved import Interleaved
from lcm.models.quantized import QuantLCM

POSITIONS, CODEBOOKS, UNITS = 16, 3, 16
ROTARY = {"layers": 2, "step_width": 4, "positions": "rotary"}
INTERLEAVED = {"layers": 2, "step_width": 4, "max_positions": POSITIONS}
QUANT = {**INTERLEAVED, "codebooks": CODEBOOKS, "units": UNITS}
SETTINGS = {
    "base": {"kind": "base", "layers": 2},
    "two_tower": {"kind": "two_tower", "context_layers": 2, "denoiser_layers": 2},
    "one_tower": {"kind": "one_tower", **INTERLEAVED},
    "one_tower_rotary": {"kind": "one_tower", **ROTARY},
    "quant_c": {"kind": "quant_c", **QUANT},
    "quant_d": {"kind": "quant_d", **QUANT},
}
FAMILIES = tuple(SETTINGS)
DIFFUSING = ("two_tower", "one_tower", "one_tower_rotary")
QUANTS = ("quant_c", "quant_d")
GENERATIVE = (*DIFFUSING, *QUANTS)
"""All but Base: they draw what they are trained on, drop contexts, and predict the first concept, too."""


def config(family, **changes):
    small = {"dim": DIM, "width": 16, "heads": 2, "dropout": 0.0}
    return TypeAdapter(ModelConfig).validate_python({**small, **SETTINGS[family], **changes})


def fresh(family, **changes):
    """An initialized model, with a normalizer that is not the identity and codebooks that grow finer."""
    torch.manual_seed(0)
    model = build_model(config(family, **changes))
    model.normalizer.set(torch.linspace(-1, 1, DIM), torch.linspace(0.5, 2, DIM))
    if family in QUANTS:
        shape = model.quantizer.codebooks.shape
        model.quantizer.set(torch.randn(shape) * 0.5 ** torch.arange(shape[0])[:, None, None])
    return model.eval()


def build(family, **changes):
    """With all parameters random: no gate is closed, no bias is zero."""
    return randomize(fresh(family, **changes))


@torch.no_grad()
def randomize(module):
    torch.manual_seed(1)
    for parameter in module.parameters():
        parameter += 0.2 * torch.randn(parameter.shape)
    return module


def sampling(family, **changes):
    """The family's defaults, with few steps."""
    return Sampling(**{**({"steps": 5} if family in DIFFUSING else {}), **changes})


def one_document(vectors):
    pos = torch.arange(len(vectors))[None]
    everything = torch.ones_like(pos, dtype=torch.bool)
    return Batch(vectors[None], torch.zeros_like(pos), pos, everything, torch.zeros(1).long(), torch.tensor(1))


def some_draws(batch, dropped=()):
    """A random timestep and noise for every slot; contexts are dropped at these (row, slot)."""
    generator = torch.Generator().manual_seed(5)
    step = torch.randint(100, batch.doc.shape, generator=generator)
    eps = torch.randn(batch.emb.shape, generator=generator)
    without = torch.zeros_like(batch.doc, dtype=torch.bool)
    for place in dropped:
        without[place] = True
    return Noising(step, eps, without)


def decide(monkeypatch, draws):
    """Losses now draw these, one for every slot of the batch, whatever the seeds of its rows.

    A step is a timestep or, modulo their number, a codebook.
    """

    def draw_noising(self, row, slots, drops):
        return draws if drops else Noising(draws.t, draws.eps, torch.zeros_like(draws.dropped))

    def draw_codebooks(self, row, slots):
        return draws.t % self.config.codebooks, draws.dropped

    monkeypatch.setattr(Diffusion, "draw_noising", draw_noising)
    monkeypatch.setattr(QuantLCM, "draw_codebooks", draw_codebooks)


def same_noise(monkeypatch):
    """Every concept is now sampled from the same numbers, whatever its row, slot or prompt; other ones each time."""

    def numbers(kind):
        def draw(draws, number, width):
            drawn = kind(width, generator=torch.Generator().manual_seed(number))
            return drawn.expand(len(draws.keys if draws.index is None else draws.index), -1).clone()

        return draw

    monkeypatch.setattr(Draws, "gaussian", numbers(torch.randn))
    monkeypatch.setattr(Draws, "uniform", numbers(torch.rand))


def generate(model, prompts, count, settings):
    context, out = model.prefill(prompts), []
    for _ in range(count):
        out.append(model.next(context, settings))
        context = model.extend(context, out[-1])
    return torch.stack(out, dim=1)


def close(found, expected, tolerance=1e-5):
    """Equal to a fraction of the largest number."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def last_layer(model):
    """The linear layer that every call of the network ends with."""
    found = model.denoiser.post if hasattr(model, "denoiser") else model.post
    assert isinstance(found, nn.Linear)
    return found


def rows_asked(run):
    """The number of concepts of each call of the network during `run`."""
    asked = []

    def recording(call):
        def recorded(*args, **kwargs):
            out = call(*args, **kwargs)
            asked.append(len(out))
            return out

        return recorded

    with (
        patch.object(FastDenoiser, "__call__", recording(FastDenoiser.__call__)),
        patch.object(Interleaved, "noisy_states", recording(Interleaved.noisy_states)),
    ):
        run()
    return asked
