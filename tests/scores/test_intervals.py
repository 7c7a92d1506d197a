"""Intervals against the textbook's, and units that are drawn together."""

import math

import numpy as np
import pytest

from lcm.scores import bootstrap, mean_of_texts


def test_bootstrap_of_a_normal_sample_is_the_textbook_interval():
    values = np.random.default_rng(0).normal(5.0, 2.0, size=4000)
    interval = bootstrap(values, np.ones(4000), samples=4000)
    half = 1.96 * values.std() / math.sqrt(4000)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_draws_the_sentences_of_a_document_together():
    """If all sentences of a document score alike, a thousand of them in ten documents are worth ten numbers."""
    scores = np.random.default_rng(1).normal(size=10)
    together = bootstrap(scores * 100, np.full(10, 100.0))
    assert together.value == pytest.approx(scores.mean())
    single = bootstrap(scores, np.ones(10))
    assert (together.low, together.high) == pytest.approx((single.low, single.high))


def test_bootstrap_is_a_function_of_its_seed():
    values, ones = np.arange(50.0), np.ones(50)
    assert bootstrap(values, ones, seed=3) == bootstrap(values, ones, seed=3)
    assert bootstrap(values, ones, seed=3) != bootstrap(values, ones, seed=0)


def test_units_without_sentences_are_no_units():
    interval = bootstrap(np.array([4.0, 0.0]), np.array([2.0, 0.0]))
    assert (interval.value, interval.low, interval.high) == (2.0, 2.0, 2.0)
    assert math.isnan(bootstrap(np.zeros(3), np.zeros(3)).value)


def test_a_text_that_is_not_scored_is_in_no_mean():
    some = mean_of_texts(np.array([1.0, np.nan, 3.0]))
    assert some == mean_of_texts(np.array([1.0, 3.0]))
    assert some.value == 2.0
    assert math.isnan(mean_of_texts(np.array([np.nan])).low)
