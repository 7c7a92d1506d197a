"""Scores beside ROUGE reach the results, each row and the page, of every system and of people."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeCodec, reciting, write_dataset
from tiny_judges import WRITERS

from lcm.codec.text import PROMPT_SUFFIX
from lcm.errors import UserError
from lcm.evaluation.command import EvaluateOptions, evaluate
from lcm.evaluation.information import contexts
from lcm.evaluation.judging import Panel
from lcm.evaluation.report import headline, write_report
from lcm.evaluation.scoring import pieces_of, predictions_of
from lcm.ledger import Ledger
from lcm.scores import HUMAN_REP4, JUDGES, OVERLAP, Row, asked_for, bertscore, words_of

STORY = ["The sea was calm.", "A boat went out.", "Then the wind rose.", "The boat came home."]
ANSWER = ["A trip at sea.", "It ended well."]
TRAIN = [["Once.", "Twice."], (["More."], ["One.", "Two."])]
ROWS = [
    Row("a", "The cat sat on the mat all day.", ("The cat sat on the mat.",), "The cat sat on the mat."),
    Row("b", "A dog ran to the old mill.", ("A dog ran away.", "It ran."), "Run, run, run, run, run, run."),
    Row("c", "A cat.", ("It sat.",), "No."),  # too short for 4-grams
]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    texts = {"train": TRAIN, "test": [STORY, (STORY[:3], ANSWER), (["Another.", "Text."], ANSWER)]}
    write_dataset(tmp_path / "data", FakeCodec(), texts)
    return str(tmp_path / "data")


def knowing():
    """A model that knows the story and the answer."""
    return reciting([*STORY, PROMPT_SUFFIX, *ANSWER], FakeCodec())


def panel(lang: str = "eng_Latn") -> Panel:
    return Panel((), lang, samples=50, seed=0)


def test_a_mean_is_that_of_its_rows_and_people_are_scored_like_a_system():
    found = panel().judge({"model": ROWS, "copy": [ROWS[0]] * 3}, Ledger())
    for system in ("model", "copy", "people"):
        for name in OVERLAP:
            numbers = found.single[system][name]
            assert found.table[system][name]["value"] == pytest.approx(np.nanmean(numbers)), name
            assert found.of_row(1)["scores"][system][name] == numbers[1]
    assert found.table["model"]["rep4"]["value"] == pytest.approx((0 + 2 / 3) / 2)
    assert found.single["model"]["rep4_over_human"][:2] == [0, 1]
    assert found.single["people"]["ovl3"][0] == found.single["copy"]["ovl3"][0]
    assert found.scores["rep4"]["human_bar"] == HUMAN_REP4 == 0.0192


def test_what_a_word_is_depends_on_the_language():
    assert words_of("rus_Cyrl")("Кот, сидит!") == ["кот", "сидит"]
    assert words_of("zho_Hans")("猫坐着") == ["猫", "坐", "着"]
    row = Row("a", "แมวนั่งอยู่", ("แมวนั่ง",), "แมว")
    found = panel("tha_Thai").judge({"model": [row]}, Ledger()).single["model"]
    known = {name for name, numbers in found.items() if not math.isnan(numbers[0])}
    assert known == {"rep4_characters", "ovl3_characters"}


@pytest.mark.needs("transformers")
def test_judges_reach_the_results_each_row_and_the_page(folder, tmp_path):
    names = ("cola", "perplexity", "seahorse-q5", "mauve", "mi")
    judges = tuple(f"{name}={WRITERS[name](_made(tmp_path / name))}" for name in names)
    evaluation = evaluate(knowing(), EvaluateOptions(data=(folder,), judge=judges, bootstrap=20))
    results = evaluation.results
    for scores in results["summaries"].values():
        for name in ("cola", "perplexity", "seahorse-q5", "mauve"):
            assert scores[name]["low"] <= scores[name]["value"] <= scores[name]["high"]
    assert results["people"]["cola"] == results["summaries"]["model"]["cola"]  # the model knows the answers
    assert "mauve" not in results["people"]
    assert results["summaries"]["model"]["mauve"]["n"] == [2, 2]
    assert set(results["scores"]) == {*OVERLAP, *names} - {"mi"}
    assert len(results["scores"]["cola"]["sha256"]["model.safetensors"]) == 64
    rows = [row for row in evaluation.rows if row["kind"] == "summary"]
    values = [row["scores"]["lead"]["cola"] for row in rows]
    assert np.mean(values) == pytest.approx(results["summaries"]["lead"]["cola"]["value"])
    assert results["mutual_information"]["model"] == results["mutual_information"]["truth"]
    assert results["teacher_forced"]["mi"] == results["mutual_information"]["model"]["value"]

    write_report(tmp_path / "report.html", results, evaluation.rows, tmp_path)
    page, lines = (tmp_path / "report.html").read_text(encoding="utf-8"), headline(results)
    for text in (page, lines):
        assert "cola ↑" in text
        assert "perplexity ↓" in text
        assert "perplexity can be cheated" in text
        assert "MAUVE of 2 texts: meant for 5,000" in text
        assert "utual information with the ten sentences before" in text
    assert re.search(r"^people: the references( +[\d.,]+)+ +–$", lines, re.MULTILINE)  # no MAUVE of their own


@pytest.mark.needs("transformers")
def test_people_are_judged_by_their_other_references_if_there_are_any(tmp_path, monkeypatch):
    monkeypatch.setitem(bertscore.LAYERS, ("roberta", 2), 1)
    asked = asked_for([f"bertscore={WRITERS['bertscore'](tmp_path)}"])
    judging = Panel(asked, "eng_Latn", samples=50, seed=0)
    ledger = Ledger()
    found = judging.judge({"model": [ROWS[0]]}, ledger)
    assert "bertscore" not in found.table["people"]
    assert not ledger
    found = judging.judge({"model": ROWS[:2]}, ledger)
    assert np.isnan(found.single["people"]["bertscore"]).tolist() == [True, False]
    assert ledger.line == "1 refused: 1 not judged by bertscore (first: a)"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_judge_of_summaries_is_refused_where_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr("lcm.scores.judges.find_weights", lambda judge, name: _no_weights())
    (tmp_path / "f.jsonl").write_text(json.dumps({"text": " ".join(STORY)}) + "\n")
    options = EvaluateOptions(data=(str(tmp_path / "f.jsonl"),), judge=("cola", "mi", "mauve"))
    with pytest.raises(UserError, match="--judge cola mauve: judges summaries, and the data has no pairs"):
        evaluate(knowing(), options)


def _no_weights():
    from lcm.scores.weights import Weights

    return Weights(Path(), "--judge")


def test_a_judge_that_is_misspelt_is_refused_before_the_model_is_loaded(tmp_path):
    from lcm.cli import main

    (tmp_path / "f.jsonl").write_text(json.dumps({"text": " ".join(STORY)}) + "\n")
    words = ["--data", str(tmp_path / "f.jsonl"), "--output", str(tmp_path / "report"), "--judge", "colla"]
    assert main(["evaluate", "--model", "nowhere", *words]) == 1
    assert not (tmp_path / "report").exists()


def test_the_context_of_a_sentence_is_what_stands_before_it(folder):
    lcm = knowing()
    from lcm.evaluation.examples import from_folders

    pieces = pieces_of(from_folders([folder], lcm, None, 10, 0).drawn, slots=5)
    predictions = predictions_of(pieces, [piece.vectors for piece in pieces], lcm.record)
    sentences, before = contexts(pieces, lcm.record)
    assert torch.equal(lcm.codec.encode(sentences), predictions.candidates)
    for place in predictions.place.tolist():
        piece = pieces[int(predictions.piece[place])].sentences
        real = [sentence for sentence in piece if sentence not in (lcm.record.end_of_text, lcm.record.prompt_suffix)]
        assert before[place] == real[: real.index(sentences[place])]
    long = [pieces[0].__class__(0, [str(n) for n in range(12)], torch.zeros(12, 1), 1)]
    assert contexts(long, lcm.record)[1][11] == [str(n) for n in range(1, 11)]


def test_every_judge_can_be_asked_for_by_the_name_in_the_help():
    from lcm.options import docstrings

    text = docstrings(EvaluateOptions)["judge"]
    assert all(re.search(rf"\b{name}\b", text) for name in JUDGES)
