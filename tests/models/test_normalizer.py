"""The normalizer: quartiles and not tails, exact there and back, frozen inside the model."""

import math

import numpy as np
import pytest
import torch

from lcm.data.manifest import location_and_scale
from lcm.models.interface import Normalizer


def test_it_starts_as_the_identity():
    x = torch.randn(3, 4)
    assert torch.equal(Normalizer(4)(x), x)
    assert torch.equal(Normalizer(4).inverse(x), x)


def test_inverse_undoes_the_formula():
    normalizer = Normalizer(2)
    normalizer.set(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5]))
    assert normalizer(torch.tensor([[5.0, -1.0]])).tolist() == [[2.0, 2.0]]
    assert normalizer.inverse(torch.tensor([[2.0, 2.0]])).tolist() == [[5.0, -1.0]]
    x = torch.randn(2, 3, 5, 2)
    torch.testing.assert_close(normalizer.inverse(normalizer(x)), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_results_are_fp32_whatever_comes_in(dtype):
    """fp16 values near the median: subtracting before converting would round the small difference away."""
    normalizer = Normalizer(1)
    normalizer.set(torch.tensor([0.30001]), torch.tensor([1e-4]))
    x = torch.tensor([[0.3]], dtype=dtype)
    expected = (x.float().item() - 0.30001) / 1e-4
    assert normalizer(x).dtype == normalizer.inverse(x).dtype == torch.float32
    assert normalizer(x).item() == pytest.approx(expected, abs=1e-3)


def test_location_and_scale_are_buffers():
    normalizer = Normalizer(3)
    assert list(normalizer.parameters()) == []
    assert set(normalizer.state_dict()) == {"location", "scale"}


def test_fit_is_the_median_and_the_quartiles_of_numpy():
    """On an odd and an even count, and over more channels than one block holds."""
    for count in (101, 64, 1):
        vectors = np.random.default_rng(0).exponential(size=(count, 130))
        location, scale = location_and_scale(torch.from_numpy(vectors))
        low, middle, high = np.quantile(vectors, [0.25, 0.5, 0.75], axis=0)
        np.testing.assert_allclose(location, middle, rtol=1e-6)
        if count > 1:
            np.testing.assert_allclose(scale, (high - low) / 1.3489795, rtol=1e-6)


def test_a_gaussian_gets_its_own_mean_and_spread():
    torch.manual_seed(0)
    spread, mean = torch.tensor([0.006, 1.0, 40.0]), torch.tensor([0.0, -3.0, 100.0])
    location, scale = location_and_scale(torch.randn(200_000, 3) * spread + mean)
    torch.testing.assert_close(scale, spread, rtol=0.01, atol=0)
    torch.testing.assert_close((location - mean) / spread, torch.zeros(3), rtol=0, atol=0.01)


def test_an_exponential_distribution_tells_quartiles_from_tails():
    """Its interquartile range is ln 3. Quantiles 0.25% and 0.75% would give a scale 60 times smaller."""
    points = -torch.log1p(-(torch.arange(100_000) + 0.5) / 100_000)
    location, scale = location_and_scale(points[:, None].double())
    assert location.item() == pytest.approx(math.log(2), rel=1e-3)
    assert scale.item() == pytest.approx(math.log(3) / 1.3489795, rel=1e-3)


def test_outliers_change_nothing():
    torch.manual_seed(0)
    vectors = torch.randn(10_000, 2)
    spoiled = vectors.clone()
    spoiled[vectors > 2.5] = 1e6
    for clean, dirty in zip(location_and_scale(vectors), location_and_scale(spoiled), strict=True):
        torch.testing.assert_close(clean, dirty)


def test_a_channel_that_never_varies_gets_scale_one():
    location, scale = location_and_scale(torch.full((10, 2), 3.0))
    assert location.tolist() == [3.0, 3.0]
    assert scale.tolist() == [1.0, 1.0]


def test_fitted_data_has_median_zero_and_quartiles_of_a_unit_gaussian():
    torch.manual_seed(0)
    vectors = torch.rand(9_999, 3) * torch.tensor([1.0, 10.0, 0.01]) + 5
    normalizer = Normalizer(3)
    normalizer.set(*location_and_scale(vectors))
    low, middle, high = torch.quantile(normalizer(vectors), torch.tensor([0.25, 0.5, 0.75]), dim=0)
    torch.testing.assert_close(middle, torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(high - low, torch.full((3,), 1.3489795), atol=1e-3, rtol=0)
