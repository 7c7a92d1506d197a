"""The `lcm generate` command: its options, its input file, and what it prints."""

import argparse
import json
from dataclasses import fields

import forked
import pytest
from fakes import FakeCodec, reciting, write_dataset
from test_generate import STORY

import lcm.inference.command
from lcm.errors import UserError
from lcm.inference.command import add_arguments
from lcm.inference.options import GenerateOptions
from lcm.inference.pipeline import LCM
from lcm.inference.rows import read_input
from lcm.models.interface import Sampling
from lcm.options import option_name, options_from


def test_lines_of_the_input_file_keep_their_ids(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"id": "a", "text": "One."}\n\n{"text": "Two."}\n{"id": 7, "text": "Three."}\n')
    rows = read_input(tmp_path / "in.jsonl").rows
    assert [(row.id, row.text) for row in rows] == [("a", "One."), (3, "Two."), (7, "Three.")]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ('{"text": "cut', "invalid JSON"),
        ('["text"]', "not a JSON object"),
        ('{"text": " "}', "empty"),
        ('{"text": 3}', "not text"),
        ('{"text": "\\ud800"}', "not UTF-8"),
        ('{"other": "One."}', "no column 'text'"),
        ('{"id": [1], "text": "One."}', "id neither text nor a number"),
        ('{"text": "One.", "lang": 3}', "language not text"),
    ],
)
def test_a_bad_line_is_counted_by_its_kind_with_its_number_and_the_others_are_used(line, kind, tmp_path):
    (tmp_path / "in.jsonl").write_text(f'{{"text": "One."}}\n{line}\n')
    given = read_input(tmp_path / "in.jsonl")
    assert [row.text for row in given.rows] == ["One."]
    assert given.refused.entries[kind].count == 1
    assert "in.jsonl:2" in given.refused.entries[kind].first
    (tmp_path / "in.jsonl").write_text(line)
    with pytest.raises(UserError, match=f"in.jsonl: no text to continue: 1 refused: 1 {kind}"):
        read_input(tmp_path / "in.jsonl")


def run(monkeypatch, model: LCM, *words: str) -> int:
    """The command, with `model` in the place of the one in --model."""
    monkeypatch.setattr(lcm.inference.command, "load", lambda folder, codec: model)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return lcm.inference.command.run(parser.parse_args(["--model", "runs/x", *words]))


def test_text_prints_the_continuation_and_nothing_else(monkeypatch, capsys):
    assert run(monkeypatch, reciting(STORY), "--text", STORY[2]) == 0
    captured = capsys.readouterr()
    assert captured.out == "The boat came home. All were glad.\n"
    assert captured.err == ""


def test_json_prints_one_object(monkeypatch, capsys):
    run(monkeypatch, reciting(STORY), "--text", STORY[2], "--json")
    assert json.loads(capsys.readouterr().out) == {
        "id": "text", "text": "The boat came home. All were glad.", "sentences": STORY[3:],
        "nearest": None, "similarity": None, "stop": "end",
    }  # fmt: skip


def test_a_file_of_texts_becomes_a_file_of_continuations(monkeypatch, capsys, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"id": i, "text": s}) + "\n" for i, s in enumerate(STORY)))
    codec = FakeCodec()
    write_dataset(tmp_path / "data", codec, {"train": [STORY]})
    paths = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert run(monkeypatch, reciting(STORY, codec), *paths, "--decode", "both", "--bank", str(tmp_path / "data")) == 0
    assert capsys.readouterr().out == ""
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[1]["sentences"] == rows[1]["nearest"] == STORY[2:]
    assert rows[1]["similarity"] == pytest.approx([1, 1, 1], abs=1e-3)
    assert rows[1]["stop"] == "end"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--text", " "], "--text is empty"),
        (["--text", "One.", "--max-sentences", "0"], "--max-sentences=0: expected 1 or more"),
        (["--text", "One.", "--temperature", "-1"], "--temperature=-1.0: expected 0 or more"),
        (["--text", "One.", "--output", "x"], "goes with --input"),
        (["--input", "missing.jsonl"], "--input=missing.jsonl: no such file"),
        (["--input", "in.jsonl", "--output", "no/such/out.jsonl"], "its folder does not exist"),
    ],
)
def test_a_mistake_is_one_line_before_a_model_is_loaded(words, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=expected):
        run(monkeypatch, None, *words)


