"""Sentences of other scripts: their stops are known, cuts for want of any are counted, other languages are refused."""

import pytest

from lcm.codec.text import Splitter, SplitterSettings, check_language
from lcm.errors import UserError

TWO = {
    "Chinese": ("今天天气很好。", "我们去公园吧！"),
    "Japanese": ("今日は晴れです。", "「行こう。」"),
    "Hindi": ("मौसम अच्छा है।", "हम चलते हैं।"),
    "Urdu": ("موسم اچھا ہے۔", "کیا آپ آئیں گے؟"),
    "Armenian": ("Եղանակը լավ է։", "Գնանք այգի։"),
    "Khmer": ("អាកាសធាតុល្អ។", "យើងទៅ។"),
    "Burmese": ("ရာသီဥတုကောင်းသည်။", "သွားကြစို့။"),
    "Tibetan": ("གནམ་གཤིས་ཡག་པོ་འདུག །", "ང་ཚོ་འགྲོ།"),
    "Amharic": ("አየሩ ጥሩ ነው።", "እንሂድ።"),
    "Santali": ("ᱱᱚᱣᱟ ᱫᱚ ᱢᱤᱫ ᱠᱟᱱᱟ᱾", "ᱩᱱᱤ ᱦᱮᱡ ᱮᱱᱟ᱾"),
}


def split(text, most=256):
    splitter = Splitter(SplitterSettings(max_characters=most))
    return splitter.split(text), splitter.blocks


@pytest.mark.parametrize("language", TWO)
@pytest.mark.parametrize("between", ["", " ", "\n"])
def test_the_stops_of_a_script_end_its_sentences(language, between):
    first, second = TWO[language]
    assert split(first + between + second) == ([first, second], 0)


def test_repeated_stops_and_closing_marks_stay_with_their_sentence():
    assert split("真的吗？！她说：“是的。”然后走了。")[0] == ["真的吗？！", "她说：“是的。”", "然后走了。"]


def test_latin_text_is_cut_as_before():
    text = "Dr. Smith paid $3.14 to J. R. Doe! Was it enough? It was."
    assert split(text)[0] == ["Dr. Smith paid $3.14 to J. R. Doe!", "Was it enough?", "It was."]


def test_long_sentences_are_cut_at_the_commas_of_their_script():
    for comma in "，、،፣၊՝":
        found, blocks = split("x" * 20 + comma + "y" * 20, most=30)
        assert found == ["x" * 20 + comma, "y" * 20]
        assert blocks == 0


def test_cuts_without_any_boundary_are_counted():
    assert split("字" * 100, most=30) == (["字" * 25] * 4, 3)
    assert split("a b " * 20, most=30)[1] == 0


def test_a_language_without_stops_is_refused_with_the_way_out():
    nupunkt = SplitterSettings()
    for lang in ("tha_Thai", "lao_Laoo"):
        with pytest.raises(UserError, match=f"--lang={lang}: .* has no mark that ends a sentence.*--splitter sat"):
            check_language(nupunkt, lang)
    for lang in ("zho_Hans", "jpn_Jpan", "eng_Latn", "xxx_Thax"):
        check_language(nupunkt, lang)
