"""Quant-LCM: its loss in closed form, how it chooses, that a perfect network gives the truth, and its fitted file."""

import math

import pytest
import torch
from families import CODEBOOKS, QUANTS, UNITS, build, close, decide, last_layer, one_document, same_noise, some_draws
from synthetic import DIM, pack
from torch import nn

from lcm.config import QuantConfig
from lcm.errors import UserError
from lcm.models import build_model
from lcm.models.interface import Normalizer, Sampling
from lcm.models.quantized import sample_top_k
from lcm.models.quantizer import QuantizerRecord, ResidualQuantizer, save_quantizer

both_heads = pytest.mark.parametrize("family", QUANTS)


def targets_of(model, batch, draws):
    """(z, k, u_k) of every target, the units from the whole code."""
    filled = batch.targets(True)
    z, k = model.normalizer(batch.emb)[filled], draws.t[filled] % CODEBOOKS
    return z, k, model.quantizer.encode(z)[torch.arange(len(k)), k]


@pytest.mark.parametrize(("kind", "outputs"), [("quant_c", 1024), ("quant_d", 8192)])
def test_the_heads_differ_in_their_last_layer_alone(kind, outputs):
    with torch.device("meta"):
        model = build_model(QuantConfig(kind=kind))
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    trunk = ((1024 + 256) * 2048 + 2048) + 2048 * 2048 + 32 * 51_405_824 + 2048
    assert sizes == {
        "normalizer": 0, "step_embedding": 65 * 256, "trunk": trunk, "quantizer": 0, "post": 2049 * outputs,
    }  # fmt: skip


def test_the_loss_of_constant_logits_is_their_cross_entropy(monkeypatch):
    """The unit asked for is that of the target's own codebook, of its whole code."""
    model, batch = build("quant_d"), pack([[4, 3], [5]], slots=8)
    nn.init.zeros_(model.post.weight)
    draws = some_draws(batch)
    decide(monkeypatch, draws)
    _, _, unit = targets_of(model, batch, draws)
    logits = model.post.bias
    losses = model.loss(batch)
    close(losses.per_target, logits.exp().sum().log() - logits[unit])
    assert torch.equal(losses.meters["accuracy"], (unit == logits.argmax()).float())
    nn.init.zeros_(model.post.bias)
    close(model.loss(batch).per_target, torch.full((12,), math.log(UNITS)))


def test_the_loss_of_a_constant_concept_is_its_squared_distance(monkeypatch):
    model, batch = build("quant_c"), pack([[4, 3], [5]], slots=8)
    nn.init.zeros_(model.post.weight)
    draws = some_draws(batch)
    decide(monkeypatch, draws)
    z, _, _ = targets_of(model, batch, draws)
    losses = model.loss(batch)
    close(losses.per_target, (z - model.post.bias).square().sum(1))
    raw = model.normalizer.inverse(z) - model.normalizer.inverse(model.post.bias)
    close(losses.meters["l2"], raw.norm(dim=1))


@both_heads
def test_codebooks_are_drawn_alike_and_their_sums_go_in(family):
    """Over many rows; what goes in is the sum of the units before, for the first codebook zeros."""
    model, batch = build(family), pack([[5]] * 200, slots=5)
    asked, original = [], type(model.quantizer).targets

    def targets(self, z, k):
        asked.append((z, k, original(self, z, k)))
        return asked[-1][2]

    inputs, seen = model.trunk.inputs, []
    model.quantizer.targets = targets.__get__(model.quantizer)
    model.trunk.inputs = lambda x, step, pos: seen.append(x) or inputs(x, step, pos)
    model.loss(batch)
    (z, k, _), sums = asked[0], next(x for x in seen if x.shape == (1000, DIM))
    assert k.bincount(minlength=CODEBOOKS).tolist() == pytest.approx([1000 / CODEBOOKS] * CODEBOOKS, rel=0.15)
    close(sums, model.quantizer.dequantize(model.quantizer.encode(z), k))
    assert not sums[k == 0].any()


