"""Scores by n-grams hold closed forms, and say NaN rather than 0 where there is nothing to count."""

import math

import pytest

from lcm.scores.overlap import ngrams, novelty, overlap_scores, ovl3, ovl3_characters, rep4, rep4_characters

CAT = "the cat sat on the mat"


def test_rep4_is_the_share_of_four_grams_seen_before():
    assert rep4(["a", "b", "c", "d", "a", "b", "c", "d"]) == pytest.approx(0.2)
    assert rep4(["a", "b", "c", "d", "e", "f"]) == 0
    assert rep4(["a"] * 103) == pytest.approx(0.99)
    assert math.isnan(rep4(["a", "b", "c"]))


def test_readings_by_characters_are_those_of_the_reference_code():
    assert rep4_characters("abab") == pytest.approx(0.428571, abs=1e-6)
    assert rep4_characters(CAT) == pytest.approx(0.366667, abs=1e-6)
    assert ovl3_characters(CAT, "the cat") == pytest.approx(0.35)
    assert math.isnan(rep4_characters(""))
    assert math.isnan(ovl3_characters("", "a"))


def test_ovl3_is_the_share_of_the_documents_trigrams():
    source = CAT.split()
    assert ovl3(source, source) == 1
    assert ovl3(source, ["the", "cat", "sat", "here"]) == pytest.approx(1 / 4)
    assert ovl3(source, []) == 0
    assert math.isnan(ovl3(["the", "cat"], source))


def test_novelty_is_the_share_of_bigrams_that_the_document_does_not_have():
    source = CAT.split()
    assert novelty(source, source) == 0
    assert novelty(source, ["the", "cat", "sat", "down"]) == pytest.approx(1 / 3)
    assert novelty(source, ["a", "dog", "ran"]) == 1


def test_a_copy_of_the_document_has_compression_one_and_nothing_new():
    found = overlap_scores(CAT, CAT, CAT.split(), CAT.split())
    expected = {"ovl3": 1, "ovl3_characters": 1, "novelty": 0, "compression": 1, "word_ratio": 1}
    assert {name: found[name] for name in expected} == expected
    half = overlap_scores(CAT, "the cat sat", CAT.split()[:3], CAT.split())
    assert (half["compression"], half["word_ratio"]) == (2, 0.5)


def test_a_row_without_a_document_is_scored_for_itself_alone():
    alone = {"rep4", "rep4_over_human", "rep4_characters"}
    found = overlap_scores("", CAT, CAT.split(), [])
    assert {name for name, value in found.items() if not math.isnan(value)} == alone
    assert math.isnan(overlap_scores(CAT, "", [], CAT.split())["compression"])


def test_ngrams_are_in_order():
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert ngrams(["a"], 2) == []
