"""The whole report: a perfect codec gets perfect numbers, order changes nothing, and languages are kept apart."""

import random
from typing import ClassVar

import pytest
from judged_fakes import Constant, FakePublic, Perfect, Translator, sentences

from lcm.codec_lab.judging import ReportOptions, judge
from lcm.codec_lab.sentences import Sentence
from lcm.errors import UserError

OPTIONS = ReportOptions(fragility_limit=20, noise=(0.1, 0.5), bootstrap=10)


def without_time(results):
    return {key: value for key, value in results.items() if key not in ("seconds", "speed")}


def test_a_perfect_codec_gets_perfect_numbers():
    codec = Perfect(2048)
    judged = judge(codec, sentences(60), OPTIONS, FakePublic(codec))
    found = judged.results
    perfect = {"sentences": 60, "bleu": pytest.approx(100), "chrf": pytest.approx(100), "exact": 1}
    assert found["reconstruction"] == perfect
    assert found["noise"] == [{"multiple": 0.1} | perfect, {"multiple": 0.5} | perfect]
    assert found["fragility"]["bleu"] == pytest.approx(-1)
    assert found["agreement"]["random"]["raw"]["value"] == pytest.approx(1)
    assert found["languages"] == {}
    assert all(row["exact"] and row["decoded"] == row["text"] for row in judged.rows)


def test_a_codec_that_always_says_the_same_gets_nothing():
    found = judge(Constant(64), sentences(60), OPTIONS).results
    assert found["reconstruction"]["exact"] == 0
    assert found["reconstruction"]["bleu"] == found["noise"][0]["bleu"] == found["noise"][1]["bleu"] < 5
    assert found["agreement"] is None


def test_the_order_of_the_sentences_changes_nothing():
    given = [*sentences(50), Sentence(sentences(50)[3].text, "eng_Latn", 50)]
    other = given.copy()
    random.Random(1).shuffle(other)
    other = [Sentence(s.text, s.lang, row) for row, s in enumerate(other)]
    options = ReportOptions(limit=40, fragility_limit=20, noise=(0.5,), bootstrap=10)
    # A codec each: the fake decodes to whatever it has met before.
    first, second = (judge(codec := Perfect(24), found, options, FakePublic(codec)) for found in (given, other))
    assert without_time(first.results) == without_time(second.results)

    def by_text(judged):
        return sorted([{**row, "row": 0} for row in judged.rows], key=lambda row: row["text"])

    assert by_text(first) == by_text(second)


def test_rows_are_those_of_the_input_in_its_order():
    given = sentences(30)
    judged = judge(Perfect(), given, ReportOptions(limit=20, fragility_limit=5, noise=(), bootstrap=10))
    assert [row["row"] for row in judged.rows] == sorted(row["row"] for row in judged.rows)
    assert len(judged.rows) == 20
    assert all(row["text"] == given[row["row"]].text for row in judged.rows)
    assert sum(row["fragility"] is not None for row in judged.rows) == 5
    assert judged.results["counts"]["read"] == 30


def test_a_row_has_the_fragility_of_its_own_sentence():
    """Measured alone, with the same vectors for the normalizer, it is the same number."""
    given = sentences(30)
    codec = Perfect(24)
    judged = judge(codec, given, ReportOptions(noise=(), bootstrap=10), FakePublic(codec))
    found = {row["text"]: row["fragility"] for row in judged.rows}
    for extreme in ("most", "least"):
        for row in judged.results["fragility"][extreme]:
            assert found[row["text"]] == pytest.approx(row["fragility"])
    assert len(set(found.values())) > 10


def test_the_groups_by_length_sum_to_the_total():
    found = judge(Perfect(), sentences(90), OPTIONS).results
    assert sum(row["sentences"] for row in found["by_length"]) == found["reconstruction"]["sentences"] == 90


def test_sentences_over_the_limit_are_counted():
    judged = judge(Perfect(), sentences(40), OPTIONS)
    assert judged.results["counts"]["over_limit"] == sum(not row["fits"] for row in judged.rows)
    assert judged.results["counts"]["over_limit"] == sum(len(s.text.split()) > 20 for s in sentences(40)) > 0


