"""The contents of a data set that `lcm prepare` makes, its refusals and its reports."""

import argparse
import hashlib
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from stub_codec import StubCodec, load_another, use_codec

from lcm.data.manifest import open_dataset
from lcm.data.shards import Shard, load_index, read_documents, read_shard, sample_vectors
from lcm.data.verify import verify
from lcm.errors import UserError
from lcm.options import options_from
from lcm.prepare.command import add_arguments, prepare, summary
from lcm.prepare.options import PrepareOptions
from lcm.prepare.rows import split_of

BAD = [{"text": 5}, {"text": " "}, {"text": "a", "split": "dev"}, {"text": ""}]


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    use_codec(monkeypatch)


def rows(count, **more):
    return [{"id": f"d{i}", "text": f"Text {i} begins. It goes on! Does it?\n\nYes {i}.", **more} for i in range(count)]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def options(tmp_path, **more):
    return PrepareOptions(**{"input": (str(tmp_path / "a.jsonl"),), "output": str(tmp_path / "data"), **more})


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def documents(folder):
    found = [d for split in ("train", "validation", "test") for d in read_documents(folder, split)]
    return sorted(found, key=lambda d: d.number)


def test_a_document_is_its_sentences_and_the_end_of_text(tmp_path):
    row = {"id": "x", "text": "One. Two!\n\nThree", "title": "T", "source": "book", "split": "train"}
    write(tmp_path / "a.jsonl", row)
    manifest = prepare(options(tmp_path))
    (document,) = read_documents(tmp_path / "data", "train")
    assert document.sentences == ["One.", "Two!", "Three", "End of text."]
    assert (document.id, document.title, document.source, document.lang) == ("x", "T", "book", "eng_Latn")
    assert document.source_length == 0
    assert np.array_equal(document.vectors[:3], StubCodec("").encode(["One.", "Two!", "Three"]).half())
    assert manifest.concepts == 4
    assert manifest == open_dataset(tmp_path / "data")


def test_a_pair_is_its_document_the_suffix_its_summary_and_the_end_of_text(tmp_path):
    write(tmp_path / "a.jsonl", {"document": "One. Two.", "summary": "Sum it. Up!", "split": "train"})
    manifest = prepare(options(tmp_path, pairs=True))
    (document,) = read_documents(tmp_path / "data", "train")
    assert document.sentences == ["One.", "Two.", "[MODEL]:", "Sum it.", "Up!", "End of text."]
    assert document.source_length == 3
    assert manifest.pairs == 1
    assert load_index(tmp_path / "data" / "train-000000.tar")[0, 1:].tolist() == [6, 3]


def test_the_constants_are_the_same_bits_in_every_document(tmp_path):
    write(tmp_path / "a.jsonl", *({"document": r["text"], "summary": "S."} for r in rows(30)))
    manifest = prepare(options(tmp_path, pairs=True, shard_documents=7))
    found = documents(tmp_path / "data")
    assert {hashlib.sha256(d.vectors[-1].tobytes()).hexdigest() for d in found} == {manifest.codec.end_of_text}
    assert len({d.vectors[d.source_length - 1].tobytes() for d in found}) == 1


def test_documents_go_to_shards_by_input_order(tmp_path):
    write(tmp_path / "a.jsonl", *rows(40))
    manifest = prepare(options(tmp_path, shard_documents=4))
    for split in ("train", "validation", "test"):
        numbers = [[d.number for d in read_shard(tmp_path / "data" / s.name)] for s in manifest.shards(split)]
        assert [n for shard in numbers for n in shard] == [i for i in range(40) if split_of(f"d{i}") == split]
        assert all(len(shard) == 4 for shard in numbers[:-1])


def test_a_shard_is_full_when_it_has_enough_characters(tmp_path):
    write(tmp_path / "a.jsonl", *rows(10, split="train"))
    manifest = prepare(options(tmp_path, shard_characters=100))
    assert [s.documents for s in manifest.shards("train")] == [3, 3, 3, 1]  # of 43 characters each


@pytest.mark.parametrize(("bytes_", "expected"), [(1000, 100_000), (12_800_000, 200_000), (10**12, 1_000_000)])
def test_shards_are_sized_for_the_input(bytes_, expected):
    assert PrepareOptions(input=(), output="").sized_for(bytes_).shard_characters == expected
    assert PrepareOptions(input=(), output="", shard_characters=7).sized_for(bytes_).shard_characters == 7


def test_the_split_is_the_rows_own_or_follows_from_the_id(tmp_path):
    assert [split_of(id) for id in ("d0", "d1", "d9", "d24")] == [
        {"0": "validation", "1": "test"}.get(hashlib.sha1(id.encode()).hexdigest()[-1], "train")
        for id in ("d0", "d1", "d9", "d24")
    ]
    shares = [split_of(str(i)) for i in range(16_000)]
    assert shares.count("validation") == pytest.approx(1000, rel=0.1)
    assert shares.count("test") == pytest.approx(1000, rel=0.1)
    write(tmp_path / "a.jsonl", {"text": "a", "split": "test"}, {"text": "b", "split": "validation"})
    assert list(prepare(options(tmp_path)).splits) == ["validation", "test"]


def test_what_is_refused_is_counted_with_its_first_example(tmp_path):
    text = [{"text": "Good. HUGE.", "id": "big"}, {"text": "HUGE.", "id": "big2"}]
    write(tmp_path / "a.jsonl", *rows(3), *BAD, *text, *rows(3))
    manifest = prepare(options(tmp_path, shard_documents=2))
    assert {reason: (r.count, r.first) for reason, r in manifest.refused.items()} == {
        "empty": (2, "a.jsonl:5: text"),
        "vectors not finite": (2, "big"),
        "not text": (1, "a.jsonl:4: text is 5"),
        "unknown split": (1, "a.jsonl:6: 'dev', expected one of train, validation, test"),
    }
    assert list(manifest.refused) == ["empty", "vectors not finite", "not text", "unknown split"]
    assert manifest.documents == 6
    assert verify(tmp_path / "data").problems == ()


