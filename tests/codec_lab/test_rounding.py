"""Rounded vectors for a decoder: how many codebooks, raw space in and out, and codebooks that exist."""

import pytest
import torch
from tiny_codec import settings_for

from lcm.codec import load_codec
from lcm.codec_lab import training
from lcm.codec_lab.terms import Rounding
from lcm.errors import UserError
from lcm.models.interface import Normalizer
from lcm.models.quantizer import QuantizerRecord, ResidualQuantizer, load_quantizer, save_quantizer


def halving(codebooks, location=0.0, scale=1.0):
    """Codebook k has 0 and 2^-k: the more of them, the closer to any number in [0, 2)."""
    quantizer, normalizer = ResidualQuantizer(codebooks, 2, 1), Normalizer(1)
    quantizer.set(torch.tensor([[[0.0], [2.0**-k]] for k in range(codebooks)]))
    normalizer.set(torch.tensor([location]), torch.tensor([scale]))
    return Rounding(quantizer, QuantizerRecord("mini", "abc", "normalised", normalizer))


def test_vectors_are_rounded_behind_the_normalizer():
    assert halving(3, location=10.0, scale=4.0)(torch.tensor([[14.0], [16.1]])).tolist() == [[14.0], [16.0]]


def test_three_in_ten_vectors_are_rounded_by_two_thirds_of_the_codebooks_or_more(monkeypatch):
    """Paper §2.3.5: of 64 codebooks 43 to 64."""
    torch.manual_seed(0)
    depths = []
    monkeypatch.setattr(Rounding, "forward", lambda self, vectors, k: depths.append(k) or vectors)
    halving(64).in_training(torch.zeros(20_000, 1))
    counts = torch.bincount(depths[0], minlength=65)
    assert counts[:43].sum() == 0
    assert len(counts) == 65
    assert counts[43:64].min() > 0.7 * 20_000 * 0.3 / 22
    assert counts[43:64].sum() / 20_000 == pytest.approx(0.3 * 21 / 22, abs=0.01)
    for codebooks, least in ((1, 1), (2, 2), (3, 2), (4, 3)):
        halving(codebooks).in_training(torch.zeros(500, 1))
        assert set(depths[-1].tolist()) == set(range(least, codebooks + 1))


def test_validation_rounds_by_all_codebooks(start, tmp_path, monkeypatch):
    seen = []
    forward = Rounding.forward
    monkeypatch.setattr(Rounding, "forward", lambda self, v, k=None: seen.append(k is None) or forward(self, v, k))
    run(start, tmp_path, "terms.codebooks=2", "terms.units=8")
    assert {True, False} == set(seen)


def run(start, folder, *terms):
    settings = settings_for(
        folder, f"start={start}", "freeze=encoder", "terms.noise=0", "limit.steps=2", "trainer.validate_every=2", *terms
    )
    return training.train_codec(settings)


def test_a_decoder_is_tuned_to_codebooks_that_exist(start, tmp_path):
    dim = load_codec(start).dim
    quantizer, normalizer = ResidualQuantizer(3, 4, dim), Normalizer(dim)
    quantizer.set(torch.randn(3, 4, dim, generator=torch.Generator().manual_seed(0)))
    path = tmp_path / "q.safetensors"
    save_quantizer(path, quantizer, QuantizerRecord("mine", load_codec(start).fingerprint, "raw", normalizer))
    run(start, tmp_path, f"terms.quantizer={path}")
    written, record = load_quantizer(tmp_path / "run" / training.CODEBOOKS)
    assert torch.equal(written.codebooks, quantizer.codebooks)
    assert (record.codec, record.space) == ("mine", "raw")


def test_codebooks_of_another_codec_are_refused(start, tmp_path):
    path = tmp_path / "q.safetensors"
    save_quantizer(path, halving(2).quantizer, halving(2).record)
    with pytest.raises(UserError, match=r"terms.quantizer=.*fingerprint abc.* start from that codec"):
        run(start, tmp_path, f"terms.quantizer={path}")


def test_fitted_codebooks_remember_their_codec(start, tmp_path):
    run(start, tmp_path, "terms.codebooks=2", "terms.units=8")
    quantizer, record = load_quantizer(tmp_path / "run" / training.CODEBOOKS)
    assert quantizer.codebooks.shape == (2, 8, load_codec(start).dim)
    assert record.fingerprint == load_codec(start).fingerprint


def test_more_units_than_sentences_are_refused(start, tmp_path):
    with pytest.raises(UserError, match=r"terms.units=9999, but there are only"):
        run(start, tmp_path, "terms.codebooks=1", "terms.units=9999")