def test_each_language_is_decoded_as_itself_and_has_results_of_its_own():
    """Half the sentences are in a language that comes back whole; of the English half nothing does."""

    class Half(Translator):
        def decode(self, vectors, lang="eng_Latn", *, beam=1, progress=None):
            texts = super().decode(vectors, lang)
            return [text if own == "fra_Latn" else "nil" for text, own in zip(texts, lang, strict=True)]

    french = [Sentence(s.text + " fr", "fra_Latn", s.row + 40) for s in sentences(40)]
    codec = Half(2048)
    judged = judge(codec, sentences(40) + french, OPTIONS, FakePublic(codec))
    languages = judged.results["languages"]
    assert set(languages) == {"eng_Latn", "fra_Latn"}
    assert languages["fra_Latn"]["reconstruction"]["exact"] == 1
    assert languages["eng_Latn"]["reconstruction"] == {
        "sentences": 40, "bleu": pytest.approx(0), "chrf": pytest.approx(0, abs=3), "exact": 0,
    }  # fmt: skip
    assert judged.results["reconstruction"]["exact"] == 0.5
    assert languages["fra_Latn"]["noise"][0]["exact"] == 1
    assert languages["fra_Latn"]["fragility"]["bleu"] == pytest.approx(-1)
    assert languages["eng_Latn"]["fragility"]["bleu"] == pytest.approx(0)
    told = [found["fragility"]["sentences"] for found in languages.values()]
    assert sum(told) == OPTIONS.fragility_limit
    assert languages["fra_Latn"]["agreement"]["random"]["pairs"] == 400
    midpoints = [found["halfway"]["midpoints"] for found in languages.values()]
    assert sum(midpoints) == judged.results["halfway"]["midpoints"]


def test_every_decoding_searches_with_the_beam_of_the_options():
    class Searching(Perfect):
        beams: ClassVar[set[int]] = set()

        def decode(self, vectors, lang="eng_Latn", *, beam=1, progress=None):
            self.beams.add(beam)
            return super().decode(vectors, lang)

    judge(Searching(8), sentences(5), ReportOptions(beam=3, bootstrap=10))
    assert Searching.beams == {3}


def test_one_sentence_is_enough():
    found = judge(Perfect(8), sentences(1), OPTIONS, FakePublic(Perfect(8))).results
    assert found["reconstruction"]["sentences"] == 1
    assert found["halfway"]["midpoints"] == 0


def test_a_codec_without_english_has_no_binding_and_no_near_misses():
    codec = Perfect(8)
    codec.languages = ("fra_Latn",)
    found = judge(codec, sentences(5, "fra_Latn"), OPTIONS).results
    assert found["binding"] is None
    assert found["end_of_text"]["near_misses"] == {}


def test_no_fragility_is_an_option():
    judged = judge(Perfect(8), sentences(5), ReportOptions(fragility_limit=0, bootstrap=10))
    assert judged.results["fragility"] is None
    assert {row["fragility"] for row in judged.rows} == {None}


def test_each_stage_is_announced_on_stderr(capsys):
    judge(Perfect(8), sentences(5), OPTIONS)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "encoding 5 of 5 sentences" in captured.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "--limit=0: expected 1 or more"),
        ({"fragility_limit": -1}, "--fragility-limit=-1: expected 0 or more"),
        ({"noise": (0.1, -1.0)}, "--noise=-1.0: expected multiples"),
        ({"noise": (float("nan"),)}, "--noise=nan"),
    ],
)
def test_options_out_of_bounds_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        ReportOptions(**options)


def test_vectors_that_are_not_finite_are_refused():
    class Broken(Perfect):
        def encode(self, sentences, lang="eng_Latn", *, progress=None):
            return super().encode(sentences) * float("nan")

    with pytest.raises(UserError, match="not finite"):
        judge(Broken(8), sentences(5), OPTIONS)
    with pytest.raises(UserError, match="no sentences"):
        judge(Perfect(8), [], OPTIONS)
