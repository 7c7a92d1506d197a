"""Rank correlation of similarities: closed forms, ties, pairs that count several times, and honest intervals."""

import math

import numpy as np
import pytest
import torch
from judged_fakes import Perfect, at, sample_of, sentences

from lcm.codec_lab.space import agreement, correlation, cosines, dense_ranks, nearest, random_pairs
from lcm.codec_lab.space import spearman as weighted


def pairs_of(count):
    return torch.stack([torch.arange(count), torch.arange(count) + count], dim=1)


def spearman(a, b):
    return correlation(np.array(a, float), np.array(b, float), pairs_of(len(a)), 20, 0).value


def test_it_is_the_textbooks_formula():
    """1 − 6 Σd² / (n (n² − 1)), where no value comes twice."""
    ranks = [3, 1, 5, 2, 4]
    d = sum((i + 1 - r) ** 2 for i, r in enumerate(ranks))
    assert spearman([1, 2, 3, 4, 5], ranks) == pytest.approx(1 - 6 * d / (5 * 24))
    assert spearman([1, 2, 3], [10, 200, 3000]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def test_equal_values_share_the_middle_rank():
    """Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: a correlation of 4.5 / √(4.5 · 5)."""
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@pytest.mark.needs("scipy")
def test_it_agrees_with_scipy():
    from scipy import stats

    random = np.random.default_rng(3)
    a = random.integers(0, 8, 300).astype(float)
    b = a + random.normal(size=300).round(1) * 4
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


def test_a_pair_of_weight_three_counts_like_three_pairs():
    a, b, times = np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 4, 3]), np.array([3, 1, 2, 0])
    ranks = [dense_ranks(x) for x in (a, b)]
    repeated = [dense_ranks(np.repeat(x, times)) for x in (a, b)]
    assert weighted(*ranks, times.astype(float)) == pytest.approx(weighted(*repeated, np.ones(6)))


def test_values_that_are_all_equal_have_no_correlation():
    assert math.isnan(spearman([1, 1, 1, 1], [1, 2, 3, 4]))
    assert math.isnan(spearman([1, 2], [1, 2]))


def test_the_interval_holds_the_truth_and_narrows_with_more_pairs():
    """Gaussians of correlation r have Spearman's 6/π · asin(r/2)."""
    random, r = np.random.default_rng(0), 0.6
    widths = []
    for count in (200, 5000):
        a = random.normal(size=count)
        b = r * a + math.sqrt(1 - r * r) * random.normal(size=count)
        found = correlation(a, b, pairs_of(count), 200, 0)
        assert found.low < 6 / math.pi * math.asin(r / 2) < found.high
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 3


def test_the_interval_is_that_of_sentences_drawn_with_replacement():
    """A sentence comes w ~ Poisson(1) times, so a pair's weight has variance E[w²]² − 1 = 3, the correlation 3 / n."""
    random, n = np.random.default_rng(2), 2000
    found = correlation(random.normal(size=n), random.normal(size=n), pairs_of(n), 400, 0)
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(3 / n), rel=0.15)


def test_pairs_that_share_a_sentence_are_drawn_together():
    """One odd sentence that is in every pair with a high value: the interval knows that it is one, not fifty."""
    random = np.random.default_rng(1)
    a = random.normal(size=100)
    b = random.normal(size=100)
    a[:50] += 4
    b[:50] += 4
    hub = torch.stack([torch.cat([torch.zeros(50, dtype=torch.long), torch.arange(50) + 1]), torch.arange(100) + 51], 1)
    apart = correlation(a, b, pairs_of(100), 300, 0)
    shared = correlation(a, b, hub, 300, 0)
    assert shared.value == pytest.approx(apart.value)
    assert shared.high - shared.low > 1.5 * (apart.high - apart.low)


def test_random_pairs_are_distinct_and_use_every_sentence_alike():
    sample = sample_of(Perfect(8), sentences(40))
    pairs = random_pairs(sample)
    assert len({tuple(sorted(pair)) for pair in pairs.tolist()}) == len(pairs) == 400
    assert np.bincount(pairs.flatten().numpy()).tolist() == [20] * 40


def test_equal_texts_are_no_pair():
    sample = at([[1.0, 0], [0, 1], [1, 1], [1, 2]], ["same", "same", "other", "more"])
    for i, j in random_pairs(sample).tolist():
        assert sample.texts[i] != sample.texts[j]


def test_a_space_agrees_wholly_with_itself_and_only_the_centred_cosine_ignores_a_shift():
    sample = sample_of(Perfect(16), sentences(60))
    # Centred, so that both cosines are the same one.
    own = torch.nn.functional.normalize(sample.vectors - sample.vectors.mean(dim=0), dim=1)
    neighbours, _ = nearest(sample, 1)
    found = agreement(sample, own, neighbours, 20, 0)
    assert found["random"]["centred"]["value"] == pytest.approx(1)
    assert found["neighbours"]["centred"]["value"] == pytest.approx(1)
    sample.vectors[:, 0] += 50.0
    shifted = agreement(sample, own, neighbours, 20, 0)
    assert shifted["random"]["centred"]["value"] == pytest.approx(1, abs=1e-3)
    assert shifted["random"]["raw"]["value"] < 0.9


def test_cosines_are_those_of_the_pairs():
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert cosines(directions, torch.tensor([[0, 1], [2, 0], [1, 2]])) == pytest.approx([0, 0.6, 0.8])
