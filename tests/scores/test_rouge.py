"""ROUGE by language: a text against itself is 1 wherever words can be found, and never 0 where they cannot."""

import math
from collections import Counter

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from lcm.scores import ROUGE, Row, length_ratio, mean_of_texts, rouge_line, rouge_record, rouge_scores
from lcm.scores.tokens import characters, words

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


def rows(predictions, references):
    """Rows of one reference each."""
    return [Row(f"id {i}", "", (r,), p) for i, (p, r) in enumerate(zip(predictions, references, strict=True))]


def rouge(prediction, *references, lang="eng_Latn"):
    """The ROUGE scores of one prediction."""
    return {name: found[0] for name, found in rouge_scores([Row("", "", references, prediction)], lang).items()}


@pytest.mark.parametrize("lang", TEXTS)
def test_a_text_against_itself_is_one_and_against_another_less(lang):
    text = TEXTS[lang]
    assert rouge(text, text, lang=lang) == dict.fromkeys(ROUGE, 1.0)
    other = TEXTS["rus_Cyrl"] if lang != "rus_Cyrl" else TEXTS["ell_Grek"]
    assert rouge(other, text, lang=lang)["rouge1"] == 0.0, "a wrong answer is 0"


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
    assert all(np.isnan(value) for value in rouge(text, text, lang=lang).values())


def test_english_is_scored_as_the_field_does():
    prediction, reference = "The cats sat on mats; café 3.14!", "A cat was sitting on the mat of a café, 3.14 m."
    expected = RougeScorer(list(ROUGE), use_stemmer=True).score(target=reference, prediction=prediction)
    assert rouge(prediction, reference) == {name: expected[name].fmeasure for name in ROUGE}


def test_the_second_argument_is_the_reference():
    """ROUGE-Lsum is summed over the reference's sentences, so the sides are not alike.

    Reference "a", "a": each finds an "a" of the prediction "a a", 2 of 2. Reference "a a": both sentences of the
    prediction find the same "a", 1 of 2.
    """
    assert rouge("a a", "a\na", lang="fra_Latn")["rougeLsum"] == 1.0
    assert rouge("a\na", "a a", lang="fra_Latn")["rougeLsum"] == 0.5


def test_tokens_keep_vowel_signs_and_joiners():
    assert words("हिन्दी भाषा।") == ["हिन्दी", "भाषा"]
    assert words("می\u200cروم, ÉTÉ") == ["می\u200cروم", "été"]
    assert characters("東京 2020年 Olympic") == ["東", "京", "2020", "年", "olympic"]


def test_what_is_not_scored_is_counted_and_said_and_in_no_mean():
    texts = ["The sea was calm.", "...", "Москва."]
    some = rows(texts, texts)
    scores = rouge_scores(some)
    record = rouge_record(some, scores)
    counts = {key: record[key] for key in ("convention", "tokens", "lang", "scored", "not_scored", "first_not_scored")}
    assert counts == {
        "convention": "lcm", "tokens": "rouge-score, stemmed", "lang": "eng_Latn",
        "scored": 1, "not_scored": 2, "first_not_scored": "id 1",
    }  # fmt: skip
    assert rouge_line(record).startswith("ROUGE: 2 of 3 summaries not scored, their references have no words that the")
    found = scores["rougeL"]
    assert mean_of_texts(found, 20).value == 1.0
    assert np.isnan(found).tolist() == [False, True, True]
    assert rouge_line(rouge_record(some[:1], rouge_scores(some[:1]))) is None
    assert rouge_line(rouge_record(some, rouge_scores(some, "tha_Thai"), "tha_Thai")) == (
        "ROUGE: no summary of 3 is scored: tha_Thai has no blanks between words to cut at"
    )


def test_the_best_reference_counts_and_one_that_cannot_be_read_does_not():
    assert rouge("The sea was calm.", "A dog.", "The sea was calm.")["rougeL"] == 1.0
    assert rouge("The sea was calm.", "Москва.", "The calm sea.") == rouge("The sea was calm.", "The calm sea.")
    each = [rouge("a b c", "a b", lang="fra_Latn"), rouge("a b c", "c b a", lang="fra_Latn")]
    best = {name: max(scores[name] for scores in each) for name in ROUGE}
    assert best not in each, "the best of each score by itself"
    assert rouge("a b c", "a b", "c b a", lang="fra_Latn") == best


def plain_f(matches, predicted, reference):
    return 2 * matches / (predicted + reference) if matches else 0.0


def plain_rouge(prediction, reference, n):
    grams = [
        Counter(zip(*(text.lower().split()[i:] for i in range(n)), strict=False)) for text in (prediction, reference)
    ]
    return plain_f((grams[0] & grams[1]).total(), grams[0].total(), grams[1].total())


def plain_lcs(a, b):
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + plain_lcs(a[:-1], b[:-1])
    return max(plain_lcs(a[:-1], b), plain_lcs(a, b[:-1]))


def test_rouge_agrees_with_counting_by_hand():
    prediction, reference = "a red cat sat on a mat", "a cat in red sat on my mat"
    found = rouge(prediction, reference)
    assert found["rouge1"] == pytest.approx(plain_rouge(prediction, reference, 1))
    assert found["rouge2"] == pytest.approx(plain_rouge(prediction, reference, 2))
    assert found["rougeL"] == pytest.approx(plain_f(plain_lcs(prediction.split(), reference.split()), 7, 8))


@pytest.mark.parametrize("between", [" ", "\n", "\n\n", "\r\n"])
def test_rouge_lsum_compares_sentence_by_sentence_however_lines_are_broken(between):
    """Sentences in another order: their longest common sequence is shorter, but each sentence has its match."""
    found = rouge("A dog ran. The cat slept.", between.join(["The cat slept.", "A dog ran."]))
    assert (found["rougeLsum"], found["rougeL"]) == (1.0, 0.5)
    assert rouge("A dog ran, the cat slept.", between.join(["The cat slept.", "A dog ran."]))["rougeLsum"] == 1.0
    assert rouge("", "Something.")["rougeL"] == 0.0


def test_lengths_are_counted_in_what_the_language_counts():
    assert length_ratio(rows(["東京"], ["東京は首都"]), "jpn_Jpan") == 2 / 5
    assert length_ratio(rows(["a b"], ["a b c d"])) == 0.5
    assert np.isnan(length_ratio(rows(["a"], ["a"]), "tha_Thai"))


def test_length_ratio_counts_words_of_all_texts_together():
    assert length_ratio(rows(["one two three", ""], ["one two", "three four"])) == 0.75
    assert length_ratio([Row("", "", ("one", "one two three"), "one two")]) == 1.0
    assert math.isnan(length_ratio(rows(["one"], [""])))
