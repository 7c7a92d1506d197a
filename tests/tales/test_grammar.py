"""Sentences and events: every wording is read back as the event it tells, and nothing else is."""

from random import Random

import pytest

from lcm.tales import LANGUAGES, LEVELS, Kind, Word, parse
from lcm.tales.words import PEOPLE, PLACES

KINDS = [(level, kind) for level in LEVELS for kind in level.kinds]


def drawn(kind: Kind, random: Random):
    """An event of this kind with words drawn from all of its vocabularies."""
    return kind.event(*(random.choice(list(words.values())) for words in kind.slots.values()))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("level", "kind"), KINDS, ids=lambda value: value.name)
def test_every_wording_is_read_back_as_the_event_it_tells(level, kind, language):
    random = Random(kind.name)
    for _ in range(6):
        event = drawn(kind, random)
        for number, sentence in enumerate(event.told(language)):
            read = parse(sentence)
            assert (read, read.language, read.wording) == (event, language, number)


@pytest.mark.parametrize(("level", "kind"), KINDS, ids=lambda value: value.name)
def test_every_word_of_a_slot_can_be_told_and_read_in_every_language(level, kind):
    random = Random(kind.name)
    for slot, vocabulary in kind.slots.items():
        for word in vocabulary.values():
            words = [word if s == slot else random.choice(list(v.values())) for s, v in kind.slots.items()]
            event = kind.event(*words)
            assert {parse(event.told(language)[-1]) for language in LANGUAGES} == {event}


def test_a_changed_word_makes_another_event_or_none():
    random = Random(0)
    vocabulary = sorted({w for _, kind in KINDS for s in drawn(kind, random).told("eng_Latn") for w in s[:-1].split()})
    for _, kind in KINDS:
        for _ in range(2):
            event = drawn(kind, random)
            for sentence in event.told("eng_Latn"):
                words = sentence[:-1].split()
                for place, word in enumerate(words):
                    for other in random.sample(vocabulary, 3):
                        if other.lower() != word.lower():
                            changed = [*words[:place], other, *words[place + 1 :]]
                            assert parse(" ".join(changed) + ".") != event, (sentence, other)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_wording_is_one_changed_word_away_from_another_of_its_event(language):
    random = Random(0)
    for _, kind in KINDS:
        first, *others = (sentence.split() for sentence in drawn(kind, random).told(language))
        for other in others:
            assert len(first) != len(other) or sum(a != b for a, b in zip(first, other, strict=True)) > 1, first


def test_a_letter_or_a_mark_too_many_is_no_sentence():
    assert parse("Anna has lost her red hat.")
    for wrong in (
        "anna has lost her red hat.",
        "Anna has lost her red hat",
        "Anna has lost her red hat. ",
        "Anna  has lost her red hat.",
        "Anna has lost his red hat.",
        "Anna hat ihre roten Hut verloren.",
        "Anna ha perdido su sombrero roja.",
        "",
    ):
        assert parse(wrong) is None, wrong


def test_grammar_agrees_with_gender_in_each_language():
    told = {
        "Anna hat ihren roten Hut verloren.": "Karl hat seinen roten Hut verloren.",
        "Bei der Mühle wohnt eine Bäckerin namens Anna.": "Bei der Mühle wohnt ein Bäcker namens Karl.",
        "Al final la panadera Anna está contenta.": "Al final el panadero Karl está contento.",
        "Anna has lost her red hat.": "Karl has lost his red hat.",
    }
    for woman, man in told.items():
        her, his = parse(woman), parse(man)
        assert {**her.arguments, "who": "Karl"} == his.arguments
        assert parse(woman.replace("Anna", "Karl")) is None


def test_the_first_of_the_two_has_a_gender_where_the_language_says_it():
    woman, man = parse("Die Erste der beiden ist Bäckerin."), parse("Der Erste der beiden ist Bäcker.")
    assert woman == man == parse("The first of the two is a baker.")
    assert parse("Die Erste der beiden ist Bäcker.") is None


def test_every_kind_has_as_many_wordings_in_each_language():
    """One seed then tells the same stories, wording by wording, in every language."""
    for _, kind in KINDS:
        assert {len(kind.wordings[language]) for language in LANGUAGES} == {len(kind.wordings["eng_Latn"])}


def test_a_wording_that_does_not_say_every_slot_is_refused():
    with pytest.raises(ValueError, match=r"goes: '{who} goes.' says .'who'.; expected .'place', 'who'."):
        Kind("goes", {"who": PEOPLE, "place": PLACES}, eng="{who} goes {place:to}. | {who} goes.")


def test_a_kind_may_say_nothing_but_itself():
    rain = Kind("rain", {}, eng="It rains. | Rain falls.")
    assert [event.wording for event in rain.parse("Rain falls.", "eng_Latn")] == [1]
    assert list(rain.parse("Rain fell.", "eng_Latn")) == []


def test_no_kind_has_the_name_of_the_end():
    with pytest.raises(ValueError, match="'end' is the kind of the end of a story"):
        Kind("end", {}, eng="The end.")


def test_a_kind_may_have_one_language_alone():
    rain = Kind("rain", {"thing": {"water": Word("water", {"eng_Latn": {"": "water"}})}}, eng="It rains {thing}.")
    event = rain.event(*(words["water"] for words in rain.slots.values()))
    assert event.told("eng_Latn") == ("It rains water.",)
    assert list(rain.parse("It rains water.", "deu_Latn")) == []
