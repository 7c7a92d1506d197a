"""Statistics of a space whose shape is known, neighbours, and the threshold at which a text ends."""

import pytest
import torch
from judged_fakes import Perfect, at, sample_of, sentences

from lcm.codec_lab.space import end_of_text, nearest, statistics


@pytest.mark.parametrize("directions", [1, 3, 7])
def test_the_participation_ratio_counts_equal_directions(directions):
    axes = torch.eye(9)[:directions]
    found = statistics(torch.cat([axes, -axes]) * 5)
    assert found["participation_ratio"] == pytest.approx(directions)


def test_the_mean_cosine_is_that_of_all_pairs():
    vectors = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)) + 1
    cosine = torch.nn.functional.normalize(vectors, dim=1) @ torch.nn.functional.normalize(vectors, dim=1).T
    expected = cosine[~torch.eye(30, dtype=torch.bool)].mean().item()
    assert statistics(vectors)["mean_cosine"] == pytest.approx(expected, abs=1e-5)


def test_quantiles_are_those_of_the_numbers():
    found = statistics(torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]))
    assert found["norm"] == pytest.approx(
        {"0": 0, "0.01": 0.1, "0.25": 2.5, "0.5": 5, "0.75": 7.5, "0.99": 9.9, "1": 10}
    )
    assert (found["channel_std"]["0"], found["channel_std"]["1"]) == pytest.approx((3, 4))
    assert found["norm_of_mean"] == pytest.approx(5)


def test_one_vector_has_no_spread_and_no_pairs():
    found = statistics(torch.ones(1, 4))
    assert (found["participation_ratio"], found["mean_cosine"]) == (None, None)
    assert found["channel_std"]["1"] == 0


def test_neighbours_are_the_nearest_around_the_mean():
    """Points on a circle far from the origin: plain cosines would rank them by their angle to it."""
    angle = torch.tensor([0.0, 0.1, 0.3, 3.0, 3.2, 3.3])
    points = torch.stack([angle.cos(), angle.sin()], dim=1)
    points = points - points.mean(dim=0) + torch.tensor([100.0, 7.0])
    places, cosines = nearest(at(points.tolist()), 1)
    assert places[:, 0].tolist() == [1, 0, 1, 4, 5, 4]
    assert bool((cosines > 0.9).all())


def test_a_sentence_is_not_its_own_neighbour_nor_is_its_twin():
    sample = at([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]], ["twin", "twin", "near", "far"])
    places, _ = nearest(sample, 3)
    assert places.shape == (4, 2)
    assert places[:2].tolist() == [[2, 3], [2, 3]]


def test_one_sentence_has_no_neighbours():
    assert nearest(at([[1.0, 2.0]]), 3)[0].shape == (1, 0)


def test_the_suggested_threshold_is_halfway_to_the_nearest():
    class Compass(Perfect):
        """Two numbers: the end lies along the first; "End of text" at cosine 0.8, all others across."""

        def encode(self, sentences, lang="eng_Latn", *, progress=None):
            known = {"End of text.": [2.0, 0.0], "End of text": [0.8, 0.6], "Near": [0.95, 0.3122499]}
            return torch.tensor([known.get(sentence, [0.0, 1.0]) for sentence in sentences])

    codec = Compass(2)
    found = end_of_text(codec, sample_of(codec, sentences(9)))
    assert found["near_misses"]["End of text"] == pytest.approx(0.8)
    assert found["suggested_threshold"] == 0.9
    assert found["cosine_quantiles"]["1"] == pytest.approx(0)
    near = at([[0.95, 0.3122499], [3.0, 0.0]], ["Near", "End of text."])
    found = end_of_text(codec, near)
    assert (found["sentences"], found["nearest"]) == (1, "Near"), "the end itself is not among the others"
    assert found["suggested_threshold"] == 0.97
