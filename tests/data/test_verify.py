"""Whatever happens to a data set, `lcm verify` names the file it happened to."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
from stub_codec import use_codec

from lcm.cli import main
from lcm.data.manifest import open_dataset
from lcm.data.shards import index_path, read_shard, write_shard
from lcm.data.verify import verify
from lcm.errors import UserError
from lcm.files import sha256
from lcm.prepare.command import prepare
from lcm.prepare.options import PrepareOptions


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    splits = ["train"] * 9 + ["test"]
    rows = [{"document": f"Text {i}. More.", "summary": "Sum.", "split": split} for i, split in enumerate(splits)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = PrepareOptions(
        input=(str(folder / "a.jsonl"),), output=str(folder / "data"), workers=1, pairs=True, shard_documents=3
    )
    with pytest.MonkeyPatch.context() as patch:
        use_codec(patch)
        prepare(options)
    return folder / "data"


@pytest.fixture
def data(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "data")


def rewrite(folder, name, change, keep_record=False):
    """Replace a shard by a changed one, and, as a wrong writer would, record it as right."""
    documents = [change(document) for document in read_shard(folder / name)]
    record = write_shard(folder / name, documents)
    if not keep_record:
        manifest = open_dataset(folder)
        shards = tuple(record if shard.name == name else shard for shard in manifest.shards("train"))
        manifest.model_copy(update={"splits": {**manifest.splits, "train": shards}}).save(folder)


def replaced(document, **changes):
    return type(document)(**{**vars(document), **changes})


def test_an_untouched_data_set_is_well(data, capsys):
    report = verify(data)
    assert report.problems == ()
    assert (report.documents, report.pairs, report.concepts, report.shards) == (10, 10, 50, 4)
    assert main(["verify", str(data)]) == 0
    assert capsys.readouterr().out == f"OK {data}: 10 documents (10 pairs), 50 concepts in 4 shards\n"


def test_a_shard_that_may_not_be_read_is_one_problem_and_the_others_are_checked(data, monkeypatch):
    def refused(path):
        if path.name == "train-000001.tar":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return sha256(path)

    monkeypatch.setattr("lcm.data.verify.sha256", refused)
    hint = "see who may read and write it: ls -l"
    line = f"{data / 'train-000001.tar'}: Permission denied ({hint}); put it right and run the same command again"
    assert verify(data).problems == (f"train-000001.tar: {line}",)


def test_a_manifest_that_is_no_text_is_named(data):
    (data / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"manifest\.json: not UTF-8 at byte 0"):
        verify(data)


def test_a_missing_index_is_no_problem(data):
    index_path(data / "train-000001.tar").unlink()
    assert verify(data).problems == ()


def flip(data):
    offset = np.load(data / "train-000001.index.npy")[1, 0]
    with (data / "train-000001.tar").open("r+b") as file:
        file.seek(offset)
        file.write(b"\x12")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (flip, "train-000001.tar: corrupt: its sha256 is not the recorded one"),
        (lambda d: os.truncate(d / "train-000001.tar", 5000), "train-000001.tar: truncated: 5,000 bytes, expected"),
        (lambda d: os.truncate(d / "train-000001.tar", 99999), "train-000001.tar: longer than recorded"),
        (lambda d: (d / "train-000001.tar").unlink(), "train-000001.tar: missing"),
        (lambda d: (d / "train-000001.tar").write_bytes(b"\1" * 10240), "train-000001.tar: damaged"),
        (lambda d: shutil.copy(d / "test-000000.index.npy", d / "train-000001.index.npy"), "index.npy does not match"),
        (lambda d: (d / "train-000001.index.npy").write_bytes(b"x"), "train-000001.index.npy does not match"),
        (
            lambda d: rewrite(d, "train-000001.tar", lambda t: replaced(t, vectors=t.vectors[:, :3].copy())),
            "train-000001.tar: document 3: 3 channels, expected 4",
        ),
        (
            lambda d: rewrite(d, "train-000001.tar", lambda t: replaced(t, vectors=t.vectors * np.float16(np.nan))),
            "train-000001.tar: document 3: a vector is not finite",
        ),
        (
            lambda d: rewrite(d, "train-000001.tar", lambda t: replaced(t, vectors=t.vectors[::-1])),
            "train-000001.tar: document 3: does not end with the vector of the end of text",
        ),
        (
            lambda d: rewrite(d, "train-000001.tar", lambda t: replaced(t, source_length=0), keep_record=True),
            "train-000001.tar: holds (3, 0, 15) documents, pairs and concepts, expected (3, 3, 15)",
        ),
    ],
)
def test_damage_is_named(damage, problem, data, capsys):
    damage(data)
    report = verify(data)
    assert any(problem in line for line in report.problems), report.problems
    assert all("train-000001" in line for line in report.problems)
    assert main(["verify", str(data)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert problem in captured.err


def test_every_broken_shard_is_named(data):
    (data / "train-000000.tar").unlink()
    (data / "test-000000.tar").unlink()
    assert verify(data).problems == ("train-000000.tar: missing", "test-000000.tar: missing")


def test_findings_for_a_program(data, capsys):
    (data / "test-000000.tar").unlink()
    assert main(["verify", str(data), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == ["test-000000.tar: missing"]
    assert found["documents"] == 10


def test_a_folder_without_a_data_set_is_one_line(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError, match="no data set there"):
        verify(tmp_path)
