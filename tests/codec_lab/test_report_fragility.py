"""Fragility: the paper's formula, and codecs whose fragility is known."""

import numpy as np
import pytest
import torch
from judged_fakes import Constant, FakePublic, Perfect, sample_of, sentences

from lcm.codec_lab.decoding import (
    LEVELS,
    Coder,
    fragility_examples,
    fragility_means,
    noise_scores,
    sentence_bleu,
)
from lcm.data.manifest import location_and_scale
from lcm.models.interface import Normalizer


def measured(codec, count=12, public=None):
    sample = sample_of(codec, sentences(count))
    return sample, noise_scores(Coder(codec), sample, sample.vectors, 0, public)


def test_what_no_noise_harms_is_minus_one():
    sample, found = measured(Perfect(2048))
    assert found.fragility("bleu").tolist() == pytest.approx([-1] * 12)
    told = fragility_means(found, sample)
    assert (told["bleu"], told["cosine"], told["sentences"]) == (pytest.approx(-1), None, 12)


def test_a_codec_that_always_says_the_same_scores_what_its_one_sentence_scores():
    """Whatever the noise: −E is minus the BLEU of that sentence."""
    sample, found = measured(Constant(8))
    bleu = sentence_bleu(["the old sea was calm"] * 12, sample.texts, sample.langs)
    assert found.fragility("bleu") == pytest.approx(-bleu / 100)
    assert 0 > found.fragility("bleu").min() > -1


def test_the_noise_follows_the_formula():
    """Normalized again, x_α is √(1−α) z and noise of variance α, another at each level."""
    codec = Perfect(3000)
    sample = sample_of(codec, sentences(12))
    sample.vectors[:] = sample.vectors * torch.linspace(0.1, 10, 3000) - 4
    noise_scores(Coder(codec), sample, sample.vectors, 0)
    normalizer = Normalizer(3000)
    normalizer.set(*location_and_scale(sample.vectors))
    z, noises = normalizer(sample.vectors), []
    for level, asked in zip(LEVELS, codec.decoded, strict=True):
        noise = (normalizer(asked) - (1 - level) ** 0.5 * z) / level**0.5
        assert noise.var(dim=1).numpy() == pytest.approx(np.ones(12), abs=0.12)
        assert (noise * z).mean().abs() < 0.02
        noises.append(noise)
    assert abs(np.corrcoef(noises[0].flatten(), noises[1].flatten())[0, 1]) < 0.02
    assert LEVELS == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def test_a_sentence_is_as_fragile_in_any_company():
    """Only the normalizer looks at the others, and that is fitted on what one gives it."""
    codec = Perfect(24)
    sample = sample_of(codec, sentences(30))
    all_of_them = noise_scores(Coder(codec), sample, sample.vectors, 0)
    some = sample.part([20, 3, 11])
    alone = noise_scores(Coder(codec), some, sample.vectors, 0)
    assert alone.fragility("bleu") == pytest.approx(all_of_them.fragility("bleu")[[20, 3, 11]])
    assert len(set(all_of_them.fragility("bleu").round(4))) > 10, "or nothing was compared"


def test_the_cosine_is_the_public_encoders():
    codec = Perfect(2048)
    _, found = measured(codec, public=FakePublic(codec).encode)
    assert found.fragility("cosine").tolist() == pytest.approx([-1] * 12, abs=1e-5)
    constant = Constant(512)
    public = FakePublic(constant)
    sample, found = measured(constant, public=public.encode)
    expected = -(public.encode(sample.texts) @ public.encode(["the old sea was calm"])[0])
    assert found.fragility("cosine") == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_summary_is_the_mean_whichever_way_it_is_cut():
    sample, found = measured(Perfect(24), count=60)
    told = fragility_means(found, sample)
    assert told["bleu"] == pytest.approx(-np.mean([row["bleu"] for row in told["levels"]]) / 100)
    assert sum(row["sentences"] for row in told["by_length"]) == 60
    weighted = sum(row["sentences"] * row["bleu"] for row in told["by_length"]) / 60
    assert told["bleu"] == pytest.approx(weighted)
    levels = [row["bleu"] for row in told["levels"]]
    assert levels[0] > levels[-1], "more noise leaves less"


def test_examples_are_the_extremes():
    sample, found = measured(Perfect(24), count=40)
    shown = fragility_examples(found, sample, 3)
    order = sorted(found.fragility("bleu"))
    assert [row["fragility"] for row in shown["least"]] == pytest.approx(order[:3])
    assert [row["fragility"] for row in shown["most"]] == pytest.approx(order[::-1][:3])
