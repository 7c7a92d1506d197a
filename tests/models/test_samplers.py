"""Samplers: known data with its exact denoiser comes out as known; each step is the formula, and costs one call."""

import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
import torch

from lcm.models.samplers import alpha_bar, ddim, dpm_solver, sampling_timesteps

COSINE = alpha_bar("cosine")
MEAN, SPREAD = 1.5, 0.4
SAMPLERS = {"ddim": ddim, "dpm": dpm_solver}


def levels_of(steps, table=COSINE):
    """ᾱ at so many sampling steps, or at these timesteps."""
    timesteps = sampling_timesteps(len(table), steps) if isinstance(steps, int) else list(steps)
    return table[timesteps].tolist()


def gaussian(levels, mean=MEAN, spread=SPREAD):
    """E[x_0 | x_t] for data ~ N(mean, spread²)."""

    def denoise(x, i):
        ab = levels[i]
        gain = ab**0.5 * spread**2 / (ab * spread**2 + 1 - ab)
        return mean + gain * (x - ab**0.5 * mean)

    return denoise


def seen(denoise):
    """The denoiser, and the list of (x, step) of its calls."""
    calls = []

    def recorded(x, i):
        calls.append((x.clone(), i))
        return denoise(x, i)

    return recorded, calls


def gaussian_noise(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda step: torch.randn(shape, generator=generator)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20, 30, 40, 99, 100])
def test_an_oracle_gives_the_truth_with_one_call_a_step(sampler, steps):
    truth = torch.randn(3, 8)
    oracle, calls = seen(lambda x, i: truth)
    assert torch.equal(sampler(oracle, torch.randn(3, 8), levels_of(steps)), truth)
    assert [i for _, i in calls] == list(range(steps))


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_an_oracle_s_last_step_starts_close_to_the_truth(sampler):
    """The way there leads to it, and not only the answer at its end."""
    truth = torch.randn(3, 8)
    oracle, calls = seen(lambda x, i: truth)
    noise, levels = torch.randn(3, 8), levels_of(40)
    sampler(oracle, noise, levels)
    torch.testing.assert_close(calls[-1][0], levels[-1] ** 0.5 * truth + (1 - levels[-1]) ** 0.5 * noise)


def by_hand_ddim(levels, scaling=1.0):
    """(gain, shift) of the linear map from the first noise to the result, for the Gaussian's denoiser, in numpy."""
    gain, shift = 1.0, 0.0
    for now, after in pairwise([*levels, 1.0]):
        a, s = np.sqrt(now), np.sqrt(1 - now)
        k = a * SPREAD**2 / (a**2 * SPREAD**2 + s**2)
        x0 = k * gain, MEAN + k * (shift - a * MEAN)
        eps = (gain - a * x0[0]) / s / scaling, (shift - a * x0[1]) / s / scaling
        to_a, to_s = np.sqrt(after), np.sqrt(1 - after)
        gain, shift = to_a * x0[0] + to_s * eps[0], to_a * x0[1] + to_s * eps[1]
    return gain, shift


def by_hand_dpm(levels):
    """A plain form of DPM-Solver++(2M), with λ and its infinities as its paper writes them."""
    with np.errstate(divide="ignore"):
        alpha, sigma = np.sqrt([*levels, 1.0]), np.sqrt(1 - np.array([*levels, 1.0]))
        lam = np.log(alpha) - np.log(sigma)
    x, before = np.array([1.0, 0.0]), None
    for now, after in pairwise(range(len(levels) + 1)):
        k = alpha[now] * SPREAD**2 / (alpha[now] ** 2 * SPREAD**2 + sigma[now] ** 2)
        x0 = k * x + np.array([0, MEAN - k * alpha[now] * MEAN])
        h = lam[after] - lam[now]
        ahead = x0
        if before is not None and after != len(levels):
            r = (lam[now] - lam[now - 1]) / h
            ahead = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x, before = sigma[after] / sigma[now] * x - alpha[after] * np.expm1(-h) * ahead, x0
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 25, 40, 100])
@pytest.mark.parametrize("schedule", ["cosine", "quadratic-2", "sigmoid"])
def test_a_few_steps_on_a_gaussian_are_the_recursion_exactly(steps, schedule):
    """Results are linear in the first noise; a wrong ε, a wrong next timestep or a wrong ᾱ changes the map."""
    table = alpha_bar(schedule, **({"gamma": 3.5, "delta": 0.0} if schedule == "sigmoid" else {}))
    levels = levels_of(steps, table)
    x = torch.tensor([[-2.0, 0.0, 1.0]])
    for found, (gain, shift) in (
        (ddim(gaussian(levels), x, levels), by_hand_ddim(levels)),
        (ddim(gaussian(levels), x, levels, epsilon_scaling=1.05), by_hand_ddim(levels, 1.05)),
        (dpm_solver(gaussian(levels), x, levels), by_hand_dpm(levels)),
    ):
        torch.testing.assert_close(found, (gain * x + shift).float(), atol=3e-6, rtol=3e-6)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_many_steps_of_ddim_give_the_gaussian_s_mean_and_spread(eta):
    """With the noise of ancestral sampling, too. The initial scale is the caller's: at 0.6, less noise, less spread."""
    levels = levels_of(500, alpha_bar("cosine", 1000))
    x = gaussian_noise((20_000, 2), seed=1)(0)
    found = ddim(gaussian(levels), x, levels, eta=eta, noise=gaussian_noise((20_000, 2)))
    assert found.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert found.std().item() == pytest.approx(SPREAD, rel=0.02)


def test_few_steps_of_dpm_give_the_gaussian_s_mean_and_spread():
    x, levels = gaussian_noise((20_000, 2), seed=1)(0), levels_of(50)
    found = dpm_solver(gaussian(levels), x, levels)
    assert found.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert found.std().item() == pytest.approx(SPREAD, rel=0.02)