@both_heads
def test_sampling_gives_the_network_the_inputs_of_training(family, monkeypatch):
    """At every codebook, after the right units: the network says the same in both."""
    model, batch = build(family), pack([[3, 2], [4]], slots=6)
    said = []
    last_layer(model).register_forward_hook(lambda layer, x, out: said.append(out.detach()))
    trained = []
    for k in range(CODEBOOKS):
        draws = some_draws(batch)
        decide(monkeypatch, draws._replace(t=torch.full_like(draws.t, k)))
        model.loss(batch)
        trained.append(said.pop())
    codes = model.quantizer.encode(model.normalizer(batch.emb)[batch.targets(True)])
    monkeypatch.setattr("lcm.models.quantized.sample_top_k", lambda *_: codes[:, len(said) - 1])
    predicted = model.predict(batch, Sampling(guidance=1.0))
    for ours, theirs in zip(said, trained, strict=True):
        close(ours, theirs, 1e-4)
    rounded = model.normalizer.inverse(model.quantizer.dequantize(codes))
    close(predicted[batch.targets(True)], rounded)


class Oracle(nn.Module):
    """A last layer that knows the truth, whatever the state."""

    def __init__(self, answers):
        super().__init__()
        self.answers, self.calls = answers, 0

    def forward(self, state):
        self.calls += 1
        return self.answers[(self.calls - 1) % len(self.answers)]


@pytest.mark.parametrize("settings", [Sampling(), Sampling(top_k=1), Sampling(temperature=0.0, top_k=100)])
@both_heads
def test_a_perfect_network_gives_the_rounded_truth(family, settings):
    """c is told the concept at every step, d the unit; guidance between two equal answers is that answer."""
    model, document = build(family), torch.randn(4, DIM)
    z = model.normalizer(document)
    codes = model.quantizer.encode(z)
    if family == "quant_c":
        answers = [torch.cat([z, z])] * CODEBOOKS
        settings = Sampling(temperature=0.0, top_k=settings.top_k)
    else:
        certain = [1000 * nn.functional.one_hot(codes[:, k], UNITS).float() for k in range(CODEBOOKS)]
        answers = [torch.cat([out, out]) if model.defaults.guidance != 1 else out for out in certain]
    model.post = Oracle(answers)
    predicted = model.predict(one_document(document), settings)[0]
    torch.testing.assert_close(predicted, model.normalizer.inverse(model.quantizer(z)), rtol=1e-5, atol=1e-5)
    assert model.post.calls == CODEBOOKS


def test_units_are_sampled_by_the_softmax_over_the_best():
    scores = torch.tensor([0.3, 1.5, -0.2, 0.9, -2.0])
    n = 20_000
    chances = (torch.arange(n) + 0.5) / n
    for top_k, best in ((3, [1, 3, 0]), (5, [0, 1, 2, 3, 4]), (100, [0, 1, 2, 3, 4]), (1, [1])):
        expected = torch.zeros(5)
        expected[best] = scores[best].softmax(0)
        found = sample_top_k(scores.expand(n, -1), top_k, chances).bincount(minlength=5) / n
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def test_the_largest_chance_chooses_among_the_best_whatever_their_sum_rounds_to():
    torch.manual_seed(0)
    scores, almost = torch.randn(500, 50), torch.full((500,), 1 - 2**-24)
    sums = scores.topk(20).values.softmax(1).cumsum(1)[:, -1]
    assert (sums <= almost).any(), "or nothing is tested"
    assert torch.equal(sample_top_k(scores, 20, almost), scores.topk(20).indices[:, -1])


@both_heads
def test_a_falling_temperature_ends_at_the_likeliest_unit(family):
    model, sums = build(family), torch.randn(50, DIM)
    out = torch.randn(50, model.post.out_features)
    scores, u = model.scores(out, sums, 1), torch.rand(50)
    assert torch.equal(sample_top_k(scores, UNITS, u, 0.25), sample_top_k(4 * scores, UNITS, u))
    assert torch.equal(sample_top_k(scores, UNITS, u, 0.0), scores.argmax(1))


