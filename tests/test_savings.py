"""Every saving computes what the plain form computes: the same losses, gradients and samples, to 1e-5 of the largest."""

import sys
from pathlib import Path

import pytest
import torch
from synthetic import DIM, pack
from torch.nn.utils.rnn import pad_sequence

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from naive import NaiveTwoTower, in_parts, naive_of
from naive_diffusion import Noising

from lcm.batch import PAD
from lcm.config import BaseLCMConfig, DiffusionConfig, OneTowerConfig, QuantConfig, TwoTowerConfig
from lcm.denoiser import Memory
from lcm.models import build_model
from lcm.models.concept_model import Sampling
from lcm.models.diffusing import DiffusionSampling, draw_noising
from lcm.models.draws import Draws, generators, prompt_number
from lcm.models.quantized import QuantSampling

SIZE = {"dim": DIM, "width": 16, "heads": 2, "dropout": 0.0}
DROPS = DiffusionConfig(context_drop=0.3)
CONFIGS = {
    "base": BaseLCMConfig(kind="base", layers=2, **SIZE),
    "two_tower": TwoTowerConfig(kind="two_tower", context_layers=2, denoiser_layers=2, diffusion=DROPS, **SIZE),
    "one_tower": OneTowerConfig(kind="one_tower", layers=2, step_width=8, diffusion=DROPS, **SIZE),
    "rotary": OneTowerConfig(kind="one_tower", layers=2, positions="rotary", diffusion=DROPS, **SIZE),
    "quant_c": QuantConfig(kind="quant_c", layers=2, codebooks=3, units=5, step_width=8, context_drop=0.3, **SIZE),
    "quant_d": QuantConfig(kind="quant_d", layers=2, codebooks=3, units=5, step_width=8, context_drop=0.3, **SIZE),
}
ROWS = [[3, 1, 4], [8], [2, 2]]
SLOTS = 10
PROMPTS = (3, 1, 6)
SETTINGS = DiffusionSampling()


def build(name):
    """No parameter is zero: not a modulator, not a bias."""
    torch.manual_seed(1)
    model = build_model(CONFIGS[name])
    model.normalizer.set(torch.linspace(-1, 1, DIM), torch.linspace(0.5, 2, DIM))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if name.startswith("quant"):
        model.quantizer.set(torch.randn(3, 5, DIM))
    return model


def assert_equal(ours, naive, what=""):
    assert ours.shape == naive.shape
    assert float((ours - naive).abs().max()) <= 1e-5 * float(naive.abs().max()), what


def apart(batch, *of_slots):
    """The documents of a batch one a row, padded to the longest; and whatever else there is of each slot."""
    rows = [[x[batch.doc == PAD].new_zeros(0) for x in of_slots]]
    rows = [
        [x[row][batch.doc[row] == number] for x in of_slots]
        for row in range(len(batch.doc))
        for number in range(int(batch.doc[row].max()) + 1)
    ]
    return [pad_sequence(parts, batch_first=True) for parts in zip(*rows, strict=True)]


def chosen(model, name, batch):
    """What our loss draws, as extra arguments of the plain one, slot by slot."""
    if name == "base":
        return ()
    if name.startswith("quant"):
        drawn = [
            (torch.randint(3, (SLOTS,), generator=g), torch.rand(SLOTS, generator=g) < 0.3)
            for g in generators(0, batch.row[:, None])
        ]
        return tuple(torch.stack(parts) for parts in zip(*drawn, strict=True))
    return draw_noising(model.diffusion, batch.row, SLOTS, DIM, drops=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_rows_train_as_documents_one_a_row_do(name):
    """Loss of each target, and the gradient of every parameter; a prompt's concepts are no targets."""
    model, batch = build(name).train(), pack(ROWS, SLOTS)
    batch.is_target[1, :3] = False
    naive = naive_of(model)
    emb, is_target, *drawn = apart(batch, batch.emb, batch.is_target, *chosen(model, name, batch))
    extra = [Noising(*drawn)] if len(drawn) == 3 else drawn
    ours, theirs = model.loss(batch).per_target, naive.loss(emb, is_target, *extra)
    assert_equal(ours, theirs)

    ours.sum().backward()
    theirs.sum().backward()
    gradients = in_parts({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    largest = max(float(g.abs().max()) for g in gradients.values())
    plain = dict(naive.named_parameters())
    for parameter in gradients:
        assert_equal(
            gradients.pop(parameter) if False else gradients[parameter] / largest, plain[parameter].grad / largest
        )
