"""A second run into a folder: a finished data set costs no work, and nothing is mixed or overwritten."""

import fcntl

import pytest
from stub_codec import StubCodec, load_another, load_stub, use_codec
from test_prepare import options, rows, snapshot, write

from lcm.errors import UserError
from lcm.prepare import command
from lcm.prepare.command import prepare


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
