"""`lcm evaluate --predictions`: texts of any system are judged by the code that judges a model's."""

import argparse
import json
from pathlib import Path

import pytest
from fakes import FakeCodec, reciting

import lcm.evaluation.command
from lcm.codec.text import PROMPT_SUFFIX
from lcm.errors import UserError
from lcm.evaluation.command import EvaluateOptions, add_arguments, evaluate
from lcm.scores import OVERLAP

STORY = ["The sea was calm.", "A boat went out.", "Then the wind rose.", "The boat came home."]
ANSWER = ["A trip at sea.", "It ended well."]
ROWS = [
    {"id": "a", "document": " ".join(STORY), "summary": " ".join(ANSWER), "prediction": "A trip at sea."},
    {"id": "b", "document": " ".join(STORY), "summary": ["A boat.", "The wind rose."], "prediction": "The wind rose."},
    {"document": " ".join(STORY), "summary": "A boat came home.", "prediction": ""},
]


@pytest.fixture(autouse=True)
def _without_a_model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lcm.evaluation.command, "load", lambda *_, **__: pytest.fail("a model was loaded"))


def write(*rows, name="f.jsonl"):
    with open(name, "w", encoding="utf-8") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return name


def judged(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert lcm.evaluation.command.run(parser.parse_args(["--output", "out", *words])) == 0
    return json.loads(Path("out/results.json").read_text(encoding="utf-8"))


def lines():
    return [json.loads(line) for line in Path("out/examples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_predictions_have_the_scores_that_the_model_had_that_wrote_them():
    rows = [
        {"id": str(i), "document": " ".join(STORY[:n]), "summary": " ".join(ANSWER[:n])} for i, n in enumerate((3, 1))
    ]
    model = reciting([*STORY, PROMPT_SUFFIX, *ANSWER], FakeCodec())
    wrote = evaluate(model, EvaluateOptions(data=(write(*rows),), bootstrap=50))
    texts = {row["id"]: " ".join(row["model"]) for row in wrote.rows if row["kind"] == "summary"}
    found = judged(
        "--predictions", write(*({**row, "prediction": texts[row["id"]]} for row in rows)), "--bootstrap", "50"
    )
    for part in ("summaries.model", "people", "rouge", "scores"):
        ours, theirs = found, wrote.results
        for name in part.split("."):
            ours, theirs = ours[name], theirs[name]
        assert ours == theirs, part
    own = [row for row in wrote.rows if row["kind"] == "summary"]
    for mine, theirs in zip(lines(), own, strict=True):
        same = ("kind", "id", "prompt", "reference", "others", "model", "lead")
        assert {name: mine[name] for name in same} == {name: theirs[name] for name in same}
        assert mine["rouge"]["model"] == theirs["rouge"]["model"]


def test_results_are_those_of_a_model_with_the_lead_control_and_people():
    found = judged("--predictions", write(*ROWS), "--bootstrap", "50")
    assert set(found["summaries"]) == {"model", "lead"}
    score = found["summaries"]["model"]["rougeL"]
    assert score["low"] <= score["value"] <= score["high"]
    assert {"rouge1", "rouge2", "rougeL", "rougeLsum", "length_ratio", *OVERLAP} == set(found["summaries"]["model"])
    assert found["counts"]["scored"] == 3
    assert [row["rouge"]["model"]["rougeL"] for row in lines()] == [pytest.approx(8 / 11), 1.0, 0.0]
    assert [row["id"] for row in lines()] == ["a", "b", "f.jsonl:3"]
    assert lines()[0]["lead"] == STORY[:3]
    assert lines()[0]["scores"]["lead"]["word_ratio"] == 3 / 4, "it is judged as three of four sentences"
    # A person is compared with the other references of her row; where there is one alone, with nobody.
    assert [row["rouge"]["people"]["rouge1"] is None for row in lines()] == [True, False, True]


def test_the_convention_is_printed_and_recorded(capsys):
    rows = [{**ROWS[0], "prediction": "A trip at sea.\nIt ended well."}]
    values = {}
    for name in ("lcm", "lighteval"):
        found = judged("--predictions", write(*rows), "--convention", name)
        assert found["rouge"]["convention"] == found["settings"]["convention"] == name
        assert f"ROUGE by the convention {name}" in capsys.readouterr().out
        assert f"Convention {name}:" in Path("out/report.html").read_text(encoding="utf-8")
        values[name] = found["summaries"]["model"]["rougeL"]["value"]
    assert values == {"lcm": 1.0, "lighteval": pytest.approx(8 / 11)}
    assert "rougeLsum" not in found["summaries"]["model"]


def test_every_row_is_judged_or_counted_with_its_reason(capsys):
    bad = [
        {**ROWS[0], "id": "c", "prediction": None}, {"id": "d", "document": "A b.", "prediction": "x"}, "no json",
        {**ROWS[0], "id": "e", "summary": ["One.", ""]}, {**ROWS[0], "id": "f", "summary": []}, ROWS[0],
        {"id": "g", "document": "A b.", "summary": "x"}, {**ROWS[0], "id": "h", "summary": [1]},
    ]  # fmt: skip
    found = judged("--predictions", write(*ROWS, *bad))
    assert (found["counts"]["scored"], found["counts"]["failed"]) == (3, 8)
    assert {kind: entry["count"] for kind, entry in found["refused"].items()} == {
        "not text": 3, "no column 'summary'": 1, "no column 'prediction'": 1, "invalid JSON": 1, "empty": 1,
        "id twice": 1,
    }  # fmt: skip
    assert capsys.readouterr().err.splitlines()[-1].startswith("lcm evaluate: 8 refused: 3 not text (first: f.jsonl:4")


def test_words_are_those_of_the_language_that_is_named():
    rows = [{"document": "東京は日本の首都です。", "summary": "東京は首都", "prediction": "東京は首都"}]
    assert judged("--predictions", write(*rows))["refused"]["reference without words for ROUGE"]["count"] == 1
    found = judged("--predictions", write(*rows), "--lang", "jpn_Jpan")
    assert (found["rouge"]["tokens"], found["summaries"]["model"]["rouge2"]["value"]) == ("characters", 1.0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "--model is missing: expected a run's folder; or --predictions"),
        (["--predictions", "g.jsonl"], "--predictions=g.jsonl: no such file"),
        (["--predictions", "e.jsonl"], "no row to judge; it is empty; expected lines of {id, document"),
        (["--predictions", "f.jsonl", "--model", "m"], "--model: goes with|--model: .*all of --predictions"),
        (["--predictions", "f.jsonl", "--limit", "3"], "--limit: goes with --model; all of --predictions are judged"),
        (["--predictions", "f.jsonl", "--temperature", "1"], "--temperature: goes with --model"),
        (["--predictions", "f.jsonl", "--lang", "english"], "--lang=english: expected a FLORES code"),
        (["--predictions", "f.jsonl", "--judge", "mi"], "--judge mi: judges next sentences"),
        (["--predictions", "f.jsonl", "--judge", "colla"], "did you mean 'cola'"),
        (["--model", "m", "--lang", "eng_Latn"], "--lang=eng_Latn: goes with --predictions"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(words, expected, tmp_path):
    write(*ROWS)
    write(name="e.jsonl")
    with pytest.raises(UserError, match=expected):
        judged(*words)
    assert not (tmp_path / "out").exists()


def test_several_references_reach_the_scores_of_a_model():
    row = {"document": " ".join(STORY[:3]), "summary": ["Nothing alike.", " ".join(ANSWER)]}
    model = reciting([*STORY, PROMPT_SUFFIX, *ANSWER], FakeCodec())
    found = evaluate(model, EvaluateOptions(data=(write(row),), bootstrap=10))
    assert found.results["summaries"]["model"]["rougeLsum"]["value"] == 1.0
    assert found.rows[0]["others"] == [" ".join(ANSWER)]
    assert found.results["people"]["rouge1"]["value"] == 0.0
