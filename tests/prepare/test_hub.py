"""Hugging Face data sets as input: a folder in any of the library's forms, without a network; the hub's by commit."""

import json
import socket
import sys
from types import SimpleNamespace

import pytest
from stub_codec import InlinePool, use_codec

from lcm.data.manifest import DatasetInfo
from lcm.data.shards import read_documents
from lcm.data.verify import verify
from lcm.errors import UserError
from lcm.prepare import hub
from lcm.prepare.command import prepare
from lcm.prepare.hub import DatasetRows
from lcm.prepare.options import PrepareOptions
from lcm.prepare.rows import Document, Refused

try:
    import datasets
except ImportError:  # then none of these tests is run
    datasets = None

pytestmark = pytest.mark.needs("datasets")

ROWS = [{"id": f"d{i}", "body": f"Text {i} begins. It goes on!", "number": i, "split": "train"} for i in range(20)]


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """No processes, no network, no cache but the test's own."""

    def refuse(*_):
        raise OSError("asked the network")

    use_codec(monkeypatch)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def jsonl(folder):
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "test.jsonl").write_text(json.dumps({**ROWS[0], "id": "t"}) + "\n")


def parquet(folder):
    for part in range(2):
        table = datasets.Dataset.from_list(ROWS[part * 10 : part * 10 + 10])
        table.to_parquet(folder / f"train-0000{part}-of-00002.parquet")
    datasets.Dataset.from_list([{**ROWS[0], "id": "t"}]).to_parquet(folder / "test-00000-of-00001.parquet")


def saved(folder):
    datasets.Dataset.from_list(ROWS).save_to_disk(folder)


def saved_with_splits(folder):
    splits = {"train": ROWS, "test": [{**ROWS[0], "id": "t"}]}
    datasets.DatasetDict({s: datasets.Dataset.from_list(rows) for s, rows in splits.items()}).save_to_disk(folder)


FORMS = [jsonl, parquet, saved, saved_with_splits]


def options(folder, tmp_path, **more):
    return PrepareOptions(**{"dataset": str(folder), "output": str(tmp_path / "data"), "text_column": "body", **more})


def folder_of(tmp_path, form):
    folder = tmp_path / "corpus"
    folder.mkdir()
    form(folder)
    return folder


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_rows_come_in_the_data_sets_order_from_every_form(form, streaming, tmp_path):
    folder = folder_of(tmp_path, form)
    rows = DatasetRows(options(folder, tmp_path, streaming=streaming, id_column="none", lang="fra_Latn"))
    assert list(rows) == [
        Document(f"corpus:{i + 1}", row["body"], "", "corpus", "fra_Latn", "train") for i, row in enumerate(ROWS)
    ]
    assert set(rows.columns_seen) == {"id", "body", "number", "split"}
    assert 0 <= rows.bytes_read <= rows.total_bytes


@pytest.mark.parametrize("form", FORMS[:2])
def test_the_shards_are_those_of_the_same_rows_in_files(form, tmp_path):
    folder = folder_of(tmp_path, form)
    manifest = prepare(options(folder, tmp_path, shard_documents=3))
    assert manifest.dataset == DatasetInfo(name=str(folder), config="", split="train", commit="")
    assert [f.path for f in manifest.inputs] == sorted(map(str, folder.iterdir()))
    assert "source" not in manifest.options
    assert verify(tmp_path / "data").problems == ()
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"source": "corpus", **row}) + "\n" for row in ROWS))
    files = {"dataset": None, "input": (str(tmp_path / "corpus.jsonl"),), "output": str(tmp_path / "files")}
    prepare(options(folder, tmp_path, **files, shard_documents=3))
    for name, content in snapshot(tmp_path / "files").items():
        assert name == "manifest.json" or content == (tmp_path / "data" / name).read_bytes()


def test_a_split_a_bound_and_bad_rows_are_as_with_files(tmp_path):
    folder = folder_of(tmp_path, saved_with_splits)
    assert prepare(options(folder, tmp_path, dataset_split="test")).documents == 1
    other = options(folder, tmp_path, output=str(tmp_path / "other"), drop_above=("number=4",))
    manifest = prepare(other)
    assert manifest.documents == 5
    assert manifest.refused["number above 4"].first == "corpus:6: 5"
    datasets.Dataset.from_list([{"text": None}, {"text": "T."}]).save_to_disk(tmp_path / "bad")
    first, second = DatasetRows(options(tmp_path / "bad", tmp_path, text_column="text"))
    assert first == Refused("not text", "bad:1: text is None")
    assert second.text == "T."


