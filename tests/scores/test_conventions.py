"""ROUGE by the rules of three harnesses: the values of their own functions on the same texts (conventions.json)."""

import json
import typing
from itertools import combinations
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from lcm.scores import CONVENTIONS, ROUGE, Row, rouge_record, rouge_scores
from lcm.scores.conventions import Name, one_sentence_a_line

EXPECTED = json.loads(Path(__file__).with_name("conventions.json").read_text(encoding="utf-8"))
ROWS = [Row(str(i), "", tuple(e["references"]), e["prediction"]) for i, e in enumerate(EXPECTED["examples"])]


@pytest.mark.parametrize("name", EXPECTED["values"])
def test_a_convention_gives_the_values_of_the_harness(name):
    found = rouge_scores(ROWS, convention=CONVENTIONS[name])
    assert list(found) == EXPECTED["scores"], "a harness without ROUGE-Lsum gets none"
    for number, values in enumerate(EXPECTED["values"][name]):
        assert [found[score][number] for score in found] == pytest.approx(values, abs=1e-12), ROWS[number]


@pytest.mark.parametrize("pair", list(combinations(CONVENTIONS, 2)), ids=" and ".join)
def test_no_two_conventions_agree_on_these_texts(pair):
    ours, theirs = (rouge_scores(ROWS, convention=CONVENTIONS[name]) for name in pair)
    same = [ours[name].tolist() == pytest.approx(theirs[name].tolist()) for name in ours.keys() & theirs.keys()]
    assert not all(same) or ours.keys() != theirs.keys()


def test_ours_is_the_stemmed_rouge_of_one_sentence_a_line():
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    found = rouge_scores(ROWS)
    for number, row in enumerate(ROWS):
        references = [one_sentence_a_line(text) for text in row.references]
        best = scorer.score_multi(references, one_sentence_a_line(row.prediction))
        assert {name: found[name][number] for name in ROUGE} == {name: best[name].fmeasure for name in ROUGE}


def test_references_that_a_convention_cannot_read_are_counted_where_the_harness_counts_0():
    rows = [Row("a", "", ("Москва.", "The sea."), "The sea."), Row("b", "", ("The sea.",), "The sea.")]
    for name, scored in (("lm-eval", 1), ("lighteval", 2), ("helm", 2)):
        found = rouge_scores(rows, "eng_Latn", CONVENTIONS[name])
        record = rouge_record(rows, found, "eng_Latn", CONVENTIONS[name])
        assert (record["convention"], record["scored"], record["not_scored"]) == (name, scored, 2 - scored)
    assert rouge_record(rows, found, "rus_Cyrl", CONVENTIONS["helm"])["tokens"] == "rouge-score, stemmed"


def test_every_convention_has_a_name_that_can_be_given():
    assert tuple(CONVENTIONS) == typing.get_args(Name)
    assert all(name == convention.name for name, convention in CONVENTIONS.items())
