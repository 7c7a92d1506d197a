"""The packaged codec gives the vectors and sentences that were recorded when it was trained."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lcm.codec import load_codec
from lcm.codec.codec import batches
from lcm.codec.search import beam_search, greedy
from lcm.errors import UserError

EXPECTED = Path(__file__).parent / "expected"
STORED = json.loads((EXPECTED / "expected.json").read_text(encoding="utf-8"))
SENTENCES = [row["sentence"] for row in STORED]


@pytest.fixture(scope="module")
def vectors(mini):
    return mini.encode(SENTENCES)


def close(a, b):
    """Equal to 1e-5 of the largest magnitude."""
    return (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_pieces_are_the_stored_ones(mini):
    assert mini.tokenizer.encode(SENTENCES) == [row["pieces"] for row in STORED]


def test_vectors_are_the_stored_ones(vectors):
    assert vectors.dtype == torch.float32
    assert close(vectors, load_file(EXPECTED / "expected.safetensors")["embeddings"])


def test_greedy_sentences_are_the_stored_ones(mini, vectors):
    assert mini.decode(vectors) == [row["greedy"] for row in STORED]


def test_the_decoder_writes_pieces_and_unknown_alone_within_its_positions(mini):
    assert mini.tokenizer.banned == [0, 2, *range(7992, 8000)]
    assert (mini.rules.end, mini.rules.limit) == (3, 69)
    assert mini.tokenizer.language("eng_Latn") == 7992


def test_the_order_of_the_input_is_kept(mini, vectors):
    order = torch.randperm(len(SENTENCES), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = mini.encode([SENTENCES[i] for i in order])
    assert close(shuffled, vectors[order])
    assert mini.decode(shuffled) == [STORED[i]["greedy"] for i in order]


def test_a_vector_does_not_depend_on_its_companions(mini, vectors):
    alone = torch.cat([mini.encode([sentence]) for sentence in SENTENCES[::8]])
    assert close(alone, vectors[::8])


def test_the_contents_of_the_padding_change_nothing(mini):
    row = [mini.tokenizer.language("eng_Latn"), 23, 2093, mini.tokenizer.end]
    lengths = torch.tensor([4, 9])
    padded = [torch.tensor([row + [filler] * 5, list(range(10, 19))]) for filler in (0, 3, 4000)]
    first, *others = (mini.model.encoder(pieces, lengths) for pieces in padded)
    assert all(torch.equal(first, other) for other in others)
    assert close(mini.model.encoder(padded[0][:1, :4], lengths[:1])[0], first[0])


def test_five_beams_score_no_sentence_below_greedy(mini, vectors):
    decoder, rules, prefix = mini.model.decoder, mini.rules, [3, 7992]

    def score(vector, pieces):
        tokens = torch.tensor([[*prefix, *pieces, rules.end]])
        logp = decoder.logits(decoder(tokens, decoder.memory(vector[None]))).log_softmax(-1)
        return float(logp[0, :-1].gather(1, tokens[0, 1:, None]).mean())

    noise = torch.randn(len(vectors[::4]), mini.dim, generator=torch.Generator().manual_seed(0))
    some = vectors[::4] + 0.5 * noise  # of which the decoder is not sure
    start = torch.tensor([prefix]).expand(len(some), -1)
    one, five = greedy(decoder, some, start, rules), beam_search(decoder, some, start, rules, 5)
    gains = [score(v, b) - score(v, a) for v, a, b in zip(some, one, five, strict=True)]
    assert min(gains) > -1e-5
    assert max(gains) > 0.01


def test_bf16_products_keep_norms_in_fp32_and_the_meaning(mini, vectors):
    half = load_codec("mini", device="cpu", dtype=torch.bfloat16)
    assert half.model.encoder.layers[0].ffn.inner_proj.weight.dtype == torch.bfloat16
    assert half.model.encoder.layer_norm.weight.dtype == torch.float32
    found = half.encode(SENTENCES[:16])
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, vectors[:16]).min() > 0.9995
    assert half.decode(found[:4]) == [row["greedy"] for row in STORED[:4]]


def test_a_sentence_over_the_limit_is_cut_and_reported(mini, caplog):
    long, longer = "red " * 70, "blue " * 80
    assert (mini.pieces(long), mini.fits(long)) == (70, False)
    assert mini.fits("red " * 61)
    with caplog.at_level(logging.WARNING):
        found = mini.encode(["short", long, longer])
    assert [r.getMessage().split("; ")[0] for r in caplog.records] == ["2 of 3 sentences were cut to 61 pieces"]
    assert "'red red" in caplog.text
    assert "blue" not in caplog.text
    assert close(found[1:], mini.encode(["red " * 61, "blue " * 61]))


def test_sentences_within_the_limit_are_never_reported(mini, caplog):
    mini.encode(SENTENCES)
    assert not caplog.records


def test_nothing_and_the_empty_sentence_are_legal(mini):
    assert mini.encode([]).shape == (0, 512)
    assert mini.decode(torch.empty(0, 512)) == []
    assert mini.decode(torch.empty(0, 512), beam=3) == []
    empty = mini.encode(["", "A word.", ""])
    assert torch.equal(empty[0], empty[2])
    assert empty.isfinite().all()
    assert len(mini.decode(empty[:1])) == 1


@pytest.mark.parametrize("use", ["encode", "decode", "fits"])
def test_an_unknown_language_is_named_with_the_known_ones(mini, use):
    argument = {"encode": [], "decode": torch.empty(0, 512), "fits": "A word."}[use]
    with pytest.raises(UserError, match=r"lang='fra_Latn': this codec knows eng_Latn"):
        getattr(mini, use)(argument, "fra_Latn")


def test_sentences_that_cannot_be_encoded_are_refused(mini):
    with pytest.raises(UserError, match="a list of sentences, not one string"):
        mini.encode("A word.")
    with pytest.raises(UserError, match="sentence 1 is not text"):
        mini.encode(["A word.", "half of \ud83d"])


def test_vectors_that_cannot_be_decoded_are_refused(mini, vectors):
    with pytest.raises(UserError, match=r"vectors have shape \(\d+, 511\), but codec 'mini' takes \(n, 512\)"):
        mini.decode(vectors[:, 1:])
    with pytest.raises(UserError, match="beam=0: expected 1"):
        mini.decode(vectors, beam=0)
    broken = vectors.clone()
    broken[[3, 7], [5, 0]] = torch.tensor([torch.nan, torch.inf])
    with pytest.raises(UserError, match=r"vectors\[3\] is not finite, nor are 1 others of 64"):
        mini.decode(broken)


def test_each_row_may_have_its_own_language(mini, vectors):
    assert torch.equal(mini.encode(SENTENCES[:5], ["eng_Latn"] * 5), mini.encode(SENTENCES[:5]))
    assert mini.decode(vectors[:3], ["eng_Latn"] * 3) == mini.decode(vectors[:3])
    with pytest.raises(UserError, match="2 languages for 3 rows"):
        mini.encode(SENTENCES[:3], ["eng_Latn"] * 2)
    with pytest.raises(UserError, match="lang='fra_Latn'"):
        mini.decode(vectors[:2], ["eng_Latn", "fra_Latn"])


def test_progress_counts_every_sentence_once(mini, vectors):
    encoded, decoded = [], []
    mini.encode(SENTENCES, progress=encoded.append)
    mini.decode(vectors[:9], beam=2, progress=decoded.append)
    assert (sum(encoded), sum(decoded)) == (64, 9)
    assert len(encoded) > 1


def test_the_end_of_text_is_told_from_every_other_sentence(mini, vectors):
    end = mini.encode(["End of text."])
    cosine = torch.cosine_similarity(vectors, end)
    assert [s for s, c in zip(SENTENCES, cosine, strict=True) if c >= mini.stop_threshold] == ["End of text."]
    near = mini.encode(["End of text?", "End of text", "End of the text."])
    assert torch.cosine_similarity(near, end).max() < mini.stop_threshold


def test_vectors_may_enter_a_training_step(mini):
    weight = torch.zeros(512, requires_grad=True)
    (mini.encode(["A word."]) @ weight).sum().backward()
    assert weight.grad is not None


def test_batches_hold_every_row_once_within_the_budget():
    lengths = [5, 3, 9, 3, 30, 1, 9]
    found = batches(lengths, budget=20)
    assert found == [[4], [2, 6], [0, 1, 3, 5]]
    assert batches([], budget=20) == []
