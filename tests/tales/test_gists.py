"""Gists state what happened, counted here from the text alone, and nothing else."""

from collections import Counter
from random import Random

import pytest

from lcm.tales import LEVELS, Errand, Friends, Inventory, Promise, parse


def stories(level, count: int = 150):
    return [level.draw(Random(f"gist {seed}")) for seed in range(count)]


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_gists_have_one_and_three_sentences_that_can_be_read(level):
    for story in stories(level, 30):
        assert (len(story.gist()), len(story.long_gist())) == (1, 3)
        for event in [*story.gist(), *story.long_gist()]:
            assert event.kind.startswith("gist: ")
            assert [parse(sentence) for sentence in event.wordings] == [event]


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_a_gist_names_only_what_the_story_names(level):
    for story in stories(level, 60):
        named = {word for event in story.events for value in event.arguments.values() for word in value.split()}
        for event in [*story.gist(), *story.long_gist()]:
            said = {word for value in event.arguments.values() for word in value.split() if not word.isdigit()}
            assert said <= named


def test_errand_says_whether_the_thing_is_found_and_where():
    for story in stories(Errand):
        said = {event.kind: event.arguments for event in story.events}
        (gist,) = story.gist()
        if "find" in said:
            assert gist.arguments == {**said["find"], "job": said["open"]["job"]}
        else:
            assert gist.arguments == {
                "who": said["open"]["who"], "job": said["open"]["job"], "thing": said["gone"]["thing"]
            }  # fmt: skip
        last_met = [event.arguments for event in story.events if event.kind == "meet"][-1]
        assert story.long_gist()[1].arguments == {"place": last_met["place"], "animal": last_met["animal"]}


def test_inventory_counts_what_each_has_in_the_end():
    for story in stories(Inventory):
        owned: dict[str, Counter[str]] = {name: Counter() for name in list(story.events[0].arguments.values())[:2]}
        for event in story.events:
            who = event.arguments.get("who", "")
            if event.kind in ("take", "give", "lose", "has"):
                number, item = event.arguments["goods"].split()
            if event.kind == "has":
                assert owned[who][item] == int(number)
            if event.kind in ("give", "lose"):
                owned[who][item] -= int(number)
            if event.kind == "take":
                owned[who][item] += int(number)
            if event.kind == "give":
                owned[event.arguments["friend"]][item] += int(number)
            assert all(0 <= number <= 3 for items in owned.values() for number in items.values())
        for gist in story.long_gist()[1:]:
            said = [value.split() for slot, value in gist.arguments.items() if slot != "who"]
            assert {item: int(number) for number, item in said} == +owned[gist.arguments["who"]]
        assert story.gist() == story.long_gist()[1:2]


def test_friends_says_who_visited_whom_and_who_borrowed_what():
    for story in stories(Friends):
        one, other = story.events[0].arguments.values()
        genders = {word.gender for word in story.events[0].words}
        by_mention = {one: one, other: other, "the first": one, "the second": other}
        if len(genders) == 2:
            her, him = (one, other) if story.events[0].words[0].gender == "f" else (other, one)
            by_mention |= {"she": her, "he": him}
        facts = {(event.kind, by_mention[event.words[0].name]): event.words[1].name for event in story.events
                 if event.kind in ("home", "job", "pet", "wears")}  # fmt: skip
        visit = next(event.arguments for event in story.events if event.kind == "visit")
        assert story.gist()[0].arguments == {**visit, "guest": by_mention[visit["guest"]]}
        assert visit["home"] == facts["home", visit["host"]]
        assert {by_mention[visit["guest"]], visit["host"]} == {one, other}
        for event in story.events:
            if event.kind in ("talk", "show", "lend"):
                owner = by_mention[event.words[0].name]
                fact = {"talk": "job", "show": "pet", "lend": "wears"}[event.kind]
                assert event.words[-1].name == facts[fact, owner]
            if event.kind == "go home":
                assert event.arguments["home"] == facts["home", by_mention[event.arguments["guest"]]]
        assert any(event.kind == "lend" for event in story.events) == (story.long_gist()[2].kind == "gist: lent")


def test_promise_keeps_in_the_last_sentence_what_the_first_promised():
    for story in stories(Promise, 40):
        promised, kept = story.events[0].arguments, story.events[-1].arguments
        assert kept == {slot: promised[slot] for slot in ("who", "friend", "thing")} == story.gist()[0].arguments
        assert story.events[-2].arguments == {"season": promised["season"]}