def test_a_shard_whose_documents_are_all_refused_is_not_written(tmp_path):
    write(tmp_path / "a.jsonl", *({"text": t, "split": "train"} for t in ("HUGE.", "HUGE.", "Good.", "Good.")))
    manifest = prepare(options(tmp_path, shard_documents=2))
    assert [s.name for s in manifest.shards("train")] == ["train-000001.tar"]
    assert sorted(snapshot(tmp_path / "data")) == ["manifest.json", "train-000001.index.npy", "train-000001.tar"]


@pytest.mark.parametrize(
    ("found", "more", "message"),
    [
        (BAD, {}, "no document is left: 4 refused: 2 empty (first: a.jsonl:2: text), 1 not text"),
        ([{"text": "HUGE."}], {}, "no document is left: 1 refused: 1 vectors not finite"),
        ([], {}, "the files hold no document"),
        ([{"body": "a", "key": 1}], {}, "no row has a column 'text'; only body, key; name yours by --text-column"),
        ([{"document": "a"}], {"pairs": True}, "'summary'; only document; name yours by --document-column and"),
        (rows(1), {"lang": "fra_Latn"}, "--lang=fra_Latn: not a language of codec 'mini'; it knows eng_Latn"),
    ],
)
def test_an_empty_corpus_is_one_line_and_a_corrected_command_may_follow(found, more, message, tmp_path):
    write(tmp_path / "a.jsonl", *found)
    with pytest.raises(UserError) as error:
        prepare(options(tmp_path, **more))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    write(tmp_path / "b.jsonl", *rows(3))
    prepare(options(tmp_path, input=(str(tmp_path / "b.jsonl"),)))
    assert verify(tmp_path / "data").problems == ()


@pytest.mark.parametrize("name", ["workers", "max_characters", "shard_documents"])
def test_a_senseless_number_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="expected 1 or more"):
        options(tmp_path, **{name: 0})


def test_the_normalizer_is_fitted_on_the_sentences_of_the_train_split(tmp_path):
    write(tmp_path / "a.jsonl", *rows(50))
    manifest = prepare(options(tmp_path, shard_documents=7))
    vectors = np.concatenate([d.vectors[:-1] for d in read_documents(tmp_path / "data", "train")]).astype(np.float64)
    low, middle, high = np.quantile(vectors, [0.25, 0.5, 0.75], axis=0)
    np.testing.assert_allclose(manifest.normalizer.location, middle, rtol=1e-6)
    np.testing.assert_allclose(manifest.normalizer.scale, (high - low) / 1.3489795, rtol=1e-6)


@pytest.mark.parametrize("limit", [1, 7, 50, 10_000])
def test_the_sample_is_even_over_all_shards_and_knows_no_constants(limit, tmp_path):
    write(tmp_path / "a.jsonl", *({"document": r["text"], "summary": "S.", "split": "train"} for r in rows(40)))
    manifest = prepare(options(tmp_path, pairs=True, shard_documents=7))
    all_vectors = []
    for d in read_documents(tmp_path / "data", "train"):
        all_vectors.append(np.delete(d.vectors, [d.source_length - 1, len(d.vectors) - 1], axis=0))
    expected = np.concatenate(all_vectors)
    step = -(-len(expected) // limit)
    sample = sample_vectors([Shard(tmp_path / "data", record) for record in manifest.shards("train")], 4, limit)
    assert np.array_equal(sample, expected[::step])
    assert len(sample) <= limit


def test_every_option_has_its_argument():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = parser.parse_args(["--input", "a", "b", "--output", "o", "--pairs", "--document-column", "body"])
    expected = PrepareOptions(input=("a", "b"), output="o", pairs=True, document_column="body")
    assert options_from(given, PrepareOptions) == expected
    assert {a.dest for a in parser._actions} - {"help"} == {f.name for f in fields(PrepareOptions)}


def test_the_summary_counts_by_split(tmp_path):
    write(tmp_path / "a.jsonl", *rows(3, split="train"), *rows(1, split="test"))
    text = summary(prepare(options(tmp_path)))
    assert text == "4 documents (3 train, 0 validation, 1 test), 20 concepts in 2 shards"
    assert torch.get_num_threads() == 1


def test_compiled_vectors_are_other_data_and_only_they_are_marked(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", *rows(3))
    compiled = []

    def load(name, *, device="cpu", compile_encoder=False):
        compiled.append(compile_encoder)
        return StubCodec(name)

    use_codec(monkeypatch, load)
    assert "compile" not in prepare(options(tmp_path)).options
    with pytest.raises(UserError, match="--compile not given, now True"):
        prepare(options(tmp_path, compile=True))
    assert prepare(options(tmp_path, compile=True, output=str(tmp_path / "compiled"))).options["compile"] is True
    assert compiled == [False, False, False, False, True], "here and in the worker, if one was needed"


def test_another_encoder_is_loaded_by_a_function_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr("lcm.prepare.command.load_codec", None)
    monkeypatch.setattr("lcm.prepare.worker.load_codec", None)
    write(tmp_path / "a.jsonl", *rows(3))
    manifest = prepare(options(tmp_path, codec="my-encoder"), load=load_another)
    assert (manifest.codec.name, manifest.codec.fingerprint) == ("my-encoder", "stub-2")
    assert manifest.documents == 3