@pytest.mark.parametrize("done", range(4))
def test_killed_after_any_shard_it_continues_to_the_same_bytes(done, tmp_path, monkeypatch):
    folder = folder_of(tmp_path, parquet)
    whole = options(folder, tmp_path, output=str(tmp_path / "whole"), shard_documents=5)
    prepare(whole)
    made = []

    class Dying(InlinePool):
        def run(self, tasks):
            for task in tasks:
                if len(made) == done:
                    raise KeyboardInterrupt
                made.append(task)
                yield from super().run([task])

    use_codec(monkeypatch, pool=Dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(options(folder, tmp_path, shard_documents=5))
    use_codec(monkeypatch)
    prepare(options(folder, tmp_path, shard_documents=5))
    assert snapshot(tmp_path / "data") == snapshot(tmp_path / "whole")


def test_another_data_set_is_refused(tmp_path):
    folder = folder_of(tmp_path, jsonl)
    prepare(options(folder, tmp_path))
    with pytest.raises(UserError, match=r"made with data set .*corpus train, now .*corpus test"):
        prepare(options(folder, tmp_path, dataset_split="test"))
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(UserError, match=r"other input: train.jsonl is new or has changed"):
        prepare(options(folder, tmp_path))


@pytest.mark.parametrize("form", FORMS)
def test_a_split_or_column_that_is_not_there_is_one_line(form, tmp_path):
    folder = folder_of(tmp_path, form)
    if form is not saved:
        with pytest.raises(UserError, match=r"--dataset-split=dev") as error:
            prepare(options(folder, tmp_path, dataset_split="dev"))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"no row has a column 'text'; only .*body.*; name yours by --text-column"):
        prepare(options(folder, tmp_path, text_column="text"))


def test_user_errors_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--dataset=no/such: no folder of that name here, and the hub gives none"):
        prepare(options("no/such", tmp_path))
    with pytest.raises(UserError, match="is a folder, which has no revisions"):
        DatasetRows(options(tmp_path, tmp_path, revision="main"))
    with pytest.raises(UserError, match=r"either files .* or a data set, not both"):
        options("x", tmp_path, input=("a.txt",))
    with pytest.raises(UserError, match="--input: expected files, folders or globs; or name a data set by --dataset"):
        prepare(PrepareOptions(output=str(tmp_path / "data")))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'lcm-train\[data\]'"):
        DatasetRows(options(tmp_path, tmp_path))


def test_the_hubs_data_set_is_read_at_the_commit_that_the_manifest_names(tmp_path, monkeypatch):
    asked = []
    commit = {"main": "c1", "v2": "c2"}

    class Api:
        def dataset_info(self, name, revision):
            return SimpleNamespace(sha=commit[revision or "main"])

    def load_dataset(*args, **options):
        asked.append((args, options))
        return datasets.Dataset.from_list(ROWS).to_iterable_dataset()

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    manifest = prepare(options("some/set", tmp_path, dataset_config="en"))
    assert asked == [(("some/set", "en"), {"split": "train", "revision": "c1", "streaming": True})]
    assert manifest.dataset == DatasetInfo(name="some/set", config="en", split="train", commit="c1")
    assert manifest.inputs == ()
    assert [d.id for d in read_documents(tmp_path / "data", "train")] == [row["id"] for row in ROWS]
    with pytest.raises(UserError, match="made with data set some/set en train c1, now some/set en train c2"):
        prepare(options("some/set", tmp_path, dataset_config="en", revision="v2"))
    commit["main"] = "c9"
    with pytest.raises(UserError, match="now some/set en train c9"):
        prepare(options("some/set", tmp_path, dataset_config="en"))


def test_an_error_while_reading_says_that_the_same_command_continues(tmp_path, monkeypatch):
    def rows():
        yield ROWS[0]
        raise ConnectionError("the line is dead\nand more")

    class Broken:
        info, column_names = SimpleNamespace(splits=None), None

        def __iter__(self):
            return rows()

    monkeypatch.setattr(hub, "_commit", lambda *_: "c")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Broken())
    with pytest.raises(UserError, match="the line is dead; put it right and run the same command again: it continues"):
        prepare(options("some/set", tmp_path))


@pytest.mark.parametrize("streaming", [True, False])
def test_links_to_folders_are_followed_hidden_ones_are_not_and_what_is_not_read_is_counted(streaming, tmp_path):
    folder = tmp_path / "corpus"
    for name in ("corpus/a", "corpus/.hidden/b", "corpus/sub/c", "far/d", "corpus/.e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"body": name}) + "\n")
    (folder / "more").symlink_to("../far")
    (folder / "again").symlink_to("sub")
    (folder / "table.csv").write_text("body\nnot read")
    rows = DatasetRows(options(folder, tmp_path, streaming=streaming))
    assert sorted(row.text for row in rows) == ["corpus/a", "corpus/sub/c", "far/d"]
    assert [str(f.relative_to(folder)) for f in rows.files] == ["a.jsonl", "more/d.jsonl", "sub/c.jsonl", "table.csv"]
    assert {kind: (entry.count, entry.first) for kind, entry in rows.passed.entries.items()} == {
        "hidden": (2, str(folder / ".e.jsonl")),
        "file of an unknown kind": (1, str(folder / "table.csv")),
    }


def test_an_output_inside_the_data_set_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": "Some text."}) + "\n")
    with pytest.raises(UserError, match="data: lies in --dataset="):
        prepare(options(tmp_path, tmp_path))
