"""Text scores: sacrebleu's own numbers, in the tokens of each language, and groups by length that share out all."""

import sys

import pytest
import sacrebleu
from judged_fakes import sentences

from lcm.codec_lab.decoding import BANDS, by_length, scores, sentence_bleu
from lcm.errors import UserError

ENGLISH = ["eng_Latn"] * 3
TEXTS = ["He paid $3.50, didn't he?", "“Go on,” she said -- twice.", "A & B <are> 5-year-olds ."]
DECODED = ["He paid $3.05, did he?", "“Go on,” she said -- thrice.", "A & B are 5-year-olds ."]


def test_the_scores_are_sacrebleus_own():
    found = scores(DECODED, TEXTS, ENGLISH)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(DECODED, [TEXTS]).score, abs=1e-9)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(DECODED, [TEXTS]).score, abs=1e-9)
    each = [sacrebleu.sentence_bleu(d, [t]).score for d, t in zip(DECODED, TEXTS, strict=True)]
    assert sentence_bleu(DECODED, TEXTS, ENGLISH) == pytest.approx(each)


def test_what_is_identical_scores_everything_however_short():
    assert scores(TEXTS, TEXTS, ENGLISH) == {
        "sentences": 3, "bleu": pytest.approx(100), "chrf": pytest.approx(100), "exact": 1.0,
    }  # fmt: skip
    assert sentence_bleu(["No."], ["No."], ENGLISH[:1]).tolist() == [pytest.approx(100)]


def test_exact_counts_identical_sentences():
    assert scores([*TEXTS[:2], "else"], TEXTS, ENGLISH)["exact"] == pytest.approx(2 / 3)


def test_nothing_scored_is_no_number():
    assert scores([], [], []) == {"sentences": 0, "bleu": None, "chrf": None, "exact": None}


def test_a_language_without_blanks_is_cut_into_characters():
    text, decoded = "海面风平浪静。我们都回家了。", "海面风平浪静。我们都回来了。"
    assert scores([decoded], [text], ["eng_Latn"])["bleu"] < 10
    assert scores([decoded], [text], ["zho_Hans"])["bleu"] > 60
    expected = sacrebleu.corpus_bleu([decoded], [[text]], tokenize="zh").score
    assert scores([decoded], [text], ["zho_Hans"])["bleu"] == pytest.approx(expected)


def test_groups_by_length_share_out_all_sentences():
    texts = ["", *(" ".join(["word"] * n) for n in range(1, 60)), *(s.text for s in sentences(50))]
    groups = by_length(texts)
    assert sorted(i for _, _, places in groups for i in places) == list(range(len(texts)))
    for start, end, places in groups[1:]:
        assert all(start <= len(texts[i].split()) <= (end or 1000) for i in places)
    assert tuple(start for start, _, _ in groups) == BANDS
    assert groups[-1][1] is None


def test_groups_without_sentences_are_left_out():
    assert by_length(["one two three four", "one"]) == [(1, 2, [1]), (3, 5, [0])]


def test_a_missing_package_is_reported_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UserError, match=r"pip install 'lcm-train\[judge\]'"):
        scores(TEXTS, TEXTS, ENGLISH)
