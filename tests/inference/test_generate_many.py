"""Many texts of a file: killed at any moment, by several processes, in batches of any size, the result is the same."""

import argparse
import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from fakes import reciting

import lcm.inference.command
from lcm.errors import UserError
from lcm.inference import many, resume, rows
from lcm.inference.command import add_arguments

STORY = [f"Sentence {i} of the story." for i in range(9)]
LINES = [
    *({"id": f"row {i}", "text": " ".join(STORY[: 1 + i % 5])} for i in range(11)),
    {"id": "empty", "text": " "},
    {"text": "Only a number. As its name.\u2028And a strange mark."},
]


@pytest.fixture(autouse=True)
def _small_units(monkeypatch):
    monkeypatch.setattr(rows, "UNIT", (4, 4))
    monkeypatch.setattr(resume, "PATIENCE", 5.0)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def run(monkeypatch, source, output, *words, model=None):
    model = model or reciting(STORY)
    monkeypatch.setattr(lcm.inference.command, "load", lambda folder, codec: model)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["--model", "x", "--input", str(source), "--output", str(output), *words]
    return lcm.inference.command.run(parser.parse_args(words))


@pytest.fixture
def expected(monkeypatch, source, tmp_path):
    """The file of an uninterrupted run, and its record."""
    run(monkeypatch, source, tmp_path / "expected.jsonl")
    return snapshot(tmp_path / "expected.jsonl")


def snapshot(output):
    """The bytes of the file and of its record; no other file may be there."""
    there = {path.name.removeprefix(output.name): path for path in output.parent.glob(f"{output.name}*")}
    assert set(there) == {"", ".made.json"}
    return [there[name].read_bytes() for name in sorted(there)]


def test_results_stand_in_the_order_of_the_input_whatever_was_written_first(monkeypatch, source, tmp_path, capsys):
    run(monkeypatch, source, tmp_path / "out.jsonl")
    expected = snapshot(tmp_path / "out.jsonl")
    names = [json.loads(line)["id"] for line in expected[0].splitlines()]
    assert names == [*(f"row {i}" for i in range(11)), 13]
    made = json.loads(expected[1])
    assert (made["texts"], made["refused"]["empty"]["count"]) == (12, 1)
    assert "in.jsonl:12" in made["refused"]["empty"]["first"]
    said = capsys.readouterr().err
    assert "12 of 12 texts" in said
    assert "/s" in said
    assert "1 refused: 1 empty (first:" in said


