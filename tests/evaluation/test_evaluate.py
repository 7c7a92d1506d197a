"""`lcm evaluate` from data to results.json: the test set, its counts, and the scores of the controls."""

import argparse
import json
from dataclasses import fields
from pathlib import Path

import pytest
from fakes import FakeCodec, reciting, write_dataset

import lcm.evaluation.command
from lcm.codec.text import PROMPT_SUFFIX
from lcm.errors import UserError
from lcm.evaluation.command import EvaluateOptions, add_arguments, evaluate
from lcm.evaluation.judging import Panel
from lcm.evaluation.report import headline
from lcm.evaluation.scoring import METRICS
from lcm.evaluation.summaries import Lengths
from lcm.ledger import Ledger
from lcm.models.interface import Sampling
from lcm.options import option_name
from lcm.scores import OVERLAP, Row

STORY = ["The sea was calm.", "A boat went out.", "Then the wind rose.", "The boat came home."]
ANSWER = ["A trip at sea.", "It ended well."]
TRAIN = [
    ["Once.", "Twice.", "Thrice."],
    (["Long document.", "Second sentence."], ["Short."]),
    (["More."], ["One.", "Two."]),
]


def knowing(codec=None, **settings):
    """A model that knows the story and the answer."""
    return reciting([*STORY, PROMPT_SUFFIX, *ANSWER], codec or FakeCodec(), **settings)


