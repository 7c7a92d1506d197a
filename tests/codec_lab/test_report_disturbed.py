"""Vectors that no sentence has: the noise is what it says it is, and midpoints are between their two sentences."""

import pytest
import torch
from judged_fakes import Constant, Perfect, at, sample_of, sentences

from lcm.codec_lab.decoding import Coder, halfway, midpoint_means, under_noise
from lcm.codec_lab.sentences import drawn, noise_of
from lcm.codec_lab.space import nearest


def test_noise_has_the_given_spread_on_each_channel():
    """Channels of very different σ: the noise follows each."""
    codec = Perfect(6)
    sample = sample_of(codec, sentences(2000))
    sample.vectors[:] = sample.vectors * torch.tensor([100.0, 1, 0.01, 5, 1, 0]) + 7
    codec.known = {"x": torch.zeros(6)}
    under_noise(Coder(codec), sample, 0.5, 0)
    noise = codec.decoded[-1] - sample.vectors
    spread = sample.vectors.std(dim=0)
    torch.testing.assert_close(noise.std(dim=0), 0.5 * spread, rtol=0.06, atol=1e-9)
    assert bool((noise.mean(dim=0).abs() <= 0.05 * spread).all())


def test_levels_of_noise_differ_in_their_size_alone():
    codec = Perfect(64)
    sample = sample_of(codec, sentences(10))
    for multiple in (0.1, 1.0):
        under_noise(Coder(codec), sample, multiple, 0)
    small, large = (asked - sample.vectors for asked in codec.decoded)
    torch.testing.assert_close(10 * small, large, rtol=1e-3, atol=1e-3)


def test_a_sentence_gets_its_noise_whoever_stands_beside_it():
    texts = [s.text for s in sentences(8)]
    noise = noise_of(texts, 50, 0, "noise")
    torch.testing.assert_close(noise_of(texts[::-1], 50, 0, "noise"), noise.flip(0), rtol=0, atol=0)
    torch.testing.assert_close(noise_of(texts[3:4], 50, 0, "noise"), noise[3:4], rtol=0, atol=0)
    for other in (noise_of(texts, 50, 1, "noise"), noise_of(texts, 50, 0, "fragility")):
        assert not bool((other == noise).any())


def test_the_draw_depends_on_the_sentences_and_the_seed_alone():
    found = sentences(30)
    assert {s.text for s in drawn(found, 10, 0)} == {s.text for s in drawn(found[::-1], 10, 0)}
    assert drawn(found, 10, 0) == drawn(found, 30, 0)[:10]
    assert drawn(found, 30, 1) != drawn(found, 30, 0) != found


def test_a_codec_that_knows_only_its_sentences_decodes_one_of_the_two_halfway():
    codec = Perfect()
    sample = sample_of(codec, sentences(12))
    points = halfway(Coder(codec), sample, sample.texts, nearest(sample, 1)[0])
    found = midpoint_means(points)
    assert found["midpoints"] == len({p.places for p in points}) <= 12
    assert (found["is_end"], found["invented"], found["bleu"]) == (1, 0, pytest.approx(100))
    # It answers with one of the two, which are as far from the midpoint as the two are.
    assert found["round_trip"] == pytest.approx(1, abs=1e-5)


def test_midpoints_lie_halfway_and_mutual_neighbours_meet_once():
    codec = Perfect(2)
    sample = at([[0.0, 0.0], [0.2, 0.0], [9.0, 9.0], [9.0, 9.4]], list("abcd"))
    codec.encode(list("abcd"))
    points = halfway(Coder(codec), sample, list("abcd"), torch.tensor([[1], [0], [3], [2]]))
    assert [p.places for p in points] == [(0, 1), (2, 3)]
    torch.testing.assert_close(codec.decoded[-1], torch.tensor([[0.1, 0.0], [9.0, 9.2]]))


def test_the_round_trip_is_measured_in_distances_of_the_two():
    """The two are 1 from the midpoint; the decoded text's own vector is 3 from it."""

    class Off(Perfect):
        def encode(self, sentences, lang="eng_Latn", *, progress=None):
            return torch.tensor([[3.0, 0.0]] * len(sentences))

        def decode(self, vectors, lang="eng_Latn", *, beam=1, progress=None):
            return ["A new word"] * len(vectors)

    sample = at([[0.0, 1.0], [0.0, -1.0]], ["a one", "a two"])
    (point,) = halfway(Coder(Off(2)), sample, sample.texts, torch.tensor([[1], [0]]))
    assert point.round_trip == pytest.approx(3)
    assert not point.is_end
    assert point.invented == pytest.approx(2 / 3), "of A, new, word the two have only the first"
    assert midpoint_means([point])["closer_than_ends"] == 0


def test_one_sentence_has_no_midpoint():
    sample = sample_of(Constant(4), sentences(1))
    points = halfway(Coder(Constant(4)), sample, sample.texts, nearest(sample, 3)[0])
    assert midpoint_means(points) == {
        "midpoints": 0, "is_end": None, "bleu": None, "invented": None, "round_trip": None, "closer_than_ends": None,
    }  # fmt: skip
    assert points == []
