"""Two-Tower: its size, and the mathematics that it alone has, checked against closed forms."""

from dataclasses import replace

import pytest
import torch
from families import build, close, decide, fresh, generate, one_document, sampling, some_draws
from synthetic import DIM, pack
from torch import nn

from lcm.batch import Draws
from lcm.config import TwoTowerConfig
from lcm.errors import UserError
from lcm.models import build_model
from lcm.models.diffusion import Diffusion
from lcm.models.fragility import FragilityNetwork, save_fragility
from lcm.models.interface import Sampling


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("width", "heads", "layers", "reference"), [(2048, 16, 13, 1_645_538_304), (4096, 32, 14, 6_930_781_696)]
)
def test_it_has_exactly_as_many_parameters_as_the_reference_less_the_idle_ones(width, heads, layers, reference):
    """Queries and keys of a self-attention that sees one slot: 2 (d² + d) a layer."""
    with torch.device("meta"):
        model = build_model(TwoTowerConfig(kind="two_tower", width=width, heads=heads, denoiser_layers=layers))
    assert count(model) == reference - layers * 2 * (width**2 + width)


def test_the_pieces_of_the_large_model():
    with torch.device("meta"):
        model = build_model(TwoTowerConfig(kind="two_tower"))
    denoiser, block = model.denoiser, model.denoiser.layers[0]
    idle = 2 * (2048**2 + 2048)
    assert {name: count(part) for name, part in block.named_children()} == {
        "modulator": 37_767_168,
        "self_norm": 2_048,
        "cross_norm": 2_048,
        "feed_forward_norm": 2_048,
        "self_value": 4_196_352,
        "self_out": 4_196_352,
        "cross": 16_785_408,
        "feed_forward": 34_616_320,
        "dropout": 0,
    }
    assert count(block) == 105_960_448 - idle
    assert (len(denoiser.layers), count(denoiser.time), count(denoiser.norm)) == (13, 4_722_688, 2_048)
    assert (count(denoiser.pre), count(denoiser.post), count(model.pre)) == (2_099_200, 2_098_176, 2_099_200)
    assert count(model.contextualiser) == 5 * 51_405_824 + 2_048
    assert count(model.normalizer) == count(model.diffusion) == 0


def test_flops_count_modulations_and_the_time_embedding_for_nothing():
    with torch.device("meta"):
        model = build_model(TwoTowerConfig(kind="two_tower"))
    used = count(model) - 13 * 37_767_168 - 4_722_688
    assert model.training_flops(slots=128) == 6 * used + 12 * 2048 * 128 * (5 + 13)


def test_at_the_start_every_slot_is_predicted_from_its_noise_alone():
    model, batch = fresh("two_tower"), pack([[3, 2]], slots=6)
    touched = replace(batch, emb=batch.emb + 1)
    assert torch.equal(model.predict(batch, sampling("two_tower")), model.predict(touched, sampling("two_tower")))


@pytest.mark.parametrize("family", ["two_tower", "one_tower"])
@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_the_loss_of_a_constant_output_is_its_squared_distance_to_the_target(family, prediction, monkeypatch):
    """With the last layer's weight zeroed the answer is its bias; ᾱ by hand; every target at a step of its own."""
    model, batch = build(family, diffusion={"prediction": prediction}), pack([[3, 2]], slots=6)
    last = model.denoiser.post if family == "two_tower" else model.post
    nn.init.zeros_(last.weight)
    draws = some_draws(batch)
    decide(monkeypatch, draws)
    slots = [0, 1, 2, 3, 4]
    z = (batch.emb[0, slots] - model.normalizer.location) / model.normalizer.scale
    eps, ab = draws.eps[0, slots], model.diffusion.alpha_bar[draws.t[0, slots]][:, None].float()
    asked = {"x0": z, "eps": eps, "v": ab.sqrt() * eps - (1 - ab).sqrt() * z}[prediction]
    losses = model.loss(batch)
    close(losses.per_target, (asked - last.bias).square().sum(1))
    if prediction == "x0":
        raw = model.normalizer.inverse(last.bias) - batch.emb[0, slots]
        close(losses.meters["l2_denoised"], raw.norm(dim=1))


@pytest.mark.parametrize("family", ["two_tower", "one_tower"])
def test_losses_are_weighted_by_their_own_timestep(family, monkeypatch):
    plain, batch = build(family), pack([[3, 2]], slots=6)
    weighted = build(family, diffusion={"weight": "snr", "min_snr": 0.01, "max_snr": 5.0})
    draws = some_draws(batch)
    decide(monkeypatch, draws)
    ab = plain.diffusion.alpha_bar[draws.t[0, :5]]
    expected = plain.loss(batch).per_target * (ab / (1 - ab)).clamp(0.01, 5.0).float()
    close(weighted.loss(batch).per_target, expected)


