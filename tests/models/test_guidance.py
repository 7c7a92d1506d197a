"""Guidance: the formula in the noise, none at pure noise, none at scale 1, one call a step."""

import pytest
import torch

from lcm.models.samplers import alpha_bar, ddim, dpm_solver, guided, guided_eps, sampling_timesteps

LEVELS = alpha_bar("cosine").tolist()
"""ᾱ at every timestep: step i is timestep i."""
FORTY = [LEVELS[t] for t in sampling_timesteps(100, 40)]


def towards(mean, levels=FORTY):
    """A denoiser that looks at x: between it and `mean`, the closer to x, the less noise there is."""
    return lambda x, i: mean + levels[i] * (x - mean)


def seen(denoise):
    """The denoiser, and the list of (x, step) of its calls."""
    calls = []

    def recorded(x, i):
        calls.append((x.clone(), i))
        return denoise(x, i)

    return recorded, calls


def test_guided_noise_and_its_rescaling():
    conditional, unconditional = torch.tensor([[1.0, -1, 2, 0]]), torch.tensor([[0.5, -0.5, 0, 1]])
    plain = guided_eps(conditional, unconditional, 3.0, 0.0)
    assert plain.tolist() == [[2, -2, 6, -2]]
    assert [round(e.std(dim=-1).item(), 6) for e in (conditional, plain)] == [1.290994, 3.829708]
    rescaled = guided_eps(conditional, unconditional, 3.0, 0.7)
    assert [round(number, 5) for number in rescaled.flatten().tolist()] == [1.07194, -1.07194, 3.21582, -1.07194]
    assert (rescaled / plain)[0, 0].item() == pytest.approx(0.535970, abs=5e-7)
    whole = guided_eps(conditional, unconditional, 3.0, 1.0)
    assert whole.std(dim=-1).item() == pytest.approx(1.290994, abs=1e-6)


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_noise_without_a_spread_is_left_alone(rescale):
    both = torch.full((2, 4), 0.5), torch.full((2, 4), 0.5)
    assert torch.equal(guided_eps(*both, 3.0, rescale), both[0])


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_guidance_happens_in_the_noise_and_each_row_has_its_own_spread(rescale):
    """From predictions to ε, guided, and back: at every timestep but the last."""
    x, with_context, without = torch.randn(3, 5, 6)
    denoise = guided(lambda x, t: (with_context, without), lambda x, t: 1 / 0, LEVELS, 3.0, rescale)
    for t in (0, 49, 98):
        a, s = LEVELS[t] ** 0.5, (1 - LEVELS[t]) ** 0.5
        eps = [(x - a * x_0) / s for x_0 in (with_context.double(), without.double())]
        expected = torch.cat([guided_eps(eps[0][[i]], eps[1][[i]], 3.0, rescale) for i in range(5)])
        torch.testing.assert_close(denoise(x, t).double(), (x - s * expected) / a, atol=1e-4, rtol=1e-4)


def test_without_rescaling_guidance_is_linear_in_the_predictions():
    x, with_context, without = torch.randn(3, 5, 6)
    denoise = guided(lambda x, t: (with_context, without), lambda x, t: 1 / 0, LEVELS, 3.0)
    torch.testing.assert_close(denoise(x, 60), without + 3 * (with_context - without), atol=1e-5, rtol=1e-5)


def test_pure_noise_is_denoised_without_guidance():
    answer = torch.randn(2, 3)
    denoise = guided(lambda x, t: 1 / 0, lambda x, t: answer, LEVELS, 3.0, 0.7)
    assert torch.equal(denoise(torch.randn(2, 3), 99), answer)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_unit_guidance_is_no_guidance_at_all(rescale):
    alone = towards(1.5)
    assert guided(lambda x, t: 1 / 0, alone, LEVELS, 1.0, rescale) is alone


@pytest.mark.parametrize("run", [ddim, dpm_solver])
def test_guidance_costs_one_call_a_step(run):
    """The network is called once for both; at pure noise, for the one with context."""
    both, pairs = seen(lambda x, t: (towards(1.5)(x, t), torch.zeros_like(x)))
    alone, calls = seen(towards(1.5))
    found = run(guided(both, alone, FORTY, 3.0, 0.7), torch.randn(2, 3), FORTY)
    assert [i for _, i in calls] == [0]
    assert [i for _, i in pairs] == list(range(1, 40))
    assert found.isfinite().all()


@pytest.mark.parametrize("run", [ddim, dpm_solver])
def test_rows_do_not_touch_each_other(run):
    """A row comes out the same in any company, guided and rescaled."""
    x = torch.randn(5, 6)

    def both(x, i):
        return towards(1.5)(x, i), towards(0.2)(x, i)

    denoise = guided(both, towards(1.5), FORTY, 3.0, 0.7)
    together = run(denoise, x, FORTY)
    alone = torch.cat([run(denoise, x[[i]], FORTY) for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)
