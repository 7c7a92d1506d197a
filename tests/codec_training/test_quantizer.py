"""Residual quantization: what is left falls with every codebook, and few distinct vectors come back exactly."""

import pytest
import torch

from lcm.codec_training.quantizer import ResidualQuantizer, fit_quantizer, nearest
from lcm.errors import UserError


def test_every_codebook_leaves_less():
    torch.manual_seed(0)
    vectors = torch.randn(400, 6)
    left = [float((vectors - fit_quantizer(vectors, n, 8, seed=0)(vectors)).square().mean()) for n in (1, 2, 4)]
    assert left[0] > 1.3 * left[1] > 1.3 * 1.3 * left[2]


def test_as_many_distinct_vectors_as_units_come_back_exactly():
    torch.manual_seed(0)
    vectors = torch.randn(8, 5)
    assert torch.allclose(fit_quantizer(vectors, 1, 8, seed=0)(vectors), vectors, atol=1e-6)


def test_the_sum_of_the_nearest_units_by_hand():
    quantizer = ResidualQuantizer(torch.tensor([[[0.0], [10.0]], [[1.0], [-1.0]]]))
    assert quantizer(torch.tensor([[10.8], [-0.7]])).tolist() == [[11.0], [-1.0]]


def test_nearest_agrees_with_all_distances():
    torch.manual_seed(0)
    vectors, units = torch.randn(50, 4), torch.randn(7, 4)
    assert torch.equal(nearest(vectors, units), torch.cdist(vectors, units).argmin(1))


def test_fewer_vectors_than_units_are_refused():
    with pytest.raises(UserError, match=r"terms.units=9, but there are only 8"):
        fit_quantizer(torch.randn(8, 2), 1, 9, seed=0)
