"""The test set: what is drawn from prepared folders and files, and what training data says about it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fakes import FakeCodec, reciting, write_dataset
from test_evaluate import STORY, TRAIN, knowing, write_rows

from lcm.codec.text import END_OF_TEXT, PROMPT_SUFFIX
from lcm.errors import UserError
from lcm.evaluation.command import EvaluateOptions, evaluate
from lcm.evaluation.examples import answer_lengths, from_file, from_folders, mean_vector, shards_of
from lcm.inference.nearest import Bank


def test_the_default_split_is_test_or_validation_and_never_train(tmp_path):
    model = knowing()
    write_dataset(tmp_path / "all", model.codec, {"train": TRAIN, "validation": [STORY], "test": [STORY[:2]]})
    write_dataset(tmp_path / "no_test", model.codec, {"train": TRAIN, "validation": [STORY]})
    write_dataset(tmp_path / "train_only", model.codec, {"train": TRAIN})
    assert from_folders([str(tmp_path / "all")], model, None, 9, 0).drawn[0].document == STORY[:2]
    assert from_folders([str(tmp_path / "all")], model, "validation", 9, 0).split == "validation"
    assert from_folders([str(tmp_path / "no_test")], model, None, 9, 0).split == "validation"
    with pytest.raises(UserError, match=r"no document in test or validation.*--split train"):
        from_folders([str(tmp_path / "train_only")], model, None, 9, 0)
    assert len(from_folders([str(tmp_path / "train_only")], model, "train", 9, 0).drawn) == 3


def test_a_limit_draws_at_random_and_the_same_each_time(tmp_path):
    model = knowing()
    write_dataset(tmp_path, model.codec, {"train": TRAIN, "test": [[f"Text {i}.", "End."] for i in range(20)]})

    def drawn(seed, limit=5):
        return [example.id for example in from_folders([str(tmp_path)], model, None, limit, seed).drawn]

    assert len(set(drawn(0))) == 5
    assert drawn(0) == drawn(0) != drawn(1)
    assert drawn(0) != [f"test {i}" for i in range(3, 8)]
    assert len(drawn(0, limit=100)) == 20
    counts = evaluate(model, EvaluateOptions(data=(str(tmp_path),), limit=5)).results["counts"]
    assert (counts["scored"], counts["failed"], counts["not_drawn"]) == (5, 0, 15)


def test_data_of_another_codec_is_refused_by_both_names(tmp_path):
    codec = FakeCodec()
    codec.fingerprint = "other"
    write_dataset(tmp_path, codec, {"test": [STORY]})
    with pytest.raises(UserError, match=r"made by codec 'fake' \(other\), expected 'fake' \(fake\)"):
        from_folders([str(tmp_path)], knowing(), None, 9, 0)


def test_a_file_is_cut_and_marked_as_prepare_would(tmp_path):
    path = write_rows(tmp_path / "f.jsonl", {"text": " ".join(STORY)}, {"document": "One. Two.", "summary": "Both."})
    document, pair = from_file(path, knowing(), 9, 0).drawn
    assert (document.sentences, document.source_length) == ([*STORY, END_OF_TEXT], 0)
    assert (pair.sentences, pair.source_length) == (["One.", "Two.", PROMPT_SUFFIX, "Both.", END_OF_TEXT], 3)
    assert (pair.document, pair.answer) == (["One.", "Two."], ["Both."])
    assert torch.equal(pair.vectors, FakeCodec().encode(pair.sentences))


def test_a_row_with_a_summary_is_a_pair_in_every_kind_of_file(tmp_path):
    row = {"document": "One. Two.", "summary": "Both.", "text": "Not this."}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "f.parquet")
    for path in (write_rows(tmp_path / "f.jsonl", row), str(tmp_path / "f.parquet")):
        (pair,) = from_file(path, knowing(), 9, 0).drawn
        assert (pair.document, pair.answer) == (["One.", "Two."], ["Both."])


def test_a_file_without_a_usable_row_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no row to score; 1 refused: 1 invalid JSON \(first: f.jsonl:1"):
        from_file(write_rows(tmp_path / "f.jsonl", "{"), knowing(), 9, 0)
    with pytest.raises(UserError, match="it is empty"):
        from_file(write_rows(tmp_path / "f.jsonl"), knowing(), 9, 0)


def test_the_mean_of_many_shards_is_that_of_their_sentences(tmp_path, monkeypatch):
    model = knowing()
    texts = [[f"Text {i}.", f"More {i}."] for i in range(30)]
    write_dataset(tmp_path, model.codec, {"train": texts})
    shards = shards_of([str(tmp_path)], model, "train")
    everything = model.codec.encode([sentence for text in texts for sentence in text])
    torch.testing.assert_close(mean_vector(shards, 32), everything.mean(dim=0), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr("lcm.evaluation.examples.MEAN_CONCEPTS", 30)  # of 90 concepts: every third document
    torch.testing.assert_close(mean_vector(shards, 32), everything.view(30, 2, 32)[::3].mean(dim=(0, 1)))


def test_statistics_of_many_shards_come_from_some_spread_over_all(tmp_path, monkeypatch):
    model = knowing()
    for i in range(6):
        write_dataset(tmp_path / str(i), model.codec, {"train": [(["Document."], ["Word."] * (i + 1))]})
    shards = shards_of([tmp_path / str(i) for i in range(6)], model, "train")
    assert answer_lengths(shards) == [1, 2, 3, 4, 5, 6]
    monkeypatch.setattr("lcm.evaluation.examples.SHARDS", 3)
    assert answer_lengths(shards) == [1, 3, 5]


def test_answer_lengths_leave_out_documents_and_markers(tmp_path):
    write_dataset(tmp_path, FakeCodec(), {"train": TRAIN})
    assert answer_lengths(shards_of([tmp_path], knowing(), "train")) == [1, 2]


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_shard_of_another_size_than_the_manifest_says_is_refused_whatever_is_drawn(split, tmp_path):
    write_dataset(tmp_path / "data", FakeCodec(), {"train": [["Once.", "Twice."]], "test": [["One.", "Two."]]})
    with (tmp_path / f"data/{split}-000000.tar").open("ab") as file:
        file.write(bytes(10_240))
    readers = {
        "test": lambda: from_folders([str(tmp_path / "data")], reciting(["Once."], FakeCodec()), None, 1, 0),
        "train": lambda: Bank.from_shards([tmp_path / "data"]),
    }
    with pytest.raises(UserError, match=rf"{split}-000000\.tar: longer than it was"):
        readers[split]()
