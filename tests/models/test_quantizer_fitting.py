"""Fitting codebooks: what every one of them promises, the same bytes again, and what is refused."""

import faiss
import pytest
import torch

from lcm.errors import UserError
from lcm.models.quantizer_fitting import fit_quantizer, kmeans, principal_directions, variance, widths


def test_every_codebook_leaves_less_of_what_it_was_fitted_to():
    torch.manual_seed(0)
    vectors = torch.randn(600, 6) * torch.tensor([5.0, 3, 1, 1, 0.3, 0.1]) + 4
    quantizer = fit_quantizer(vectors, 8, 8, seed=0)
    codes = quantizer.encode(vectors)
    assert codes.min() == 0
    assert codes.max() == 7
    norms = [float((vectors - quantizer.dequantize(codes, torch.full((600,), k))).norm(dim=1).mean()) for k in range(9)]
    assert norms == sorted(norms, reverse=True)
    assert norms[8] < 0.2 * norms[1]


def test_every_codebook_leaves_less_of_vectors_that_fitting_has_not_seen():
    torch.manual_seed(0)
    vectors, others = torch.randn(2000, 6), torch.randn(500, 6)
    left = [float((others - fit_quantizer(vectors, n, 8, seed=0)(others)).square().mean()) for n in (1, 2, 4)]
    assert left[0] > 1.3 * left[1] > 1.3 * 1.3 * left[2]


def test_the_first_codebooks_do_not_depend_on_how_many_follow():
    vectors = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    few, many = (fit_quantizer(vectors, n, 6, seed=3) for n in (2, 4))
    assert torch.equal(few.codebooks, many.codebooks[:2])


@pytest.mark.parametrize(("units", "dim", "copies"), [(8, 5, 1), (8, 5, 40), (16, 3, 7), (5, 12, 3), (1, 4, 9)])
def test_as_many_distinct_vectors_as_units_come_back_exactly(units, dim, copies):
    vectors = torch.randn(units, dim, generator=torch.Generator().manual_seed(units)).repeat(copies, 1)
    assert torch.allclose(fit_quantizer(vectors, 1, units, seed=0)(vectors), vectors, atol=1e-5)
    assert torch.allclose(fit_quantizer(vectors, 3, units, seed=0)(vectors), vectors, atol=1e-5)


def test_vectors_that_are_all_alike_are_one_unit():
    vectors = torch.full((20, 3), 7.0)
    assert torch.allclose(fit_quantizer(vectors, 2, 4, seed=0)(vectors), vectors, atol=1e-5)


def test_refitting_gives_the_same_bytes_and_another_seed_others():
    vectors = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    before = vectors.clone()
    one, two, other = (fit_quantizer(vectors, 3, 9, seed=seed).codebooks for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(vectors, before), "the caller's vectors stay what they are"


def test_centers_are_the_means_of_their_nearest_vectors():
    """k-means has come to rest in all directions, turned back to where the vectors are."""
    torch.manual_seed(0)
    vectors = (20 * torch.randn(6, 1, 8) + torch.randn(6, 50, 8)).flatten(0, 1)
    found = kmeans(vectors, 6, seed=0)
    chosen = torch.cdist(vectors, found).argmin(1)
    means = torch.stack([vectors[chosen == unit].mean(0) for unit in range(6)])
    assert torch.allclose(found, means, atol=1e-4)


def test_principal_directions_by_their_variance():
    torch.manual_seed(0)
    vectors = torch.randn(500, 4) * torch.tensor([1.0, 9.0, 0.1, 3.0]) + 100
    directions = principal_directions(vectors)
    assert directions.abs().argmax(0).tolist() == [1, 3, 0, 2]
    assert torch.allclose(directions.T @ directions, torch.eye(4), atol=1e-5)


def test_k_means_runs_in_more_and_more_directions():
    assert widths(1) == [1]
    assert widths(3) == [1, 2, 3]
    assert widths(1024) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]


def test_more_directions_start_from_the_centers_of_fewer(monkeypatch):
    starts, centres, train = [], [], faiss.Kmeans.train

    def recorded(self, x, weights=None, init_centroids=None):
        starts.append(init_centroids)
        train(self, x, weights, init_centroids)
        centres.append(self.centroids.copy())

    monkeypatch.setattr(faiss.Kmeans, "train", recorded)
    kmeans(torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), 5, seed=0)
    assert starts[0] is None
    for start, before in zip(starts[1:], centres, strict=False):
        assert start[:, :-1].tolist() == before.tolist()
        assert not start[:, -1].any()


def test_the_share_of_the_variance_is_reported_after_each_codebook():
    vectors, lines = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)) + 50, []
    quantizer = fit_quantizer(vectors, 2, 5, seed=0, report=lines.append)
    left = float((vectors - quantizer(vectors)).square().sum()) / variance(vectors)
    assert lines[1] == f"codebook 2 of 2: {left:.2%} of the variance left"
    assert variance(vectors) == pytest.approx(float((vectors - vectors.mean(0)).square().sum()), rel=1e-4)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(UserError, match="units=9, but there are only 8 vectors"):
        fit_quantizer(torch.randn(8, 2), 1, 9, seed=0)
    with pytest.raises(UserError, match="codebooks=0"):
        fit_quantizer(torch.randn(8, 2), 0, 4, seed=0)
    with pytest.raises(UserError, match="not finite"):
        fit_quantizer(torch.tensor([[0.0], [torch.inf]]), 1, 1, seed=0)
