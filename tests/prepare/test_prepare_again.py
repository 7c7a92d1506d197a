"""A second run into a folder: a finished data set costs no work, and nothing is mixed or overwritten."""

import fcntl
import json
import os
from pathlib import Path

import pytest
from stub_codec import StubCodec, load_another, load_stub, use_codec
from test_prepare import options, rows, snapshot, write

from lcm.codec.text import RULE
from lcm.errors import UserError
from lcm.prepare import command, sharding
from lcm.prepare.command import prepare
from lcm.prepare.inputs import InputChanged, Inputs


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    use_codec(monkeypatch)


def test_a_finished_data_set_costs_no_work(tmp_path, capsys):
    write(tmp_path / "a.jsonl", *rows(5))
    first = prepare(options(tmp_path))
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "data").iterdir()}
    assert prepare(options(tmp_path, workers=3)) == first
    after = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "data").iterdir()}
    assert after == before
    assert "finished already" in capsys.readouterr().err


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, t: {"max_characters": 99}, "--max-characters 256, now 99"),
        (lambda o, t: {"pairs": True}, "--pairs False, now True"),
        (lambda o, t: write(t / "a.jsonl", *rows(6)) and {}, "other input: a.jsonl is new or has changed"),
        (lambda o, t: {"input": (*o.input, write(t / "b.jsonl", *rows(9)))}, "other input: b.jsonl is new"),
        (lambda o, t: {"input": (write(t / "c.jsonl", *rows(5)),)}, "other input: c.jsonl is new"),
        (lambda o, t: {"load": load_another}, "codec 'mini' (stub-1), now stub-2"),
    ],
)
def test_a_run_with_other_options_is_refused(change, message, finished, tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", *rows(5))
    asked = options(tmp_path)
    if finished:
        prepare(asked)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(command, "fit_normalizer", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                prepare(asked)
    before = snapshot(tmp_path / "data")
    changed = change(asked, tmp_path)
    use_codec(monkeypatch, changed.pop("load", load_stub))
    with pytest.raises(UserError) as error:
        prepare(options(tmp_path, **changed))
    assert message in str(error.value)
    assert str(tmp_path / "data") in str(error.value)
    assert snapshot(tmp_path / "data") == before


def test_another_end_of_text_is_refused_only_where_it_would_be_mixed(tmp_path, monkeypatch):
    """One codec may give other last bits on another machine."""

    class Elsewhere(StubCodec):
        def encode(self, sentences, lang="eng_Latn", *, progress=None):
            return super().encode(sentences, lang, progress=progress) * 1.001

    write(tmp_path / "a.jsonl", *rows(5))
    with monkeypatch.context() as patch:
        patch.setattr(command, "fit_normalizer", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(options(tmp_path))
    use_codec(monkeypatch, lambda name, **_: Elsewhere(name))
    with pytest.raises(UserError, match="begun with codec 'mini', which now gives another vector"):
        prepare(options(tmp_path))
    use_codec(monkeypatch)
    finished = prepare(options(tmp_path))
    use_codec(monkeypatch, lambda name, **_: Elsewhere(name))
    assert prepare(options(tmp_path)) == finished


def test_touching_or_moving_the_input_is_no_change(tmp_path):
    write(tmp_path / "a.jsonl", *rows(5))
    first = prepare(options(tmp_path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jsonl").rename(tmp_path / "sub" / "a.jsonl")
    (tmp_path / "sub" / "a.jsonl").touch()
    assert prepare(options(tmp_path, input=(str(tmp_path / "sub"),))) == first


@pytest.mark.parametrize("name", ["notes.md", "train-000000.tar", "sub"])
def test_a_folder_with_other_things_is_left_alone(name, tmp_path):
    write(tmp_path / "a.jsonl", *rows(5))
    (tmp_path / "data" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"holds other things \\({name}\\)"):
        prepare(options(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        prepare(options(tmp_path, output=str(tmp_path / "file")))


def test_two_runs_never_write_to_one_folder(tmp_path):
    write(tmp_path / "a.jsonl", *rows(5))
    (tmp_path / "data" / ".unfinished").mkdir(parents=True)
    with (tmp_path / "data" / ".unfinished" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another lcm prepare is writing there"):
            prepare(options(tmp_path))
    prepare(options(tmp_path))


def write_parts(tmp_path):
    """Three files of 12 documents each; a shard is ten of a split."""
    for name in "abc":
        write(tmp_path / f"{name}.jsonl", *({**row, "id": name + row["id"], "split": "train"} for row in rows(12)))
    return {"input": tuple(str(tmp_path / f"{name}.jsonl") for name in "abc"), "shard_documents": 4}


def changed_at(monkeypatch, number, change):
    """Call `change` once, when document `number` is dealt out."""
    full, left = sharding.Sharding._full, [change]

    def watched(self):
        count = 0
        for split in full(self):
            count += 4
            if count >= number and left:
                left.pop()()
            yield split

    monkeypatch.setattr(sharding.Sharding, "_full", watched)


def same_size_and_time(path):
    facts = path.stat()
    path.write_text(path.read_text().replace("goes on", "GOES ON"))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


CHANGES = {
    "appended": lambda path: path.open("a").write(json.dumps({"text": "One more. It is last."}) + "\n"),
    "rewritten, with the size and time of before": same_size_and_time,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "replaced": lambda path: (
        path.with_suffix(".new").write_text(path.read_text()[:400]),
        path.with_suffix(".new").replace(path),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("part", [None, "1/1"])
def test_a_file_that_changes_while_it_is_read_ends_the_job_which_then_resumes_clean(
    change, part, tmp_path, monkeypatch
):
    asked = {**write_parts(tmp_path), "part": part}
    with monkeypatch.context() as patch:
        changed_at(patch, 20, lambda: CHANGES[change](tmp_path / "b.jsonl"))
        with pytest.raises(UserError, match=r"b\.jsonl: changed while it was read; run the same command again"):
            prepare(options(tmp_path, **asked))
    names = sorted(path.name for path in (tmp_path / "data").glob("*.tar"))
    before = {path: path.stat().st_ino for path in (tmp_path / "data").glob("*.tar")}
    assert len(names) == 4, "none of bytes that the checksum does not cover"
    made = prepare(options(tmp_path, **asked))
    assert all(path.stat().st_ino == before[path] for path in sorted(before)[:3]), "a.jsonl's shards stay"
    assert made == prepare(options(tmp_path, **asked, output=str(tmp_path / "fresh")))
    assert snapshot(tmp_path / "data") == snapshot(tmp_path / "fresh")


def test_a_file_that_is_touched_while_it_is_read_has_not_changed(tmp_path, monkeypatch):
    asked = write_parts(tmp_path)
    changed_at(monkeypatch, 20, (tmp_path / "b.jsonl").touch)
    assert prepare(options(tmp_path, **asked)).documents == 36


def test_a_change_between_two_parts_ends_the_second_whatever_size_and_time_say(tmp_path):
    asked = write_parts(tmp_path)
    assert prepare(options(tmp_path, **asked, part="1/2")) is None
    before = snapshot(tmp_path / "data")
    same_size_and_time(tmp_path / "b.jsonl")
    with pytest.raises(UserError, match=r"other input: b\.jsonl is new or has changed"):
        prepare(options(tmp_path, **asked, part="2/2"))
    assert before.items() <= snapshot(tmp_path / "data").items()


def test_shards_of_a_part_that_read_the_file_as_it_was_are_made_again(tmp_path, monkeypatch):
    asked = write_parts(tmp_path)
    assert prepare(options(tmp_path, **asked, part="1/2")) is None
    with monkeypatch.context() as patch:
        changed_at(patch, 20, lambda: CHANGES["appended"](tmp_path / "b.jsonl"))
        with pytest.raises(UserError, match="changed while it was read"):
            prepare(options(tmp_path, **asked, part="2/2"))
    assert prepare(options(tmp_path, **asked, part="2/2")) is None, "shards of the other part are to be made again"
    made = prepare(options(tmp_path, **asked, part="1/2"))
    assert made == prepare(options(tmp_path, **asked, output=str(tmp_path / "fresh")))
    assert snapshot(tmp_path / "data") == snapshot(tmp_path / "fresh")


@pytest.mark.parametrize("damage", [b"", b'{"options": {', b"\xff\xfe", b"[]", b'{"format": 7}'])
@pytest.mark.parametrize("part", [None, "1/2"])
def test_an_unfinished_folder_whose_request_cannot_be_read_keeps_its_finished_shards(damage, part, tmp_path):
    asked = write_parts(tmp_path)
    assert prepare(options(tmp_path, **asked, part="1/2")) is None
    (tmp_path / "data/.unfinished/asked.json").write_bytes(damage)
    before = snapshot(tmp_path / "data")
    with pytest.raises(UserError, match=r"asked\.json: cannot be read"):
        prepare(options(tmp_path, **asked, part=part))
    assert snapshot(tmp_path / "data") == before


def test_a_damaged_note_costs_its_shard_alone(tmp_path):
    asked = write_parts(tmp_path)
    assert prepare(options(tmp_path, **asked, part="1/2")) is None
    (tmp_path / "data/.unfinished/train-000000.tar.json").write_bytes(b'{"name": "train-0')
    made = prepare(options(tmp_path, **asked))
    assert made == prepare(options(tmp_path, **asked, output=str(tmp_path / "fresh")))


@pytest.mark.parametrize("changed", range(3))
def test_any_file_that_changes_is_noticed_where_they_are_not_read_in_order(changed, tmp_path):
    paths = [Path(name) for name in write_parts(tmp_path)["input"]]
    inputs = Inputs(paths, {}, in_order=False)
    inputs.check(2)
    CHANGES["appended"](paths[changed])
    with pytest.raises(InputChanged, match=paths[changed].name) as error:
        inputs.check(2)
    assert error.value.number == changed


@pytest.mark.parametrize("part", [None, "2/2"])
def test_text_is_not_cut_by_two_rules_in_one_data_set(part, tmp_path):
    asked = write_parts(tmp_path)
    assert prepare(options(tmp_path, **asked, part="1/2")) is None
    request = tmp_path / "data/.unfinished/asked.json"
    request.write_text(request.read_text().replace(f'"rule":{RULE}', '"rule":1'))
    before = snapshot(tmp_path / "data")
    with pytest.raises(UserError, match="begun by a version of lcm that cut sentences otherwise; continue with that"):
        prepare(options(tmp_path, **asked, part=part))
    assert before.items() <= snapshot(tmp_path / "data").items()


@pytest.mark.parametrize("name", [".", "*"])
def test_what_a_killed_run_left_in_its_input_is_no_input_of_the_next(name, tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", *rows(5))
    (tmp_path / "notes.md").touch()
    monkeypatch.chdir(tmp_path)
    asked = options(tmp_path, input=(name,), output="data")
    with monkeypatch.context() as patch:
        patch.setattr(command, "fit_normalizer", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(asked)
    resumed = prepare(asked)
    assert {kind: entry.count for kind, entry in resumed.refused.items()} == {"file of an unknown kind": 1}


def test_a_recording_that_changes_after_its_turn_is_noticed(tmp_path):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"sound")
    inputs = Inputs([tmp_path / "a.wav", tmp_path / "b.wav"], {})
    inputs.check(1)
    (tmp_path / "a.wav").write_bytes(b"other")
    with pytest.raises(InputChanged, match=r"a\.wav"):
        inputs.check_recordings()