def killed_at(step, monkeypatch, source, output, *words):
    """Run until the disk is to be changed for the `step`-th time, and kill; False if it was finished before."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event, arguments):
            nonlocal seen
            writes = event == "open" and arguments[1] not in ("r", "rb", None)
            changes = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
            if (writes or event in changes) and output.name in str(arguments[0]):
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        import sys

        with suppress(BaseException):
            sys.addaudithook(count)
            os._exit(run(monkeypatch, source, output, *words))
        os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_killed_before_any_change_of_the_disk_and_run_again_no_line_is_lost_or_doubled(
    monkeypatch, source, tmp_path, expected
):
    monkeypatch.setattr(rows, "UNIT", (6, 6))
    step = 1
    while killed_at(step, monkeypatch, source, tmp_path / f"{step}.jsonl"):
        run(monkeypatch, source, tmp_path / f"{step}.jsonl")
        assert snapshot(tmp_path / f"{step}.jsonl") == expected, f"killed at change {step}"
        step += 1
    assert step > 15
    assert snapshot(tmp_path / f"{step}.jsonl") == expected


def test_killed_again_and_again_it_comes_to_its_end(monkeypatch, source, tmp_path, expected):
    monkeypatch.setattr(rows, "UNIT", (2, 2))
    lives = 1
    while killed_at(12, monkeypatch, source, tmp_path / "out.jsonl"):
        lives += 1
        assert lives < 30
    assert lives > 2
    assert snapshot(tmp_path / "out.jsonl") == expected


@pytest.mark.parametrize("parts", [["1/3", "2/3", "3/3"], ["3/3", "1/3", "2/3"], ["2/2", "1/4", "1/1"]])
def test_parts_meet_in_one_file_and_the_last_one_writes_it(parts, monkeypatch, source, tmp_path, expected, capsys):
    """Also where an array of another size goes on."""
    output = tmp_path / "out.jsonl"
    for part in parts[:-1]:
        assert run(monkeypatch, source, output, "--part", part) == 0
        assert not output.exists()
        assert f"part {part} is done, others are not" in capsys.readouterr().err
    run(monkeypatch, source, output, "--part", parts[-1])
    assert snapshot(output) == expected
    capsys.readouterr()
    run(monkeypatch, source, output, "--part", parts[0])
    assert "is finished already" in capsys.readouterr().err
    assert snapshot(output) == expected


def test_several_processes_at_once_are_one(monkeypatch, source, tmp_path, expected):
    children = []
    for part in range(1, 5):
        if not (child := os.fork()):
            with suppress(BaseException):
                os._exit(run(monkeypatch, source, tmp_path / "out.jsonl", "--part", f"{part}/4"))
            os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert snapshot(tmp_path / "out.jsonl") == expected


def test_only_what_is_missing_is_written_again(monkeypatch, source, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    run(monkeypatch, source, output, "--part", "1/2")
    model = reciting(STORY)
    run(monkeypatch, source, output, model=model)
    assert sum(size for size in model.model.batch_sizes) > 0
    assert "resuming, 8 of 12 texts are done" in capsys.readouterr().err
    first = reciting(STORY)
    run(monkeypatch, source, tmp_path / "all.jsonl", model=first)
    assert sum(model.model.batch_sizes) < sum(first.model.batch_sizes)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--max-sentences", "2"], "--max-sentences not given, now 2"),
        (["--seed", "5"], "--seed 0, now 5"),
        (["--beam", "3"], "--beam 1, now 3"),
        ("input", "another input"),
        ("model", "another model"),
    ],
)
def test_what_was_begun_is_not_gone_on_with_otherwise(finished, words, expected, monkeypatch, source, tmp_path):
    output = tmp_path / "out.jsonl"
    run(monkeypatch, source, output, *([] if finished else ["--part", "1/2"]))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path != source}
    model = None
    if words == "input":
        source.write_text(source.read_text() + json.dumps({"text": "One more."}))
        words = []
    if words == "model":
        model, words = reciting(STORY), []
        model.model.normalizer.scale[0] = 2.0
    with pytest.raises(UserError, match=f"begun with {expected}"):
        run(monkeypatch, source, output, *words, model=model)
    assert {path: path.read_bytes() for path in before} == before


def test_a_file_of_other_origin_is_not_overwritten(monkeypatch, source, tmp_path):
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"exists, and no out.jsonl.made.json says what made it"):
        run(monkeypatch, source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "mine"


def test_a_damaged_unit_is_named_and_not_merged(monkeypatch, source, tmp_path, expected):
    output = tmp_path / "out.jsonl"
    run(monkeypatch, source, output, "--part", "1/2")
    unit = tmp_path / "out.jsonl.unfinished/unit-000000.jsonl"
    lines = unit.read_text().splitlines(keepends=True)
    unit.write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"unit-000000.jsonl: damaged; delete it"):
        run(monkeypatch, source, output)
    unit.unlink()
    run(monkeypatch, source, output)
    assert snapshot(output) == expected


def test_a_part_under_way_is_left_alone(monkeypatch, source, tmp_path):
    model = reciting(STORY)
    output = tmp_path / "out.jsonl"

    def meddle(*arguments):
        with pytest.raises(UserError, match="another lcm generate is writing it"):
            run(monkeypatch, source, output)
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "continue_read", meddle)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, source, output, model=model)


def test_rows_say_their_languages(monkeypatch, tmp_path):
    lines = [
        {"text": STORY[0]},
        {"text": STORY[1], "lang": "fra_Latn"},
        {"text": STORY[2], "lang": "fra_Latn", "output_lang": "deu_Latn"},
        {"text": STORY[3], "output_lang": "xyz_Latn"},
        {"text": STORY[4], "lang": "tha_Thai"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = reciting(STORY)
    encoded, decoded = [], []
    encode, decode = model.codec.encode, model.codec.decode
    model.codec.encode = lambda sentences, lang: encoded.extend(lang) or encode(sentences)
    model.codec.decode = lambda vectors, lang, beam: decoded.extend(lang) or decode(vectors)
    output = tmp_path / "out.jsonl"
    run(monkeypatch, tmp_path / "in.jsonl", output, "--max-sentences", "2", "--output-lang", "eng_Latn", model=model)
    assert sorted(encoded) == ["eng_Latn", "fra_Latn", "fra_Latn"]
    assert sorted(decoded) == ["deu_Latn"] * 2 + ["eng_Latn"] * 4
    refused = json.loads(Path(f"{output}.made.json").read_text())["refused"]
    assert {kind: entry["count"] for kind, entry in refused.items()} == {
        "unknown language": 1, "language without stops": 1,
    }  # fmt: skip


def test_a_stream_is_written_in_order_and_says_what_it_passed_over(monkeypatch, source, capsys):
    monkeypatch.setattr(lcm.inference.command, "load", lambda folder, codec: reciting(STORY))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    lcm.inference.command.run(parser.parse_args(["--model", "x", "--input", str(source)]))
    printed = capsys.readouterr()
    assert [json.loads(line)["id"] for line in printed.out.split("\n")[:-1]] == [*(f"row {i}" for i in range(11)), 13]
    assert "1 refused: 1 empty" in printed.err


def test_the_time_left_follows_the_rate_of_this_run(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(many.time, "monotonic", lambda: now[0])
    progress = many.Progress(1000, done=400)
    now[0] += 50
    progress.add(100)
    assert str(progress) == "500 of 1,000 texts · 2.0/s · 4 min left"