def test_every_sampling_option_of_the_command_line_reaches_the_model():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["--model", "x", "--text", "One.", "--seed", "3"]
    given = {
        "temperature": 0.5, "top_k": 2, "guidance": 2.5, "rescale": 0.4, "steps": 7, "sampler": "ddim",
        "initial_noise": 0.8, "epsilon_scaling": 1.01, "eta": 0.3,
    }  # fmt: skip
    for name, value in given.items():
        words += [option_name(name), str(value)]
    assert options_from(parser.parse_args([*words, "--paper"]), Sampling) == Sampling(seed=3, paper=True, **given)
    assert {field.name for field in fields(Sampling)} == {"seed", "paper", *given}


def test_every_option_of_generate_is_one_of_the_command_line():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = {
        "max_sentences": 3, "min_sentences": 2, "samples": 4, "decode": "both", "beam": 5, "task": "answer",
        "lang": "fra_Latn", "output_lang": "deu_Latn", "length": 0.1, "long": "chunks", "batch_concepts": 100,
    }  # fmt: skip
    words = [word for name, value in given.items() for word in (option_name(name), str(value))]
    args = parser.parse_args(["--model", "x", "--text", "One.", *words])
    assert options_from(args, GenerateOptions) == GenerateOptions(**given)
    assert {field.name for field in fields(GenerateOptions)} == {"sampling", *given}


def test_the_options_of_the_command_line_reach_generate(monkeypatch):
    model = reciting(STORY)
    seen = []
    monkeypatch.setattr(model, "continue_texts", lambda texts, options: seen.append((texts, options)) or [])
    with pytest.raises(ValueError, match="not enough values"):
        run(monkeypatch, model, "--text", "One.", "--beam", "3", "--seed", "7")
    assert seen == [(["One."], GenerateOptions(beam=3, sampling=Sampling(seed=7)))]


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda m: m.generate_many("Hello."), "texts='Hello.': expected a list of texts; generate takes a single one"),
        (lambda m: m.generate("Hello.", beam=True), "--beam=True: expected a whole number, found bool"),
        (lambda m: m.generate("Hello.", decode="nearest", beam=4), "--beam=4: means nothing to --decode nearest"),
        (lambda m: m.generate("Hello.", max_sentences=1, min_sentences=3), "expected at most --max-sentences=1"),
        (lambda m: m.generate("Hello.", lang="tha_Thai"), "Thai has no mark that ends a sentence"),
    ],
)  # fmt: skip
def test_the_python_api_refuses_what_it_would_misread(call, line):
    with pytest.raises(UserError) as caught:
        call(reciting(STORY))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--text", "A.", "--text", "B."], "--text: given twice, as A. and as B.; give it once"),
        (["--text", "A.", "--bank", "a", "--bank", "b"], "--bank=a b: is read by --decode nearest and both"),
        (["--input", "in.jsonl", "--part", "1/2"], "--part=1/2: goes with --output"),
        (["--input", "in.jsonl", "--json"], "--json: goes with --text"),
        (["--input", "in.jsonl", "--output", "."], "--output=.: is a folder; expected the name of a file"),
        (["--text", "A.", "--sampler", "dpm", "--eta", "1"], "--eta=1.0: means nothing to --sampler dpm"),
        (["--text", "A.", "--guidance", "inf"], "--guidance=inf: expected a finite number"),
    ],
)
def test_what_would_be_passed_over_is_refused_before_a_model_is_loaded(words, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"text": "One."}')
    with pytest.raises(UserError, match=expected):
        run(monkeypatch, None, *words)


def test_a_setting_of_another_type_or_no_choice_is_one_line(tmp_path):
    """In a process where no type checker of the tests comes first."""
    program = """
from lcm.errors import UserError
from lcm.inference.options import GenerateOptions
for given in ({"decode": "nearst"}, {"task": "answr"}, {"max_sentences": 2.5}, {"lang": ["eng_Latn"]}, {"sampling": 1}):
    try:
        GenerateOptions(**given)
    except UserError as error:
        print(error)
"""
    assert forked.printed_by(forked.python(program, tmp_path / "program"), program).splitlines() == [
        "--decode=nearst: expected codec, nearest, both; did you mean 'nearest'?",
        "--task=answr: expected continue, answer; did you mean 'answer'?",
        "--max-sentences=2.5: expected a whole number, found float",
        "--lang=['eng_Latn']: expected text, found list",
        "--sampling=1: expected Sampling, found int",
    ]
