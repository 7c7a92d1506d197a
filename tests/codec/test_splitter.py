"""Text → sentences: the cap holds, nothing is lost, cuts come where a reader would make them."""

import random

import pytest
from pydantic import ValidationError

from lcm.codec.text import Splitter, SplitterSettings


def splitter(max_characters=256, fits=None):
    return Splitter(SplitterSettings(max_characters=max_characters), fits)


def without_blanks(text):
    return "".join(text.split())


def random_text(generator, length):
    pieces = [
        *"abcXYZ .,;:!?…\n\t\r\"'()»-",
        "...",
        "\n\n",
        "\r\n",
        "\u2028",
        "\u2029",
        "\xa0",
        "Dr.",
        "3.14",
        "日本。",
        "é",
        "😀",
    ]
    return "".join(generator.choice(pieces) for _ in range(length))


def test_sentences_end_where_a_reader_ends_them():
    text = 'Dr. Smith went to Washington. He said "Hi!" and left. Why?'
    assert splitter().split(text) == ["Dr. Smith went to Washington.", 'He said "Hi!" and left.', "Why?"]


@pytest.mark.parametrize("text", ["short", "a", "I am", "Ok."])
def test_a_short_text_is_one_sentence_not_its_letters(text):
    assert splitter().split(text) == [text]


@pytest.mark.parametrize("text", ["", " ", "\n\n \t\n", "\u2029"])
def test_an_empty_text_has_no_sentences(text):
    assert splitter().split(text) == []


@pytest.mark.parametrize("gap", ["\n\n", "\n \t\n", "\r\n\r\n", "\r\r", "\n\n\n\n", "\u2029"])
def test_a_blank_line_always_ends_a_sentence(gap):
    assert splitter().split(f"A heading{gap}and a line") == ["A heading", "and a line"]


@pytest.mark.parametrize("blank", ["\n", "\r\n", "\t", "  ", "\xa0", " \n "])
def test_blanks_inside_a_sentence_become_single(blank):
    assert splitter().split(f" one{blank}two ") == ["one two"]


@pytest.mark.parametrize("limit", [1, 7, 20, 256])
def test_nothing_is_lost_but_blanks_and_no_piece_is_longer_than_the_cap(limit):
    generator = random.Random(limit)
    for _ in range(300):
        text = random_text(generator, generator.randrange(1, 200))
        pieces = splitter(limit).split(text)
        assert without_blanks("".join(pieces)) == without_blanks(text)
        assert all(0 < len(piece) <= limit and piece == " ".join(piece.split()) for piece in pieces)


def test_no_piece_is_more_than_the_codec_can_take():
    generator = random.Random(1)
    text = random_text(generator, 3000)
    pieces = splitter(fits=lambda s: len(s.encode()) <= 12).split(text)
    assert max(len(piece.encode()) for piece in pieces) <= 12
    assert without_blanks("".join(pieces)) == without_blanks(text)


def test_a_codec_that_takes_nothing_still_lets_it_end():
    assert splitter(fits=lambda s: False).split("abc") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        # Each line has the separator and all weaker ones. The cut is where the strongest is.
        ("aaaaaa... bb! bb? bb; bb: bb, bb", ["aaaaaa...", "bb! bb? bb; bb: bb, bb"]),
        ("aaaaaaaaaaaaaa! bb? bb; bb: bb, bb", ["aaaaaaaaaaaaaa!", "bb? bb; bb: bb, bb"]),
        ("aaaaaaaaaaaaaa? bb; bb: bb, bb", ["aaaaaaaaaaaaaa?", "bb; bb: bb, bb"]),
        ("aaaaaaaaaaaaaa; bb: bb, bb, bb bb", ["aaaaaaaaaaaaaa;", "bb: bb, bb, bb bb"]),
        ("aaaaaaaaaaaaaa: bb, bb, bb bb bb", ["aaaaaaaaaaaaaa:", "bb, bb, bb bb bb"]),
        ("aaaaaaaaaaaaa Mr. bb, bb, bb bb bb", ["aaaaaaaaaaaaa Mr.", "bb, bb, bb bb bb"]),
        ("aaaaaaaaaaaaaa, bb bb bb bb bb bb", ["aaaaaaaaaaaaaa,", "bb bb bb bb bb bb"]),
        ("aaaaaaaaaaaaaa bbbbbbbbbbbbb", ["aaaaaaaaaaaaaa", "bbbbbbbbbbbbb"]),
    ],
)
def test_the_strongest_separator_is_cut_first_and_stays_on_the_left(text, pieces, monkeypatch):
    monkeypatch.setattr("nupunkt.sent_tokenize", lambda text: [text])  # only the cutting is looked at
    assert splitter(23).split(text) == pieces


def test_of_equal_separators_the_one_that_balances_is_cut():
    assert splitter(20).split("aaaa, bbbb, cccc, dddd") == ["aaaa, bbbb,", "cccc, dddd"]


def test_three_pieces_are_enough_for_what_is_a_little_over_two():
    words = " ".join(["word"] * 110)  # 549 characters
    assert [len(piece) for piece in splitter(256).split(words)] == pytest.approx([183, 183, 183], abs=10)


def test_numbers_and_names_are_not_cut_where_anything_else_can_be():
    assert splitter(20).split("about 3.14159 or 2.71828 it is") == ["about 3.14159", "or 2.71828 it is"]


def test_a_word_is_cut_only_if_there_is_nothing_else():
    assert splitter(4).split("abcdefghij") == ["abc", "defg", "hij"]


def test_settings_go_through_a_manifest_and_refuse_what_they_do_not_know():
    settings = SplitterSettings(max_characters=99)
    assert SplitterSettings(**settings.model_dump()) == settings
    with pytest.raises(ValidationError):
        SplitterSettings(max_letters=3)


def test_a_long_run_without_separators_takes_no_time():
    assert len("".join(splitter().split("x" * 300_000))) == 300_000