def write_rows(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def folder(tmp_path):
    texts = {
        "train": TRAIN,
        "validation": [["Only here.", "In validation."]],
        "test": [STORY, (STORY[:3], ANSWER), (["Another.", "Text."], ANSWER), ["Alone."]],
    }
    write_dataset(tmp_path / "data", FakeCodec(), texts)
    return str(tmp_path / "data")


def test_results_hold_every_documented_score(folder):
    results = evaluate(knowing(), EvaluateOptions(data=(folder,))).results
    assert set(results["teacher_forced"]) == set(METRICS)
    assert set(results["controls"]) == {"mean", "previous"}
    assert set(results["summaries"]) == {"model", "nearest", "source", "lead", "roundtrip"}
    for scores in results["summaries"].values():
        assert set(scores) == {"rouge1", "rouge2", "rougeL", "rougeLsum", "length_ratio", *OVERLAP}
        assert scores["rougeL"]["low"] <= scores["rougeL"]["value"] <= scores["rougeL"]["high"]
    assert results["counts"]["scored"] == 4
    assert results["counts"]["failed"] == 0
    json.dumps(results, allow_nan=False)


def test_a_model_that_knows_every_text_scores_perfectly(tmp_path):
    write_dataset(tmp_path, FakeCodec(), {"train": TRAIN, "test": [STORY, (["Another.", "Text."], ANSWER)]})
    results = evaluate(knowing(), EvaluateOptions(data=(str(tmp_path),))).results
    assert results["teacher_forced"] == dict.fromkeys(METRICS, 0) | {"contrastive_accuracy": 1, "par": pytest.approx(1)}
    assert results["summaries"]["model"]["rougeLsum"]["value"] == 1
    assert results["summaries"]["model"]["length_ratio"] == 1
    assert results["summaries"]["roundtrip"]["rougeL"]["value"] == 1


def test_the_controls_are_the_training_mean_and_the_sentence_before(folder):
    codec = FakeCodec()
    results = evaluate(knowing(codec), EvaluateOptions(data=(folder,))).results
    trained = ["Once.", "Twice.", "Thrice.", "Long document.", "Second sentence.", PROMPT_SUFFIX, "Short."]
    trained += ["More.", PROMPT_SUFFIX, "One.", "Two."]
    mean = codec.encode(trained).mean(dim=0)
    truth = codec.encode([*STORY[1:], *ANSWER, *ANSWER])
    before = codec.encode([*STORY[:3], PROMPT_SUFFIX, ANSWER[0], PROMPT_SUFFIX, ANSWER[0]])
    assert results["controls"]["mean"]["l2"] == pytest.approx(float((truth - mean).norm(dim=1).mean()), rel=1e-4)
    assert results["controls"]["previous"]["l2"] == pytest.approx(float((truth - before).norm(dim=1).mean()), rel=1e-4)


def test_the_lead_control_copies_as_much_as_training_summaries_are_long(folder):
    rows = evaluate(knowing(), EvaluateOptions(data=(folder,))).rows
    summaries = [row for row in rows if row["kind"] == "summary"]
    assert [row["lead"] for row in summaries] == [STORY[:1], ["Another."]]  # training summaries: 1 and 2, median 1
    assert [row["model"] for row in summaries] == [row["reference"] for row in summaries] == [ANSWER, ANSWER]
    assert [row["prompt"] for row in summaries] == [STORY[:3], ["Another.", "Text."]]


def test_summary_lengths_come_from_training_pairs():
    assert Lengths.of([1, 1, 3, 9], slots=64) == Lengths(lead=2, most=9)
    assert Lengths.of([40], slots=64) == Lengths(lead=40, most=16)
    assert Lengths.of([8], slots=8) == Lengths(lead=8, most=4)
    assert Lengths.of([], slots=64) == Lengths(lead=3, most=16)


def test_rouge_ranks_a_copy_above_a_part_above_nothing():
    texts = {"copy": "The cat sat.", "part": "The cat.", "nothing": ""}
    systems = {name: [Row("a", "", ("The cat sat.",), text)] for name, text in texts.items()}
    found = Panel((), "eng_Latn", samples=10, seed=0).judge(systems, Ledger())
    values = [found.table[name]["rouge1"]["value"] for name in texts]
    assert values == [1.0, pytest.approx(0.8), 0.0]
    assert found.of_row(0)["rouge"]["part"]["rouge1"] == pytest.approx(0.8)
    assert found.table["part"]["length_ratio"] == pytest.approx(2 / 3)


def test_continuations_begin_in_the_middle_and_are_compared_with_what_follows(folder):
    rows = evaluate(knowing(), EvaluateOptions(data=(folder,))).rows
    (row,) = [row for row in rows if row["kind"] == "continuation"]
    assert (row["prompt"], row["reference"]) == (STORY[:2], STORY[2:])
    assert row["model"] == [*STORY[2:], PROMPT_SUFFIX]  # the reciter's story continues with it
    assert len(row["nearest"]) == len(row["similarity"]) == 3


def test_sampling_settings_reach_the_predictions_and_the_texts(folder):
    model = knowing()
    seen = []
    after, predict = model.model.next, model.model.predict
    model.model.next = lambda context, sampling: seen.append(("next", sampling)) or after(context, sampling)
    model.model.predict = lambda batch, sampling: seen.append(("predict", sampling)) or predict(batch, sampling)
    sampling = Sampling(seed=5, temperature=0.5)
    evaluate(model, EvaluateOptions(data=(folder,), sampling=sampling))
    assert set(seen) == {("next", sampling), ("predict", sampling)}


def test_every_row_is_scored_or_counted_with_its_reason(tmp_path):
    path = write_rows(
        tmp_path / "f.jsonl",
        {"id": "good", "document": " ".join(STORY), "summary": "A trip."},
        "not json",
        {"document": "No summary."},
        {"title": "no text at all"},
        {"document": "Some.", "summary": ""},
        {"text": 7},
        {"id": "other", "text": "One. Two.", "split": "whatever"},
    )
    results = evaluate(knowing(data=("gone/data",)), EvaluateOptions(data=(path,))).results
    counts = results["counts"]
    assert results["refused"] == counts["reasons"], "the ledger holds all that was passed over"
    assert (counts["scored"], counts["failed"], counts["not_drawn"]) == (2, 5, 0)
    assert {reason: r["count"] for reason, r in counts["reasons"].items()} == {
        "invalid JSON": 1, "neither {document, summary} nor {text}": 2, "empty": 1, "not text": 1,
    }  # fmt: skip
    assert counts["reasons"]["invalid JSON"]["first"].startswith("f.jsonl:2")
    assert counts["reasons"]["neither {document, summary} nor {text}"]["first"] == "f.jsonl:3", "not f.jsonl:4"
    assert (counts["documents"], counts["pairs"]) == (1, 1)


def test_text_without_anything_to_predict_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no document has a second sentence"):
        evaluate(knowing(), EvaluateOptions(data=(write_rows(tmp_path / "f.jsonl", {"text": "One."}),)))


def test_without_training_data_there_is_no_bank_and_the_mean_is_the_normalizers(tmp_path):
    path = write_rows(tmp_path / "f.jsonl", {"document": " ".join(STORY), "summary": " ".join(ANSWER)})
    model = knowing()
    model.model.normalizer.location += 1.0
    results = evaluate(model, EvaluateOptions(data=(path,))).results
    assert results["bank"]["sentences"] == 0
    assert "nearest" not in results["summaries"]
    expected = (model.codec.encode(ANSWER) - 1.0).norm(dim=1).mean()
    assert results["controls"]["mean"]["l2"] == pytest.approx(float(expected), rel=1e-4)


def test_training_data_that_is_not_here_is_said_and_is_no_refusal(folder, capsys):
    path = write_rows(Path(folder) / "f.jsonl", {"text": " ".join(STORY)})
    for data, line in {
        ("gone/data", "gone/too"): "(gone/data and 1 more) is not on this machine: 'nearest' is left out",
        ("gone/data", folder): "(gone/data) is not on this machine: 'nearest' and 'always the mean' are of the others",
    }.items():
        evaluation = evaluate(knowing(data=data), EvaluateOptions(data=(path,)))
        assert f"the model's training data {line}" in capsys.readouterr().err
        assert evaluation.refused == evaluation.results["refused"] == {}
        assert evaluation.results["training_data_not_here"] == [name for name in data if name != folder]


def test_a_file_is_scored_with_the_training_data_that_the_config_names(folder, tmp_path):
    path = write_rows(tmp_path / "f.jsonl", {"text": " ".join(STORY)})
    results = evaluate(knowing(data=(folder,)), EvaluateOptions(data=(path,))).results
    assert results["bank"]["sentences"] == 9
    assert results["mean_of"] == "training vectors"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data", "missing"], "--data missing: no such file or folder"),
        (["--data", "f.jsonl", "--limit", "0"], "--limit=0: expected 1 or more"),
        (["--data", "f.jsonl", "g.jsonl"], "expected one file, or folders"),
        (["--data", "f.jsonl", "--output", "f.jsonl"], "is a file; expected a folder"),
    ],
)
def test_a_mistake_is_one_line(words, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("f.jsonl", "g.jsonl"):
        write_rows(tmp_path / name, {"text": " ".join(STORY)})
    with pytest.raises(UserError, match=expected):
        command(monkeypatch, *words)


def command(monkeypatch, *words):
    monkeypatch.setattr(lcm.evaluation.command, "load", lambda folder, codec: knowing())
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return lcm.evaluation.command.run(parser.parse_args(["--model", "runs/mine", "--output", "report", *words]))


def test_the_command_writes_three_files_and_prints_the_table(monkeypatch, folder, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "--data", folder, "--bootstrap", "20") == 0
    captured = capsys.readouterr()
    assert "the model" in captured.out
    assert "scored 4, failed 0" in captured.out
    assert "report/report.html" in captured.err
    results = json.loads((tmp_path / "report/results.json").read_text())
    assert results["settings"]["bootstrap"] == 20
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "report/examples.jsonl").read_text().splitlines()]
    assert kinds == ["summary", "summary", "continuation", "document", "pair", "pair"]
    assert (tmp_path / "report/report.html").read_text().startswith("<!doctype html>")


