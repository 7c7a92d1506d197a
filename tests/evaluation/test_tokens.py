"""ROUGE by language: a text against itself is 1 wherever words can be found, and never 0 where they cannot."""

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from lcm.evaluation.examples import Example
from lcm.evaluation.summaries import ROUGE, length_ratio, rouge, rouge_line, rouge_record, score
from lcm.evaluation.tokens import characters, words

TEXTS = {
    "rus_Cyrl": "Москва стоит на реке.",
    "jpn_Jpan": "東京は日本の首都です。",
    "zho_Hans": "北京是中国的首都。",
    "hin_Deva": "दिल्ली भारत की राजधानी है।",
    "arb_Arab": "القاهرة عاصمة مصر.",
    "ell_Grek": "Η Αθήνα είναι πρωτεύουσα.",
    "kor_Hang": "서울은 한국의 수도이다.",
    "fra_Latn": "Été à Orléans.",
    "amh_Ethi": "አዲስ አበባ ዋና ከተማ ናት።",
    "eng_Latn": "The sea was calm.",
}


@pytest.mark.parametrize("lang", TEXTS)
def test_a_text_against_itself_is_one_and_against_another_less(lang):
    text = [TEXTS[lang]]
    assert {name: found[0] for name, found in rouge([text], [text], lang).items()} == dict.fromkeys(ROUGE, 1.0)
    other = rouge([[TEXTS["rus_Cyrl"] if lang != "rus_Cyrl" else TEXTS["ell_Grek"]]], [text], lang)
    assert other["rouge1"][0] == 0.0, "a wrong answer is 0"


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("...", "eng_Latn"), ("", "eng_Latn"), ("Москва стоит на реке.", "eng_Latn"), ("Москва 2020", "eng_Latn"),
        ("東京は首都です。", "eng_Latn"), ("東京は首都です。", "fra_Latn"), ("!?", "rus_Cyrl"), ("。", "jpn_Jpan"),
        ("กรุงเทพเป็นเมืองหลวง", "tha_Thai"), ("กรุงเทพเป็นเมืองหลวง", "eng_Latn"), ("ភ្នំពេញ", "khm_Khmr"),
        ("ရန်ကုန်", "mya_Mymr"), ("ལྷ་ས་", "bod_Tibt"), ("The sea.", "lao_Laoo"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_not_scored(text, lang):
    assert all(np.isnan(found[0]) for found in rouge([[text]], [[text]], lang).values())


def test_english_is_scored_as_the_field_does():
    prediction, reference = "The cats sat on mats; café 3.14!", "A cat was sitting on the mat of a café, 3.14 m."
    expected = RougeScorer(list(ROUGE), use_stemmer=True).score(target=reference, prediction=prediction)
    found = rouge([[prediction]], [[reference]])
    assert {name: found[name][0] for name in ROUGE} == {name: expected[name].fmeasure for name in ROUGE}


def test_the_second_argument_is_the_reference():
    """ROUGE-Lsum is summed over the reference's sentences, so the sides are not alike.

    Reference "a", "a": each finds an "a" of the prediction "a a", 2 of 2. Reference "a a": both sentences of the
    prediction find the same "a", 1 of 2.
    """
    assert rouge([["a a"]], [["a", "a"]], "fra_Latn")["rougeLsum"][0] == 1.0
    assert rouge([["a", "a"]], [["a a"]], "fra_Latn")["rougeLsum"][0] == 0.5


def test_tokens_keep_vowel_signs_and_joiners():
    assert words("हिन्दी भाषा।") == ["हिन्दी", "भाषा"]
    assert words("می\u200cروم, ÉTÉ") == ["می\u200cروم", "été"]
    assert characters("東京 2020年 Olympic") == ["東", "京", "2020", "年", "olympic"]


def pairs(*answers):
    texts = [["D.", "[MODEL]:", *answer, "End of text."] for answer in answers]
    return [Example(f"id {i}", text, 2, torch.zeros(len(text), 2)) for i, text in enumerate(texts)]


def test_what_is_not_scored_is_counted_and_said_and_in_no_mean():
    examples = pairs(["The sea was calm."], ["..."], ["Москва."])
    record = rouge_record(examples, "eng_Latn")
    assert record == {
        "tokens": "rouge-score, stemmed", "lang": "eng_Latn", "scored": 1, "not_scored": 2, "first_not_scored": "id 1",
    }  # fmt: skip
    assert rouge_line(record).startswith("ROUGE: 2 of 3 summaries not scored, their references have no words that the")
    references = [example.answer for example in examples]
    table, single = score({"model": references}, references, 20, 0)
    assert table["model"]["rougeL"]["value"] == 1.0
    assert [np.isnan(value) for value in single["model"]["rougeL"]] == [False, True, True]
    assert rouge_line(rouge_record(examples[:1], "eng_Latn")) is None
    assert rouge_line(rouge_record(examples, "tha_Thai")) == (
        "ROUGE: no summary of 3 is scored: tha_Thai has no blanks between words to cut at"
    )


def test_lengths_are_counted_in_what_the_language_counts():
    assert length_ratio([["東京"]], [["東京は首都"]], "jpn_Jpan") == 2 / 5
    assert length_ratio([["a b"]], [["a b c d"]]) == 0.5
    assert np.isnan(length_ratio([["a"]], [["a"]], "tha_Thai"))
