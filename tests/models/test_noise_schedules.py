"""Noise schedules: the paper's to the printed digit, falling to exactly zero; and 40 sampling steps that are 40."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from lcm.errors import UserError
from lcm.models.samplers import alpha_bar, sampling_timesteps

TIMES = (0, 9, 24, 49, 74, 89, 94, 98)
SCHEDULES = {
    ("cosine",): (".999369", ".972079", ".846940", ".493638", ".144040", ".023963", ".005989", ".000228"),
    ("quadratic-1",): (".999000", ".835333", ".591356", ".271187", ".069889", ".011383", ".002862", ".000115"),
    ("quadratic-2",): (".980000", ".734499", ".433768", ".147588", ".028372", ".003887", ".000923", ".000035"),
    ("sigmoid", 1.5, -1): (".997248", ".908479", ".656354", ".268637", ".065884", ".013317", ".004347", ".000351"),
    ("sigmoid", 1.5, -2): (".992555", ".785061", ".412709", ".119036", ".025285", ".004939", ".001603", ".000129"),
    ("sigmoid", 0.8, -1): (".935601", ".680133", ".468543", ".267477", ".131136", ".058541", ".032813", ".008709"),
    ("sigmoid", 3.5, 0): ("1.000000", ".999543", ".979064", ".499996", ".020933", ".000457", ".000033", ".000000"),
    ("linear",): (".999900", ".975053", ".850233", ".492509", ".142263", ".023624", ".005935", ".000238"),
}
EVERY = [*SCHEDULES, ("quadratic", 0.001, 0.0012)]
FORTY = [99, 97, 94, 91, 89, 87, 84, 81, 79, 77, 74, 71, 69, 67, 64, 61, 59, 57, 54, 51, 49, 47, 44, 41, 39, 37, 34, 31,
         29, 27, 24, 21, 19, 17, 14, 11, 9, 7, 4, 1]  # fmt: skip


def table(name, *parameters, steps=100):
    names = {"sigmoid": ("gamma", "delta"), "quadratic": ("b0", "b1")}.get(name, ())
    return alpha_bar(name, steps, **dict(zip(names, map(float, parameters), strict=True)))


def by_hand(name, *parameters, steps=100):
    """The table in numpy's longest precision, from the formulas of paper §2.3.2; without the last rescaling, too."""
    u = np.arange(steps + 1, dtype=np.longdouble) / steps
    ramp = np.arange(steps, dtype=np.longdouble) / (steps - 1)
    if name == "cosine":
        f = np.cos((u + 0.008) / 1.008 * np.longdouble("1.5707963267948966192313216916398")) ** 2
    if name == "sigmoid":
        gamma, delta = parameters
        with np.errstate(divide="ignore"):
            f = 1 / (1 + np.exp(gamma * np.log(u / (1 - u)) - delta))
    if name in ("cosine", "sigmoid"):
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    elif name == "linear":
        betas = 1e-4 + ramp * (0.02 - 1e-4)
    else:
        b0, b1 = parameters or {"quadratic-1": (0.001, 0.0012), "quadratic-2": (0.02, 0.022)}[name]
        betas = (np.sqrt(b0) + ramp * (np.sqrt(b1) - np.sqrt(b0))) ** 2
    plain = np.cumprod(1 - betas)
    root = np.sqrt(plain)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2, plain


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_schedules_to_the_printed_digit(schedule):
    found = table(*schedule)
    assert [f"{found[t].item():.6f}".removeprefix("0") for t in TIMES] == list(SCHEDULES[schedule])