def test_every_option_of_the_command_line_reaches_the_evaluation(monkeypatch, folder, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(lcm.evaluation.command, "evaluate", lambda lcm, options: seen.append(options) or 1 / 0)
    monkeypatch.setattr("lcm.evaluation.command.asked_for", seen.append)
    given = {"split": "validation", "limit": 5, "roundtrip": 6, "seed": 7, "bootstrap": 8, "convention": "helm"}
    given |= {"max_sentences": 3, "length": 0.5, "long": "chunks", "best_of": 2}
    words = [word for name, value in given.items() for word in (option_name(name), str(value))]
    with pytest.raises(ZeroDivisionError):
        command(monkeypatch, "--data", folder, *words, "--judge", "cola", "mi=gpt2", "--truth", "--temperature", "0.5")
    sampling = Sampling(seed=7, temperature=0.5)
    judge = ("cola", "mi=gpt2")
    assert seen == [judge, EvaluateOptions(data=(folder,), **given, judge=judge, truth=True, sampling=sampling)]
    assert {field.name for field in fields(EvaluateOptions)} == {"data", "judge", "sampling", "task", "truth", *given}


def test_json_prints_the_results_file(monkeypatch, folder, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    command(monkeypatch, "--data", folder, "--json")
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "report/results.json").read_text())


