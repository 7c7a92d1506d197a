"""The on-disk format: plain webdataset tars that any reader opens, and offsets that lead to the same bytes."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from lcm.codec.text import SplitterSettings
from lcm.data.manifest import (
    CodecInfo,
    InputFile,
    Manifest,
    NormalizerInfo,
    ShardRecord,
    indented,
    open_dataset,
)
from lcm.data.shards import (
    Encoded,
    Shard,
    build_index,
    index_path,
    load_index,
    read_documents,
    read_sample,
    read_shard,
    write_shard,
)
from lcm.errors import UserError
from lcm.ledger import Entry

DIM = 6


def document(number, n, source_length=0, id="a.b/c é"):
    vectors = np.random.default_rng(number).normal(size=(n, DIM)).astype(np.float16)
    return Encoded(number, id, "title", "book", "eng_Latn", [f"s{i}." for i in range(n)], source_length, vectors)


DOCUMENTS = [document(3, 1), document(4, 300, 7), document(9, 5, id="x" * 5000), document(12, 42)]


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "train-000000.tar"
    return path, write_shard(path, DOCUMENTS)


def manifest(*shards):
    return Manifest(
        codec=CodecInfo(
            name="stub", fingerprint="f", dim=DIM, lang="eng_Latn", stop_threshold=0.9, end_of_text="0" * 64
        ),
        splitter=SplitterSettings(),
        options={"pairs": False},
        inputs=(InputFile(path="a.txt", bytes=3, sha256="0" * 64),),
        refused={"empty": Entry(count=2, first="a.jsonl:7: [ 1, 2 ]\n [3]")},
        splits={"train": shards},
        normalizer=NormalizerInfo(location=(0.5,) * DIM, scale=(1.0,) * DIM),
    )


def assert_same(one, other):
    assert np.array_equal(one.vectors, other.vectors)
    assert one.vectors.dtype == np.float16
    assert {**vars(one), "vectors": None} == {**vars(other), "vectors": None}


def test_any_webdataset_reader_reads_a_shard(shard):
    samples = list(wds.WebDataset(str(shard[0]), shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == ["000000003", "000000004", "000000009", "000000012"]
    for sample, expected in zip(samples, DOCUMENTS, strict=True):
        assert np.array_equal(sample["npy"], expected.vectors)
        assert list(sample["json"]) == ["id", "sentences", "title", "source", "lang", "source_length"]
        assert sample["json"]["sentences"] == expected.sentences
        assert sample["json"]["id"] == expected.id


def test_the_record_counts_what_is_in_the_shard(shard):
    path, record = shard
    assert (record.name, record.documents, record.pairs, record.concepts) == ("train-000000.tar", 4, 1, 348)
    assert record.bytes == path.stat().st_size


def test_the_index_leads_to_every_document(shard):
    path, record = shard
    index = load_index(path)
    assert index.dtype == np.int64
    assert index[:, 1:].tolist() == [[1, 0], [300, 7], [5, 0], [42, 0]]
    for i, (offset, n, _) in enumerate(index.tolist()):
        assert np.array_equal(Shard(path.parent, record).read(offset, n, DIM), DOCUMENTS[i].vectors)
        assert_same(read_sample(path, i), DOCUMENTS[i])


def test_reading_in_order_gives_what_was_written(shard):
    path, record = shard
    manifest(record).save(path.parent)
    for read in (read_shard(path), read_documents(path.parent, "train")):
        for one, other in zip(read, DOCUMENTS, strict=True):
            assert_same(one, other)
    assert list(read_documents(path.parent, "test")) == []


def test_a_missing_index_is_made_anew_the_same(shard):
    path, _ = shard
    before = index_path(path).read_bytes()
    index_path(path).unlink()
    rebuilt = load_index(path)
    assert index_path(path).read_bytes() == before
    assert np.array_equal(rebuilt, build_index(path))


def test_a_missing_index_is_made_in_memory_in_a_read_only_folder(shard, monkeypatch):
    path, _ = shard
    index_path(path).unlink()
    monkeypatch.setattr("lcm.data.shards.atomic", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    assert len(load_index(path)) == 4
    assert not index_path(path).exists()


def test_the_bytes_depend_on_the_documents_alone(shard, tmp_path):
    path, record = shard
    (tmp_path / "other").mkdir()
    again = write_shard(tmp_path / "other" / path.name, DOCUMENTS, scratch=tmp_path)
    assert again == record
    with tarfile.open(path) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "lcm", "lcm", 0o444)}


def test_an_empty_shard_has_an_empty_index(tmp_path):
    record = write_shard(tmp_path / "train-000000.tar", [])
    assert (record.documents, record.concepts) == (0, 0)
    assert load_index(tmp_path / "train-000000.tar").shape == (0, 3)


@pytest.mark.parametrize("keep", [1.0, 0.999, 0.95, 0.9, 0.5, 0.01])
def test_a_truncated_shard_is_named(keep, shard):
    path, record = shard
    offset, n, _ = load_index(path)[-1].tolist()
    os.truncate(path, int((offset + n * DIM * 2) * keep))
    with pytest.raises(UserError, match=r"train-000000\.tar: damaged"):
        build_index(path)
    with pytest.raises(UserError, match=r"train-000000\.tar: damaged"):
        list(read_shard(path))
    if keep < 1:
        with pytest.raises(UserError, match=r"train-000000\.tar: truncated"):
            Shard(path.parent, record).read(offset, n, DIM)


def test_other_tars_and_missing_ones_are_named(tmp_path):
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(__file__, "a.py")
    with pytest.raises(UserError, match=r"other\.tar: damaged"):
        build_index(tmp_path / "other.tar")
    with pytest.raises(UserError, match=r"no\.tar: missing"):
        build_index(tmp_path / "no.tar")
    (tmp_path / "other.index.npy").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"other\.index\.npy: not an index"):
        load_index(tmp_path / "other.tar")


def test_a_manifest_comes_back_as_it_was(shard):
    path, record = shard
    saved = manifest(record)
    saved.save(path.parent)
    assert open_dataset(path.parent) == saved
    assert saved.shards("train") == (record,)
    assert saved.shards("test") == ()
    assert (saved.documents, saved.pairs, saved.concepts) == (4, 1, 348)


def test_a_manifest_can_be_read_by_people():
    text = indented({"numbers": [1.5, -2e-07, 3], "text": "[\n 1, 2\n]", "records": [{"a": [0.5]}]})
    assert '"numbers": [1.5, -2e-07, 3]' in text
    assert json.loads(text)["text"] == "[\n 1, 2\n]"
    assert json.loads(text)["records"] == [{"a": [0.5]}]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no data set there"),
        ("{", "not valid JSON"),
        ("[]", "format None, but this version of lcm reads format 1"),
        ('{"format": 2}', "format 2, but this version of lcm reads format 1"),
        ('{"format": 1, "colour": "red"}', "prepare the data set again"),
    ],
)
def test_an_unusable_manifest_is_one_line(content, expected, tmp_path):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=expected) as error:
        open_dataset(tmp_path)
    assert "\n" not in str(error.value)


def test_an_unfinished_folder_says_how_to_resume(tmp_path):
    (tmp_path / ".unfinished").mkdir()
    with pytest.raises(UserError, match="run the same lcm prepare command again"):
        open_dataset(tmp_path)


def test_records_never_change():
    record = ShardRecord(name="a", documents=1, pairs=0, concepts=2, bytes=3, sha256="")
    with pytest.raises(ValueError, match="frozen"):
        record.documents = 2
    assert Path(record.name) == Path("a")


@pytest.mark.parametrize("documents", [0, 1, 4, 12_345])
def test_an_index_is_what_numpy_reads(documents, tmp_path, monkeypatch):
    """Indexes that we would not write are read by numpy's own reader."""
    index = np.random.default_rng(0).integers(0, 2**40, (documents, 3))
    path = tmp_path / "train-000000.tar"
    np.save(index_path(path), np.asfortranarray(index))
    assert np.array_equal(load_index(path), index)
    np.save(index_path(path), index)
    monkeypatch.setattr(np, "load", None)
    assert np.array_equal(load_index(path), index)


def test_a_truncated_index_is_one_line(shard):
    path = index_path(shard[0])
    whole = path.read_bytes()
    for length in (0, 100, 128, len(whole) - 24, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not an index; delete it"):
            load_index(shard[0])