def test_c_scores_units_by_their_distance_to_the_residual():
    model, out, sums = build("quant_c"), torch.randn(6, DIM), torch.randn(6, DIM)
    for k in range(CODEBOOKS):
        distances = (model.quantizer.codebooks[k] - (out - sums)[:, None]).norm(dim=2)
        close(model.scores(out, sums, k), -distances, 1e-4)


def test_d_scores_units_by_their_logits():
    model, out = build("quant_d"), torch.randn(6, UNITS)
    assert torch.equal(model.scores(out, torch.zeros(6, DIM), 2), out)


@both_heads
def test_guidance_goes_from_without_context_through_with_and_beyond(family, monkeypatch):
    """On what the network says, before anything is chosen."""
    model, asked = build(family), []
    torch.manual_seed(2)
    document = torch.randn(4, DIM)
    same_noise(monkeypatch)
    scores = type(model).scores
    monkeypatch.setattr(type(model), "scores", lambda self, out, *rest: asked.append(out) or scores(self, out, *rest))

    def first(guidance):
        asked.clear()
        model.next(model.prefill([document]), Sampling(guidance=guidance))
        return asked[0]

    with_context, without = first(1.0), first(0.0)
    assert not torch.allclose(with_context, without)
    close(first(2.5), without + 2.5 * (with_context - without))
    asked.clear()
    nothing = model.prefill([torch.zeros(0, DIM)])
    model.trunk.positions.weight.data[0] = model.trunk.positions.weight[4]
    model.next(nothing, Sampling(guidance=1.0))
    close(asked[0], without)


def fitted_file(path, codebooks=CODEBOOKS, units=UNITS, dim=DIM, normalizer=None, space="normalised"):
    torch.manual_seed(5)
    quantizer = ResidualQuantizer(codebooks, units, dim)
    quantizer.set(torch.randn(codebooks, units, dim))
    if normalizer is None:
        normalizer = Normalizer(dim)
    save_quantizer(path, quantizer, QuantizerRecord("mini", "abc", space, normalizer))
    return quantizer


@both_heads
def test_the_fitted_codebooks_become_part_of_the_model(family, tmp_path):
    path = tmp_path / "q.safetensors"
    model = build(family, quantizer=str(path))
    quantizer = fitted_file(path, normalizer=model.normalizer)
    model.load_fitted("abc")
    assert torch.equal(model.quantizer.codebooks, quantizer.codebooks)
    assert torch.equal(model.quantizer.squares, quantizer.squares)
    assert torch.equal(model.state_dict()["quantizer.codebooks"], quantizer.codebooks)


def test_a_quantizer_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "q.safetensors"
    with pytest.raises(UserError, match=r"model.quantizer=: is empty; expected the file"):
        build("quant_d").load_fitted("abc")
    model = build("quant_d", quantizer=str(path))
    with pytest.raises(UserError, match="no such file"):
        model.load_fitted("abc")
    before = model.quantizer.codebooks.clone()
    for sizes in ({"codebooks": 2}, {"units": 5}):
        fitted_file(path, normalizer=model.normalizer, **sizes)
        with pytest.raises(UserError, match=r"codebooks of .* units of 8 numbers, but the model has model.codebooks=3"):
            model.load_fitted("abc")
    fitted_file(path, normalizer=model.normalizer)
    with pytest.raises(UserError, match="fingerprint xyz"):
        model.load_fitted("xyz")
    fitted_file(path)
    with pytest.raises(UserError, match="a different normalizer"):
        model.load_fitted("abc")
    fitted_file(path, dim=4, space="raw")
    with pytest.raises(UserError, match="units of 4 numbers"):
        model.load_fitted("abc")
    assert torch.equal(model.quantizer.codebooks, before)