def test_a_model_that_is_not_there_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "f.jsonl", {"text": " ".join(STORY)})
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(UserError, match=r"no model\.safetensors there"):
        lcm.evaluation.command.run(parser.parse_args(["--model", "nowhere", "--data", "f.jsonl", "--output", "report"]))
    assert not (tmp_path / "report").exists()


def test_the_results_name_the_tokens_of_rouge_and_what_they_cannot_read(tmp_path):
    rows = [{"document": " ".join(STORY), "summary": summary} for summary in (STORY[0], "...", STORY[1])]
    write_rows(tmp_path / "f.jsonl", *rows)
    results = evaluate(knowing(), EvaluateOptions(data=(str(tmp_path / "f.jsonl"),), bootstrap=20)).results
    record = results["rouge"]
    assert (record["convention"], record["tokens"], record["lang"]) == ("lcm", "rouge-score, stemmed", "eng_Latn")
    assert (record["scored"], record["not_scored"], record["first_not_scored"]) == (2, 1, "f.jsonl:2")
    assert results["summaries"]["roundtrip"]["rougeL"]["value"] == 1.0, "no 0 for what cannot be read"
    assert "ROUGE: 1 of 3 summaries not scored" in headline(results)
    assert results["refused"]["reference without words for ROUGE"] == {"count": 1, "first": "f.jsonl:2"}


def test_a_file_has_no_splits_and_folders_given_twice_count_once(tmp_path, folder):
    write_rows(tmp_path / "f.jsonl", {"text": " ".join(STORY)})
    with pytest.raises(UserError, match="--split=test: goes with prepared folders"):
        evaluate(knowing(), EvaluateOptions(data=(str(tmp_path / "f.jsonl"),), split="test"))
    once, twice = (evaluate(knowing(), EvaluateOptions(data=(folder,) * n, bootstrap=5)).results for n in (1, 2))
    assert once["counts"] == twice["counts"]


def test_the_command_ends_with_the_ledger_in_one_line(tmp_path, monkeypatch, capsys):
    path = write_rows(tmp_path / "f.jsonl", {"text": " ".join(STORY)}, "not json", {"text": 7}, {"text": 8})
    monkeypatch.setattr(lcm.evaluation.command, "load", lambda *_, **__: knowing())
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["--model", str(tmp_path), "--data", path, "--output", str(tmp_path / "report")]
    assert lcm.evaluation.command.run(parser.parse_args(words)) == 0
    *_, last = capsys.readouterr().err.splitlines()
    expected = "3 refused: 2 not text (first: f.jsonl:3: text is 7), 1 invalid JSON (first: f.jsonl:2: b'not json\\n')"
    assert last == f"lcm evaluate: {expected}"