@pytest.mark.parametrize("family", ["two_tower", "one_tower"])
@pytest.mark.parametrize("t", [99, 37, 0])
def test_sampling_gives_the_network_the_inputs_of_training(family, t, monkeypatch):
    """One step of sampling, from a noisy concept of training: the prediction has training's error."""
    model, batch = build(family), pack([[3, 2], [4]], slots=6)
    draws = some_draws(batch)
    decide(monkeypatch, draws._replace(t=torch.full_like(draws.t, t)))
    filled = batch.targets(True)
    z = model.normalizer(batch.emb)[filled]
    x_t = model.diffusion.noise(z, torch.full((9,), t), draws.eps[filled])
    monkeypatch.setattr("lcm.batch.Draws.gaussian", lambda self, number, width: x_t)
    monkeypatch.setattr(Diffusion, "timesteps", lambda self, settings: [t])
    predicted = model.predict(batch, Sampling(initial_noise=1.0, guidance=1.0))
    error = (model.normalizer(predicted)[filled] - z).square().sum(1)
    close(model.loss(batch).per_target, error, 1e-4)


def test_guidance_scale_zero_is_the_prediction_without_context(monkeypatch):
    """But for the first step, which is never guided: leave it out."""
    for family in ("two_tower", "one_tower"):
        model, settings = build(family), Sampling(guidance=0.0, rescale=0.0)
        torch.manual_seed(2)
        document = torch.randn(3, DIM)
        monkeypatch.setattr(Diffusion, "timesteps", lambda self, settings: [60, 20])
        noise = torch.randn(DIM)
        monkeypatch.setattr(
            "lcm.batch.Draws.gaussian",
            lambda self, number, width, noise=noise: noise.expand(
                len(self.keys if self.index is None else self.index), -1
            ),
        )
        found = model.predict(one_document(document), settings)[0]
        alone = replace(one_document(document), doc=torch.arange(3)[None])
        close(found, model.predict(alone, replace(settings, guidance=1.0))[0], 1e-4)


def test_timesteps_noise_and_drops_of_a_row_are_a_function_of_its_number():
    model = build("two_tower")
    torch.manual_seed(0)
    first = model.diffusion.draw_noising(torch.tensor([4, 9]), 200, drops=True)
    torch.manual_seed(1)
    again = model.diffusion.draw_noising(torch.tensor([9]), 200, drops=True)
    evaluated = model.diffusion.draw_noising(torch.tensor([9]), 200, drops=False)
    for both, one in zip(first, again, strict=True):
        assert torch.equal(both[1:], one)
        assert not torch.equal(both[:1], one)
    assert torch.equal(evaluated.t, again.t)
    assert torch.equal(evaluated.eps, again.eps)
    assert not evaluated.dropped.any()
    assert len(first.t.unique()) > 90, "a timestep for every slot"


@pytest.mark.parametrize("family", ["two_tower", "one_tower"])
def test_ancestral_noise_is_independent_at_every_step(family, monkeypatch):
    """With eta 1, as many draws as steps, the first to start from."""
    model, numbers = build(family), []
    original = Draws.gaussian

    def recorded(self, number, width):
        numbers.append(number)
        return original(self, number, width)

    monkeypatch.setattr(Draws, "gaussian", recorded)
    context = model.prefill([torch.randn(2, DIM)])
    model.next(context, Sampling(steps=4, eta=1.0))
    assert numbers == [0, 1, 2, 3]


@pytest.mark.parametrize("room", [0, 1, 2])
def test_caches_that_must_grow_give_what_roomy_ones_do(room, monkeypatch):
    """Prompts of three lengths; the longest one's row must grow first."""
    model = build("two_tower")
    torch.manual_seed(3)
    prompts = [torch.randn(length, DIM) for length in (3, 1, 5)]
    expected = generate(model, prompts, 5, sampling("two_tower"))
    monkeypatch.setattr("lcm.models.two_tower.ROOM", room)
    close(generate(model, prompts, 5, sampling("two_tower")), expected)


@pytest.mark.parametrize("family", ["two_tower", "one_tower"])
def test_the_fitted_fragility_becomes_part_of_the_model(family, tmp_path):
    """Losses are NaN until the file is read; the file of another codec is refused."""
    path = tmp_path / "fragility.safetensors"
    model = build(family, diffusion={"weight": "fragility", "fragility": str(path)})
    batch, network = pack([[3, 2]], slots=6), FragilityNetwork(DIM)
    assert model.loss(batch).per_target.isnan().all()
    network.start(torch.Generator().manual_seed(0))
    save_fragility(path, network, model.normalizer, "mini", "abc")
    with pytest.raises(UserError, match="xyz"):
        model.load_fitted("xyz")
    model.load_fitted("abc")
    weight = torch.sigmoid(-4 * network(model.normalizer(batch.emb[0, :5])) + 3.5)
    close(model.loss(batch).per_target, build(family).loss(batch).per_target * weight)
    build(family).load_fitted("anything")