def test_less_initial_noise_is_less_spread():
    x, levels = torch.randn(2, 3), levels_of(100)
    gain, shift = by_hand_ddim(levels)
    torch.testing.assert_close(ddim(gaussian(levels), 0.6 * x, levels), (0.6 * gain * x + shift).float())


WEIGHTS, CENTRES, WIDTHS = (0.3, 0.7), (-1.0, 1.2), (0.5, 0.3)


def mixture(levels):
    """E[x_0 | x_t] for a mixture of two Gaussians, in float64."""

    def denoise(x, i):
        ab = levels[i]
        x, parts = x.double(), []
        for weight, centre, width in zip(WEIGHTS, CENTRES, WIDTHS, strict=True):
            variance = ab * width**2 + 1 - ab
            away = x - ab**0.5 * centre
            parts.append((weight * torch.exp(-(away**2) / 2 / variance) / variance**0.5,
                          centre + ab**0.5 * width**2 / variance * away))  # fmt: skip
        return sum(p * mean for p, mean in parts) / sum(p for p, _ in parts)

    return denoise


def mixture_quantile(q, ab):
    """Quantile q of the mixture noised to ᾱ, by bisection."""
    parts = [NormalDist(ab**0.5 * c, (ab * s**2 + 1 - ab) ** 0.5) for c, s in zip(CENTRES, WIDTHS, strict=True)]
    low, high = -10.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        below = sum(weight * part.cdf(middle) for weight, part in zip(WEIGHTS, parts, strict=True))
        low, high = (middle, high) if below < q else (low, middle)
    return low


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm", 2)])
def test_the_order_of_convergence(name, order):
    """In one dimension the exact path is known: it stays at one quantile. Not from end to end, where λ is infinite."""
    table, errors = alpha_bar("cosine", 4096), []
    exact = {t: torch.tensor([[mixture_quantile(q / 10, table[t].item())] for q in range(1, 10)]) for t in (3584, 512)}
    for stride in (64, 32, 16):
        levels = levels_of(range(3584, 511, -stride), table)
        denoise, calls = seen(mixture(levels))
        SAMPLERS[name](denoise, exact[3584], levels)
        errors.append((calls[-1][0] - exact[512]).abs().max().item())
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([order] * 2, abs=0.2)


@pytest.mark.parametrize(("sampler", "error"), [(ddim, 0.02), (dpm_solver, 0.003)])
def test_from_pure_noise_to_the_mixture(sampler, error):
    x = torch.tensor([[NormalDist().inv_cdf(q / 10)] for q in range(1, 10)])
    truth = torch.tensor([[mixture_quantile(q / 10, 1.0)] for q in range(1, 10)])
    levels = levels_of(50)
    found = sampler(mixture(levels), x, levels)
    assert (found - truth).abs().mean() < error


def test_one_step_has_the_coefficients_of_the_table():
    """From 49 to 47 of the cosine: .724436 of the prediction and .689342 of ε."""
    denoise, calls = seen(lambda x, i: torch.tensor([[1.0, 0.0]]))
    a, s = COSINE[49].sqrt(), (1 - COSINE[49]).sqrt()
    ddim(denoise, torch.tensor([[a, s]]), levels_of([49, 47]))
    assert [round(number, 6) for number in calls[1][0].flatten().tolist()] == [0.724436, 0.689342]


def test_the_noise_of_ancestral_sampling_has_ddim_s_variance():
    """Printed from fp32 tables: .00414836, .0296716, .757367 and .999772."""
    denoise, calls = seen(lambda x, i: torch.zeros_like(x))
    for t, variance in ((9, 0.00414842), (49, 0.0296716), (98, 0.757367), (99, 0.999772)):
        calls.clear()
        ddim(denoise, torch.zeros(1, 1), levels_of([t, t - 1]), eta=1.0, noise=lambda step: torch.ones(1, 1))
        assert calls[1][0].item() ** 2 == pytest.approx(variance, rel=2e-6)


def test_the_last_step_adds_no_noise():
    steps = []

    def noise(step):
        steps.append(step)
        return torch.ones(1, 1)

    ddim(lambda x, i: x, torch.zeros(1, 1), levels_of([99, 50, 0]), eta=1.0, noise=noise)
    assert steps == [0, 1]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 9.0])
@pytest.mark.parametrize("schedule", [{"schedule": "cosine"}, {"schedule": "sigmoid", "gamma": 3.5, "delta": 0.0}])
def test_results_are_finite_for_every_eta_and_number_of_steps(eta, schedule):
    """And no step has more noise than ᾱ leaves room for."""
    table, noise = alpha_bar(**schedule), gaussian_noise((4, 2))
    for steps in range(1, 101):
        denoise, calls = seen(lambda x, i: torch.zeros_like(x))
        levels = levels_of(steps, table)
        found = ddim(denoise, noise(0), levels, eta=eta, noise=noise)
        assert found.isfinite().all()
        assert all(x.abs().max() < 6 for x, _ in calls)
        assert dpm_solver(gaussian(levels), noise(0), levels).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_is_fp32_out(dtype):
    """The denoiser gets fp32 and may answer in its own precision; nothing else is rounded."""
    x, levels = torch.randn(2, 3).to(dtype), levels_of(10)
    for sampler in SAMPLERS.values():
        half, calls = seen(lambda x, i: gaussian(levels)(x, i).to(dtype))
        found = sampler(half, x, levels)
        assert found.dtype == torch.float32
        assert all(asked.dtype == torch.float32 for asked, _ in calls)
        exact = sampler(lambda x, i: gaussian(levels)(x, i).to(dtype).float(), x.float(), levels)
        assert torch.equal(found, exact)
