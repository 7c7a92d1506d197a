"""Attribute binding: a bag of words fails it, a codec that keeps sentences apart passes."""

from collections import Counter

import pytest
import torch
from judged_fakes import BagOfWords, FakePublic, Perfect

from lcm.codec_lab.decoding import Coder
from lcm.codec_lab.space import binding_scores, cases


def test_the_cases_are_forty_and_a_swap_has_the_same_words():
    made = cases()
    assert len({case.original for case in made}) == len(made) == 40
    for case in made:
        assert Counter(case.original.split()) == Counter(case.swap.split())
        assert case.original != case.swap
        pairs = list(zip(case.original.split(), case.unrelated.split(), strict=True))
        changed = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
        assert len(changed) == 2, "the unrelated change takes as many places as the swap"
        assert not {word for _, word in changed} & set(case.original.split())


def test_a_bag_of_words_fails():
    codec = BagOfWords()
    found = binding_scores(Coder(codec), torch.zeros(codec.dim), None)
    assert found["cosines"]["raw"]["swap"] == pytest.approx(1)
    assert found["cosines"]["raw"]["unrelated"] < 0.9
    assert found["cosines"]["raw"]["swap_farther"] == 0
    assert found["decoded"] == {"right": 0, "confused": 1, "other": 0}


def test_a_codec_that_keeps_sentences_apart_passes():
    codec = Perfect()
    found = binding_scores(Coder(codec), torch.zeros(codec.dim), FakePublic(codec).encode)
    assert found["decoded"] == {"right": 1, "confused": 0, "other": 0}
    assert abs(found["cosines"]["raw"]["swap"]) < 0.1
    assert found["cosines"]["public"] == pytest.approx(found["cosines"]["raw"], abs=1e-5)


def test_punctuation_and_case_do_not_matter_but_words_do():
    class Says(Perfect):
        def decode(self, vectors, lang="eng_Latn", *, beam=1, progress=None):
            texts = ["nothing of it"] * len(vectors)
            texts[0] = "THE WHITE CAT, and -- the black dog!"
            texts[1] = "The whiteman and the blackwoman were the white man and the black womans."
            return texts

    found = binding_scores(Coder(Says(16)), torch.zeros(16), None)
    assert [row["outcome"] for row in found["examples"][:2]] == ["right", "other"]


def test_centring_takes_the_mean_off():
    codec = Perfect()
    plain = binding_scores(Coder(codec), torch.zeros(codec.dim), None)["cosines"]
    assert plain["raw"] == plain["centred"]
    far = binding_scores(Coder(codec), torch.full((codec.dim,), 50.0), None)["cosines"]
    assert far["raw"] == plain["raw"]
    assert far["centred"]["swap"] > 0.99