@pytest.mark.parametrize("steps", [2, 3, 100, 1000])
@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_schedules_are_the_formulas_and_fall_from_below_one_to_exactly_zero(schedule, steps):
    found = table(*schedule, steps=steps)
    assert found.dtype == torch.float64
    assert found.shape == (steps,)
    assert found[-1] == 0
    assert 0 < found[0] < 1
    assert (found.diff() < 0).all()
    expected = by_hand(*schedule, steps=steps)[0].astype(np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(1 - found, 1 - expected, rtol=1e-8, atol=1e-15)


def test_quadratic_one_and_two_are_the_quadratic_schedule():
    assert torch.equal(table("quadratic", 0.001, 0.0012), table("quadratic-1"))
    assert torch.equal(table("quadratic", 0.02, 0.022), table("quadratic-2"))


def test_what_the_rescaling_starts_from():
    """The reference of these tests against the numbers of the paper's schedules before it."""
    assert f"{by_hand('cosine')[1][49]:.6f}" == "0.493844"
    assert f"{by_hand('cosine')[1][99]:.2e}" == "2.43e-07"
    assert float(by_hand("quadratic-1")[1][99]) == pytest.approx(0.895914, abs=1e-6)
    assert float(by_hand("quadratic-2")[1][99]) == pytest.approx(0.119842, abs=1e-6)


def test_betas_and_signal_to_noise_of_the_cosine():
    """In float64: with fp32 tables the first β comes out as .000631452, and log SNR as 7.3669."""
    found = table("cosine")
    betas = 1 - found / torch.cat([torch.ones(1), found[:-1]])
    printed = {0: ".000631282", 1: ".00111749", 9: ".0050358", 24: ".01289", 49: ".0306141", 74: ".071666"}
    printed |= {89: ".17262", 97: ".560098", 98: ".757908", 99: "1"}
    assert {t: f"{betas[t]:.6g}".removeprefix("0") for t in printed} == printed
    log_snr = torch.log(found / (1 - found))
    printed = {0: 7.3671, 1: 6.3475, 9: 3.5501, 24: 1.7108, 49: -0.0255, 74: -1.7821, 89: -3.707, 97: -6.9669}
    printed |= {98: -8.3861, 99: -math.inf}
    assert {t: round(log_snr[t].item(), 4) for t in printed} == printed
    start = math.cos(0.018 / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
    assert betas[0].item() == pytest.approx(1 - start**2, rel=1e-10)


def test_float64_keeps_the_first_noise_of_the_steepest_schedule():
    """In fp32, ᾱ_0 = f(0.01) / f(0) is off by 15% of its distance to 1, or is 1, and then SNR is infinite."""
    found = table("sigmoid", 3.5, 0)
    assert (1 - found[0]).item() == pytest.approx(99**-3.5, rel=1e-6)
    assert f"{found[98]:.1e}" == "9.7e-08"
    assert (1 - found.float())[0].item() != pytest.approx(99**-3.5, rel=0.1)


@pytest.mark.parametrize(
    ("schedule", "parameters", "line"),
    [
        ("cosin", {}, "schedule='cosin': expected one of cosine, linear, quadratic-1"),
        ("sigmoid", {"gamma": 1.5}, "delta is missing: schedule 'sigmoid' needs gamma and delta"),
        ("quadratic", {"b1": 0.1}, "b0 is missing"),
        ("cosine", {"delta": 0.0}, "delta is set, but schedule 'cosine' has no use for it; leave it out"),
        ("quadratic-1", {"b0": 0.1, "b1": 0.1}, "b0 is set"),
        (
            "sigmoid",
            {"gamma": 9.0, "delta": 0.0},
            "gamma=9.0, delta=0.0: schedule 'sigmoid' then has steps that add no",
        ),
        ("sigmoid", {"gamma": -1.0, "delta": 0.0}, "gamma=-1.0, delta=0.0: schedule"),
        ("quadratic", {"b0": 0.1, "b1": 1.5}, "b0=0.1, b1=1.5: schedule"),
        ("sigmoid", {"gamma": math.nan, "delta": 0.0}, "gamma=nan"),
        ("cosine", {"steps": 1}, "steps=1: expected 2 or more"),
    ],
)
def test_a_schedule_that_cannot_be_is_one_line(schedule, parameters, line):
    with pytest.raises(UserError) as caught:
        alpha_bar(schedule, **parameters)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_forty_sampling_steps_are_forty():
    """A stride of 2.5 that is truncated to 2 gives 50."""
    assert sampling_timesteps(100, 40) == FORTY
    assert sampling_timesteps(100, 20) == list(range(99, 0, -5))
    assert sampling_timesteps(100, 10) == list(range(99, 0, -10))
    assert sampling_timesteps(100, 1) == [99]


@pytest.mark.parametrize("train_steps", [1, 2, 7, 100, 1000])
def test_every_number_of_sampling_steps_is_that_many_distinct_ones_from_the_last(train_steps):
    for count in range(1, train_steps + 1):
        steps = sampling_timesteps(train_steps, count)
        assert len(steps) == count
        assert steps[0] == train_steps - 1
        assert all(a > b for a, b in pairwise(steps))
        assert steps[-1] >= 0
        gaps = [a - b for a, b in zip(steps, [*steps[1:], -1], strict=True)]
        assert max(gaps) - min(gaps) <= 2, "evenly spread"
    assert sampling_timesteps(train_steps, train_steps) == list(range(train_steps - 1, -1, -1))


@pytest.mark.parametrize("count", [0, -1, 101])
def test_more_or_fewer_steps_than_there_are_is_one_line(count):
    with pytest.raises(UserError, match=f"steps={count}: the model was trained with 100; expected 1 to 100"):
        sampling_timesteps(100, count)
