"""Nearest real sentences: an exact search in blocks, by directions from the mean."""

import numpy as np
import pytest
import torch
from fakes import FakeCodec, write_dataset

from lcm.codec.text import END_OF_TEXT, PROMPT_SUFFIX
from lcm.errors import UserError
from lcm.inference import nearest
from lcm.inference.nearest import Bank

NAMES = [f"sentence {i}" for i in range(50)]


def vectors_off_centre(rows=50, dim=16, seed=0):
    torch.manual_seed(seed)
    return torch.randn(rows, dim) + 4.0


def plain_search(wanted, vectors, k):
    """One cosine at a time."""
    mean = vectors.mean(dim=0)
    rows = []
    for vector in wanted:
        cosines = torch.stack([torch.cosine_similarity(vector - mean, v - mean, dim=0) for v in vectors])
        rows.append(cosines.topk(k))
    return torch.stack([r.indices for r in rows]), torch.stack([r.values for r in rows])


@pytest.mark.parametrize("block", [1, 7, 64])
def test_a_search_in_blocks_finds_what_comparing_one_by_one_finds(block, monkeypatch):
    monkeypatch.setattr(nearest, "BLOCK", block)
    monkeypatch.setattr(nearest, "QUERIES", 3)
    vectors, wanted = vectors_off_centre(), vectors_off_centre(rows=8, seed=1)
    sentences, similarity = Bank(NAMES, vectors).nearest(wanted, k=4)
    places, cosines = plain_search(wanted, vectors, 4)
    assert sentences == [[NAMES[i] for i in row] for row in places.tolist()]
    torch.testing.assert_close(similarity, cosines, rtol=0, atol=2e-3)


def test_a_sentence_of_the_bank_is_its_own_nearest():
    vectors = vectors_off_centre()
    sentences, similarity = Bank(NAMES, vectors).nearest(vectors)
    assert [row[0] for row in sentences] == NAMES
    assert similarity.min() > 0.999
    assert similarity.max() <= 1


def test_a_prediction_that_hedges_still_finds_its_own_direction():
    """Pulled nine tenths of the way to the mean: the plain cosine would answer with the most average sentence."""
    vectors = vectors_off_centre()
    hedged = torch.lerp(vectors, vectors.mean(dim=0), 0.9)
    sentences, _ = Bank(NAMES, vectors).nearest(hedged)
    assert [row[0] for row in sentences] == NAMES


def test_the_bank_does_not_depend_on_where_the_space_has_its_origin():
    vectors, wanted = vectors_off_centre(), vectors_off_centre(rows=8, seed=1)
    here, there = Bank(NAMES, vectors).nearest(wanted), Bank(NAMES, vectors - 9.0).nearest(wanted - 9.0)
    assert here[0] == there[0]
    torch.testing.assert_close(here[1], there[1], rtol=0, atol=2e-3)


def test_fewer_sentences_than_neighbours_are_all_of_them():
    sentences, similarity = Bank(NAMES[:2], vectors_off_centre()[:2]).nearest(vectors_off_centre()[:1], k=5)
    assert sorted(sentences[0]) == NAMES[:2]
    assert similarity.shape == (1, 2)


def test_no_queries_have_no_neighbours():
    sentences, similarity = Bank(NAMES, vectors_off_centre()).nearest(torch.zeros(0, 16))
    assert (sentences, similarity.shape) == ([], (0, 1))


@pytest.fixture
def folder(tmp_path):
    texts = {
        "train": [["One.", "Two.", "One."], (["Three.", "Two."], ["Four."])],
        "test": [["Five."]],
    }
    write_dataset(tmp_path / "data", FakeCodec(), texts)
    return tmp_path / "data"


def test_a_bank_holds_every_sentence_of_the_split_once_and_no_marker(folder):
    assert Bank.from_shards([folder]).sentences == ["One.", "Two.", "Three.", "Four."]
    assert Bank.from_shards([folder], split="test").sentences == ["Five."]
    assert Bank.from_shards([folder, folder]).sentences == ["One.", "Two.", "Three.", "Four."]
    codec = FakeCodec()
    sentences, _ = Bank.from_shards([folder]).nearest(codec.encode([END_OF_TEXT, PROMPT_SUFFIX, "Four."]))
    assert {END_OF_TEXT, PROMPT_SUFFIX}.isdisjoint(s for row in sentences for s in row)
    assert sentences[2] == ["Four."]


def test_a_sentence_that_comes_again_keeps_its_first_vector(folder, tmp_path, monkeypatch):
    """In another language a sentence has another vector."""
    encode = FakeCodec.encode
    monkeypatch.setattr(FakeCodec, "encode", lambda self, sentences, lang="": -encode(self, sentences))
    write_dataset(tmp_path / "other", FakeCodec(), {"train": [["Two.", "Six.", "Seven."]]})
    both, first = Bank.from_shards([folder, tmp_path / "other"]), Bank.from_shards([folder])
    assert both.sentences == [*first.sentences, "Six.", "Seven."]
    sentences, _ = both.nearest(encode(FakeCodec(), ["Two."]))
    assert sentences == [["Two."]]


def test_a_bank_keeps_a_sentence_without_the_document_around_it(folder, monkeypatch):
    stack, kept = np.stack, []
    monkeypatch.setattr(nearest.np, "stack", lambda vectors: kept.extend(vectors) or stack(vectors))
    Bank.from_shards([folder])
    assert kept
    assert all(vector.base is None for vector in kept), "a view keeps all of its document in memory"


def test_a_limit_is_announced_on_stderr(folder, capsys):
    assert Bank.from_shards([folder], limit=3).sentences == ["One.", "Two.", "Three."]
    assert "first 3 distinct sentences" in capsys.readouterr().err
    assert len(Bank.from_shards([folder], limit=4).sentences) == 4
    assert capsys.readouterr().err == ""


def test_a_bank_of_nothing_is_one_line(folder, tmp_path):
    with pytest.raises(UserError, match="no sentences in its validation split"):
        Bank.from_shards([folder], split="validation")
    with pytest.raises(UserError, match="no data set"):
        Bank.from_shards([tmp_path / "nowhere"])


def test_another_codecs_folder_is_refused_by_name(folder):
    with pytest.raises(UserError, match=r"made by codec 'fake' \(fake\), expected abc"):
        Bank.from_shards([folder], codec="abc")
