"""Diffusion: noise in full precision, predictions that say the same, and weights that look at one target alone."""

import pytest
import torch

from lcm.config import DiffusionConfig
from lcm.models.diffusion import Diffusion
from lcm.models.fragility import FragilityNetwork
from lcm.models.samplers import alpha_bar, beta_probabilities

COSINE = {"schedule": "cosine"}
STEEP = {"schedule": "sigmoid", "gamma": 3.5, "delta": 0.0}


def diffusion(dim=4, **settings):
    return Diffusion(DiffusionConfig(**settings), dim)


def test_noising_is_the_formula():
    model, z, eps = diffusion(), torch.randn(3, 4), torch.randn(3, 4)
    x = model.noise(z, torch.tensor([0, 49, 99]), eps)
    for row, ab in enumerate((0.9993687184, 0.4936378, 0.0)):
        torch.testing.assert_close(x[row], ab**0.5 * z[row] + (1 - ab) ** 0.5 * eps[row], atol=1e-6, rtol=1e-6)
    assert torch.equal(x[2], eps[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_half_precision_comes_out_as_fp32_with_all_its_noise(dtype, prediction):
    """1 − ᾱ at the first two timesteps is .000631 and .001748; cast to fp16 first .000488 and .001953, to bf16 0."""
    model, t = diffusion(dim=1, prediction=prediction), torch.tensor([0, 1])
    z, eps = torch.zeros(2, 1, dtype=dtype), torch.ones(2, 1, dtype=dtype)
    x = model.noise(z, t, eps)
    assert [round(number, 6) for number in x.square().flatten().tolist()] == [0.000631, 0.001748]
    for result in (x, model.target(z, t, eps), model.x0(eps, z, t)):
        assert result.dtype == torch.float32


def test_the_least_noise_is_not_rounded_away():
    """1 − ᾱ_0 = 1.03580e-07 in float64; subtracted in fp32, 15% more."""
    x = diffusion(dim=1, **STEEP).noise(torch.zeros(1, 1), torch.tensor([0]), torch.ones(1, 1))
    assert x.item() ** 2 == pytest.approx(1.03580e-7, rel=1e-5)


@pytest.mark.parametrize("schedule", [COSINE, {"schedule": "quadratic-2"}, STEEP], ids=str)
@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_the_target_of_every_prediction_gives_the_concept_back(schedule, prediction):
    """At every timestep and for every prediction; but ε at pure noise says nothing about the concept."""
    model = diffusion(prediction=prediction, **schedule)
    t = torch.arange(100)
    z, eps = torch.randn(2, 100, 4, generator=torch.Generator().manual_seed(0))
    x = model.noise(z, t, eps)
    out = model.target(z, t, eps)
    known = 99 if prediction == "eps" else 100
    signal = model.alpha_bar.sqrt().float()[:, None].clamp_min(1e-9)
    # In units of how far a rounding error of x_t carries: 1/√ᾱ where ε is subtracted.
    assert ((model.x0(out, x, t) - z) * signal)[:known].abs().max() < 1e-6
    if prediction == "eps":
        assert model.x0(torch.randn(100, 4), x, t)[99].tolist() == [0, 0, 0, 0]
    else:
        torch.testing.assert_close(model.x0(out, x, t), z, atol=1e-5, rtol=1e-5)


def test_the_three_targets_follow_their_formulas():
    z, eps, t = torch.tensor([[2.0]]), torch.tensor([[-3.0]]), torch.tensor([24])
    signal, noise = 0.8469403**0.5, (1 - 0.8469403) ** 0.5
    assert diffusion(dim=1).target(z, t, eps).item() == 2
    assert diffusion(dim=1, prediction="eps").target(z, t, eps).item() == -3
    v = diffusion(dim=1, prediction="v").target(z, t, eps).item()
    assert v == pytest.approx(signal * -3 - noise * 2, rel=1e-6)


def test_signal_to_noise_weights():
    z, t = torch.zeros(100, 4), torch.arange(100)
    assert diffusion().weight(z, t).tolist() == [1] * 100
    weights = diffusion(weight="snr").weight(z, t)
    printed = {0: 10, 1: 10, 9: 10, 24: 5.53338, 49: 0.97487, 74: 0.168279, 89: 0.0245509, 99: 0}
    assert weights[list(printed)].tolist() == pytest.approx(list(printed.values()), rel=3e-6)
    assert f"{weights[98]:.6f}" == "0.000228"
    assert (weights == 10).sum() == 18
    assert (diffusion(weight="snr", max_snr=5.0).weight(z, t) == 5).sum() == 26
    floored = diffusion(weight="snr", min_snr=0.001, max_snr=5.0).weight(z, t)
    assert (floored == 5).sum() == 26
    assert (floored == 0.001).nonzero().flatten().tolist() == [97, 98, 99]


def test_a_weight_does_not_depend_on_the_other_targets():
    """Rescaled over a batch to mean 1 it would: {0, 49, 99} would have 2.733517, .266482 and 0."""
    model, t = diffusion(weight="snr"), torch.tensor([0, 49, 99])
    together = model.weight(torch.zeros(3, 4), t)
    assert [model.weight(torch.zeros(1, 4), t[i : i + 1]).item() for i in range(3)] == together.tolist()
    assert (together * 3 / together.sum()).tolist() == pytest.approx([2.733517, 0.266482, 0], abs=1e-6)
    floored = diffusion(weight="snr", min_snr=0.001, max_snr=5.0).weight(torch.zeros(3, 4), t)
    assert (floored * 3 / floored.sum()).tolist() == pytest.approx([2.510095, 0.489403, 0.000502], abs=1e-6)


@pytest.mark.parametrize(("fragile", "weight"), [(0.0, ".970688"), (0.5, ".817574"), (1.0, ".377541")])
def test_the_more_fragile_the_less_weight(fragile, weight, monkeypatch):
    model = diffusion(weight="fragility")
    monkeypatch.setattr(FragilityNetwork, "forward", lambda self, z: torch.full(z.shape[:1], fragile))
    found = model.weight(torch.zeros(2, 4), torch.tensor([0, 99]))
    assert [f"{number:.6f}".removeprefix("0") for number in found.tolist()] == [weight, weight]


def test_the_fragility_network_exists_only_with_its_weight_and_sees_the_concept():
    assert set(diffusion(weight="snr").state_dict()) == {"alpha_bar"}
    model = diffusion(weight="fragility")
    assert not list(model.parameters())
    assert model.weight(torch.zeros(1, 4), torch.tensor([0])).isnan().all(), "a file that was not read is noticed"
    model.fragility.start(torch.Generator().manual_seed(0))
    z = torch.randn(2, 4)
    weights = model.weight(z, torch.tensor([5, 5]))
    torch.testing.assert_close(weights, torch.sigmoid(-4 * model.fragility(z) + 3.5))
    assert weights[0] != weights[1]


def test_the_beta_sampler_favours_small_timesteps():
    p = beta_probabilities(100, 0.8, 1.0)
    printed = {0: ".0203135", 1: ".0176839", 9: ".0128169", 49: ".00928944", 99: ".00808693"}
    assert {t: f"{p[t].item():.6g}".removeprefix("0") for t in printed} == printed
    assert p.sum().item() == pytest.approx(1)
    torch.testing.assert_close(beta_probabilities(100, 1.0, 1.0), torch.full((100,), 0.01).double())
    assert beta_probabilities(100, 0.8, 2.0)[99] == 0


@pytest.mark.parametrize(("settings", "a"), [({}, 1.0), ({"timesteps": "beta"}, 0.8)])
def test_timesteps_are_drawn_as_often_as_they_should(settings, a):
    """χ² of 99 degrees of freedom stays below 160 but once in 10,000 times; the seed is fixed."""
    t = diffusion(**settings).draw_timesteps((400, 500), torch.Generator().manual_seed(0))
    assert t.shape == (400, 500)
    expected = 200_000 * beta_probabilities(100, a, 1.0)
    assert ((t.flatten().bincount(minlength=100) - expected).square() / expected).sum() < 160
    assert (t.min().item(), t.max().item()) == (0, 99)


@pytest.mark.parametrize("timesteps", ["uniform", "beta"])
def test_timesteps_depend_on_the_generator_alone(timesteps):
    model = diffusion(timesteps=timesteps)
    draws = [model.draw_timesteps((5,), torch.Generator().manual_seed(seed)).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert model.draw_timesteps((0,), torch.Generator()).tolist() == []
    assert model.draw_timesteps((2, 3), torch.Generator()).dtype == torch.int64


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float"])
def test_the_table_stays_float64_through_every_cast(cast):
    outer = torch.nn.Sequential(torch.nn.Linear(2, 2), diffusion())
    exact = alpha_bar("cosine")
    getattr(outer, cast)()
    assert torch.equal(outer[1].alpha_bar, exact)
    outer.to(torch.float16)
    assert torch.equal(outer[1].alpha_bar, exact)
    assert torch.equal(outer.state_dict()["1.alpha_bar"], exact)
    assert outer[0].weight.dtype == torch.float16, "or nothing was cast"
    outer.to("meta")
    assert outer[1].alpha_bar.is_meta
    assert outer[1].alpha_bar.dtype == torch.float64


@pytest.mark.parametrize("assign", [False, True])
def test_built_on_meta_and_filled_nothing_is_lost(assign):
    whole = diffusion(**STEEP, weight="fragility")
    whole.fragility.start(torch.Generator().manual_seed(0))
    with torch.device("meta"):
        model = diffusion(**STEEP, weight="fragility")
    assert all(buffer.is_meta for buffer in model.buffers())
    if not assign:
        model.to_empty(device="cpu")
    model.load_state_dict(whole.state_dict(), assign=assign)
    assert torch.equal(model.alpha_bar, alpha_bar(**STEEP))
    z, t = torch.randn(100, 4), torch.arange(100)
    assert torch.equal(model.weight(z, t), whole.weight(z, t))
    assert torch.equal(model.noise(z, t, z), whole.noise(z, t, z))
