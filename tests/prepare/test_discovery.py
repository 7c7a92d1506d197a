"""Folders → input files: links are followed, hidden entries are not, and nothing is left out without a word."""

import os

import pytest
from stub_codec import use_codec

from lcm.errors import UserError
from lcm.ledger import Ledger
from lcm.prepare.command import prepare
from lcm.prepare.discovery import files_of, find_inputs
from lcm.prepare.options import PrepareOptions
from lcm.prepare.rows import Columns
from lcm.prepare.sources import Sources


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def make(tmp_path, *names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("Text one is here.")


def found(*names, **options):
    ledger = Ledger()
    files = [str(path) for path in find_inputs(names, passed=ledger, **options)]
    return files, {kind: (entry.count, entry.first) for kind, entry in ledger.entries.items()}


def test_hidden_entries_are_passed_over_and_counted_once(tmp_path):
    make(tmp_path, "a.txt", ".b.txt", ".ipynb_checkpoints/a.txt", "c/.snapshot/hourly.0/a.txt")
    hidden = {"hidden": (3, ".b.txt")}
    assert found(".") == (["a.txt"], hidden)
    assert found(".", "c/..", "./") == (["a.txt"], hidden)
    assert found(".ipynb_checkpoints", ".b.txt", "c/.snapshot") == (
        [".ipynb_checkpoints/a.txt", ".b.txt", "c/.snapshot/hourly.0/a.txt"],
        {},
    ), "a hidden name that is given is meant"


def test_links_to_folders_are_followed_without_loops_and_without_doubles(tmp_path):
    make(tmp_path, "in/z/a.txt", "far/b.txt", "far/deep/c.txt")
    for link, target in {"in/more": "../far", "in/again": "z", "in/z/up": "..", "far/back": "../in"}.items():
        (tmp_path / link).symlink_to(target)
    assert found("in") == (["in/more/b.txt", "in/more/deep/c.txt", "in/z/a.txt"], {})
    assert found("in/**/*.txt")[0] == found("in")[0] == found("in/**")[0]
    assert found("in", "far")[0] == found("in")[0]


def test_what_is_no_input_is_counted_by_kind_and_the_first_is_named(tmp_path):
    make(tmp_path, "a.txt", "b.md", "b.jsonl.bz2", "c.JSONL")
    os.mkfifo("pipe.txt")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    expected = {
        "file of an unknown kind": (2, "b.jsonl.bz2"),
        "link to nothing": (2, "gone"),
        "neither a file nor a folder": (1, "pipe.txt"),
    }
    assert found(".") == (["a.txt", "c.JSONL"], expected)
    assert found("*") == (["a.txt", "c.JSONL"], expected)
    ledger = Ledger()
    assert [path.name for path in files_of(tmp_path, "--dataset", ledger)] == [
        "a.txt",
        "b.jsonl.bz2",
        "b.md",
        "c.JSONL",
    ]
    assert {kind: entry.count for kind, entry in ledger.entries.items()} == {
        "link to nothing": 2,
        "neither a file nor a folder": 1,
    }


def test_an_input_that_is_a_link_to_nothing_is_an_error(tmp_path):
    make(tmp_path, "a.txt")
    (tmp_path / "b.txt").symlink_to("elsewhere.txt")
    for name in (".", "*", "*.txt"):
        with pytest.raises(UserError, match=r"--input=b.txt: a link to elsewhere.txt, which is not there"):
            found(name)


def test_a_pipe_is_named(tmp_path):
    os.mkfifo("pipe.txt")
    with pytest.raises(UserError, match=r"--input=pipe.txt: neither a file nor a folder"):
        found("pipe.txt")


@pytest.mark.parametrize("name", [".", "*", "**", "*/*.txt", "**/*.txt"])
def test_what_may_not_be_read_is_an_error(name, tmp_path, monkeypatch):
    make(tmp_path, "open/a.txt", "secret/b.txt")
    scandir = os.scandir  # root may read everything

    def refusing(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=r"--input=secret: permission denied; make it readable, or leave it out"):
        found(name)
    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "access", lambda path, _: "b.txt" not in str(path))
    with pytest.raises(UserError, match=r"--input=secret/b.txt: permission denied"):
        found(name)


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_folder_where_one_stands(name, tmp_path):
    make(tmp_path, "a.txt")
    with pytest.raises(UserError, match=r"--input='.*': an empty name; is a variable of the shell not set\?"):
        found("a.txt", name)


def test_recordings_beside_text_are_counted(tmp_path):
    make(tmp_path, "a.txt", "b.wav", "c.wav")
    assert found(".", audio=True) == (["a.txt"], {"recording beside text": (2, "b.wav")})


def test_globs_match_as_in_a_shell(tmp_path):
    make(tmp_path, "a/x.txt", "b/x.txt", "b/.h.txt", "b/deep/y.txt", "[c]/z.txt")
    assert found("[ab]/*.txt")[0] == ["a/x.txt", "b/x.txt"]
    assert found("b/.*.txt")[0] == ["b/.h.txt"]
    assert found(f"{tmp_path}/?/x.txt")[0] == [f"{tmp_path}/a/x.txt", f"{tmp_path}/b/x.txt"]
    assert found("**/y.txt")[0] == ["b/deep/y.txt"]
    assert found("[c]")[0] == ["[c]/z.txt"], "a name that is there is no pattern"


def test_the_manifest_holds_what_discovery_passed_over(tmp_path, monkeypatch):
    use_codec(monkeypatch)
    make(tmp_path, "in/a.txt", "in/README.md", "in/.git/x.txt")
    (tmp_path / "in" / os.fsdecode(b"b\xff.md")).touch()
    manifest = prepare(PrepareOptions(input=("in",), output="data"))
    assert {kind: (entry.count, entry.first) for kind, entry in manifest.refused.items()} == {
        "file of an unknown kind": (2, "in/README.md"),
        "hidden": (1, "in/.git"),
    }


def test_a_file_with_a_name_that_is_not_utf_8_is_read(tmp_path, monkeypatch):
    use_codec(monkeypatch)
    make(tmp_path, os.fsdecode(b"in/b\xff.txt"))
    manifest = prepare(PrepareOptions(input=("in",), output="data"))
    assert manifest.documents == 1
    assert manifest.inputs[0].path == "in/b\\udcff.txt"
    assert prepare(PrepareOptions(input=("in",), output="data")) == manifest


def test_files_of_one_name_in_several_folders_give_ids_of_their_own(tmp_path):
    make(tmp_path, "in/en/part.txt", "in/fr/part.txt", "in/fr/other.txt")
    files = find_inputs(["in"])
    assert [document.id for document in Sources(files, Columns())] == ["en/part.txt:1", "other.txt:1", "fr/part.txt:1"]
    assert [document.id for document in Sources(files[:2], Columns())] == ["part.txt:1", "other.txt:1"]
