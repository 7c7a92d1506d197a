"""The judge: what is true is right, every planted fault is found, and drawn events are compared with the truth."""

from random import Random

import pytest

from lcm.tales import LEVELS, Errand, Promise, follow, parse, tales
from lcm.tales.judging import judge, marked, nearest, spread

STORY = [
    "Anna is a baker who lives near the mill.",
    "Anna has lost her red hat.",
    "At the lake Anna meets a fox.",
    "The fox has seen the red hat at the tower.",
    "Anna thanks the fox and goes to the tower.",
    "Anna finds the red hat at the tower.",
    "Anna goes back to the mill with the hat.",
    "Anna the baker is proud.",
]


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("language", ["eng_Latn", "deu_Latn", "spa_Latn"])
def test_a_story_that_the_truth_tells_is_right_in_every_sentence(level, language):
    for tale in tales(level, 6 if level is not Promise else 2, language, seed=8):
        judged = judge(tale.story[:3], tale.story[3:], True, explain=language)
        assert (judged.share("grammatical"), judged.share("consistent"), judged.ends_well) == (1, 1, True)
        assert all(fact.right for verdict in judged.verdicts for fact in verdict.facts)
        assert len(judged.verdicts) == len(tale.story) - 3
        assert not any(verdict.instead for verdict in judged.verdicts)


@pytest.mark.parametrize(
    ("place", "wrong", "grammatical", "lost"),
    [
        (3, "The fox has seen the red hats at the tower.", False, None),
        (3, "The fox has seen the blue hat at the tower.", True, ("thing", 2)),
        (4, "Karl thanks the fox and goes to the tower.", True, ("who", 2)),
        (4, "Anna thanks the fox and goes to the castle.", True, ("place", 1)),
        (5, "Anna finds the yellow hat at the tower.", True, ("thing", 2)),
        (6, "Anna goes back to the mill with the ring.", True, ("noun", 1)),
        (6, "Anna goes back to the beach with the hat.", True, ("home", 6)),
        (7, "Anna the cook is proud.", True, ("job", 7)),
        (6, "Anna goes back to the mill without the hat.", True, None),  # she has found it: no such event now
    ],
)
def test_every_planted_fault_is_found_at_its_sentence(place, wrong, grammatical, lost):
    told = [*STORY[:place], wrong]
    verdict = judge(STORY[:2], told[2:], False).verdicts[-1]
    assert (verdict.event is not None, verdict.consistent, verdict.instead) == (grammatical, False, "")
    assert [(fact.slot, fact.distance) for fact in verdict.facts if not fact.right] == ([lost] if lost else [])


def test_the_distance_of_a_fact_is_that_to_its_last_mention():
    verdicts = judge(STORY[:1], STORY[1:], True).verdicts
    distances = [{fact.slot: fact.distance for fact in verdict.facts} for verdict in verdicts]
    assert distances == [
        {"who": 1},
        {"who": 1},
        {"animal": 1, "thing": 2},
        {"who": 2, "animal": 1, "place": 1},
        {"who": 1, "thing": 2, "place": 1},
        {"who": 1, "noun": 1, "home": 6},
        {"who": 1, "job": 7},
    ]


def test_a_wrong_sentence_is_left_out_of_what_the_next_are_judged_by():
    told = [STORY[2], "The fox has seen the blue hat at the tower.", *STORY[3:]]
    judged = judge(STORY[:2], told, True)
    assert [verdict.consistent for verdict in judged.verdicts] == [True, False, True, True, True, True, True]
    assert judged.share("consistent") == pytest.approx(6 / 7)
    assert judged.share("grammatical") == 1


def test_a_continuation_ends_well_where_a_story_may_end_and_only_there():
    assert judge(STORY[:3], STORY[3:7], True).ends_well  # a feeling may follow, and need not
    assert judge(STORY[:3], STORY[3:8], True).ends_well
    assert not judge(STORY[:3], STORY[3:6], True).ends_well  # not at home yet
    assert not judge(STORY[:3], STORY[3:8], False).ends_well  # stopped by a limit
    assert not judge(STORY[:3], [*STORY[3:8], "Anna the baker is happy."], True).verdicts[-1].consistent


def test_a_continuation_that_stops_behind_a_wrong_sentence_does_not_end_well():
    assert not judge(STORY[:3], [*STORY[3:8], "Nothing is right here."], True).ends_well


def test_a_sentence_in_another_language_than_the_prompt_is_wrong():
    (verdict,) = judge(STORY[:3], ["Der Fuchs hat den roten Hut am Turm gesehen."], False).verdicts
    assert (verdict.event, verdict.consistent) == (None, False)


def test_all_words_are_marked_where_nothing_may_follow():
    told = judge(STORY, ["Anna goes home."], True, explain="eng_Latn").verdicts[0]
    assert told.instead == ""
    assert [wrong for _, wrong in marked(told.sentence, told.instead)] == [True, True, True]


def test_a_continuation_without_a_sentence_has_nothing_right():
    judged = judge(STORY[:3], [], True)
    assert (judged.share("consistent"), judged.ends_well) == (0, False)


def test_a_prompt_that_is_no_beginning_is_refused():
    with pytest.raises(ValueError, match="no story of these levels begins like this"):
        judge(["Anna sleeps."], [], False)


def test_wrong_words_are_marked_beside_the_nearest_right_sentence():
    story = follow([parse(sentence) for sentence in STORY[:3]])
    wrong = "The fox has seen the red cat at the tower."
    instead = nearest(wrong, [story], "eng_Latn")
    assert instead == "The fox has seen the red hat at the tower."
    assert [word for word, is_wrong in marked(wrong, instead) if is_wrong] == ["cat"]
    assert judge(STORY[:3], [wrong], False, explain="eng_Latn").verdicts[0].instead == instead
    assert [word for word, is_wrong in marked("The cat cat sat.", "The cat sat.") if is_wrong] == ["cat"]


def after(count: int) -> Errand:
    return follow([parse(sentence) for sentence in STORY[:count]])


def test_events_drawn_as_the_truth_has_them_are_at_no_distance():
    story = after(4)  # thanked (0.5), found (0.4), gone (0.1)
    thank, find, gone = story.next_events()
    exact = spread(story, [thank] * 50 + [find] * 40 + [gone] * 10)
    assert (exact.distance, exact.coverage) == (pytest.approx(0), 1)
    assert [kind["name"] for kind in exact.kinds] == ["thank", "find", "gone"]
    assert all(kind["drawn"] == pytest.approx(kind["true"]) for kind in exact.kinds)


def test_a_lost_mode_and_wrong_sentences_are_distance():
    story = after(4)
    thank, find, _ = story.next_events()
    lost = spread(story, [thank] * 50 + [find] * 50)
    assert lost.distance == pytest.approx(0.1)
    kinds, words = 3, 3 + 3 + 2  # thank says who, animal and place; find who, thing and place; gone thing and place
    assert lost.coverage == pytest.approx((2 + 6) / (kinds + words))
    assert spread(story, [thank] * 5 + [find] * 5).coverage == 1  # ten draws of the truth often lack what has 10%
    wrong = spread(story, [thank] * 5 + [find] * 4 + [None])
    assert wrong.distance == pytest.approx(0.1)
    assert wrong.kinds[-1] == {"name": "(wrong)", "drawn": pytest.approx(0.1), "true": 0}
    assert spread(story, [None] * 4).distance == pytest.approx(1)
    other = spread(story, [parse("Karl finds the red hat at the tower.")], after="Then.")
    assert (other.after, other.distance) == ("Then.", pytest.approx(1))


def test_draws_of_the_truth_come_near_it_as_they_become_more():
    story, random = after(2), Random(0)
    choices = story.choices()

    def distance(count: int) -> float:
        picks = random.choices(choices, [choice.probability for choice in choices], k=count)
        return spread(story, [choice.draw(random) for choice in picks]).distance

    assert distance(4000) < 0.5 * distance(200) < 0.25


def verdicts_with(changes, story=STORY):
    told = [changes.get(place, sentence) for place, sentence in enumerate(story)]
    return [verdict.consistent for verdict in judge(told[:2], told[2:], True).verdicts]


@pytest.mark.parametrize("place", range(2, len(STORY)))
@pytest.mark.parametrize("wrong", ["The fox at the at.", "Anna is a baker who lives near the mill."])
def test_a_fault_counts_once_where_the_rest_may_follow_something_in_its_place(place, wrong):
    assert verdicts_with({place: wrong}) == [i != place for i in range(2, len(STORY))]


def test_what_follows_a_wrong_sentence_must_still_agree_with_itself_and_with_what_was_told_before():
    nonsense = "The fox at the at."
    assert verdicts_with({3: nonsense, 4: "Anna thanks the fox and goes to the castle."}) == [
        True, False, True, False, True, True,  # to the castle: so it is not found at the tower
    ]  # fmt: skip
    home = verdicts_with({3: nonsense, 6: "Anna goes back to the lake with the hat."})
    assert home == [True, False, True, True, False, True]
    assert verdicts_with({3: nonsense, 4: nonsense, 5: nonsense}) == [True, False, False, False, True, True]
    assert verdicts_with(
        {3: "The fox says that the red hat is at the mill.", 4: "Anna thanks the fox and goes to the mill."}
    )[1:3] == [False, False], "the hat is never at home"


def test_a_copy_of_a_story_takes_its_own_way():
    for level in LEVELS:
        random = Random(3)
        story = level.draw(random)
        whole, copied = level(), None
        for event in story.events:
            copied = whole.copy()
            assert whole.take(event)
            assert copied.events == whole.events[:-1]
            copied.finish(random)
        assert [event.arguments for event in whole.events] == [event.arguments for event in story.events]
        assert any(choice.kind is None for choice in whole.choices())


def test_judging_nonsense_keeps_few_stories_in_mind():
    begun = tales(Promise, 1, seed=3).__next__().story[:3]
    assert not any(v.consistent for v in judge(begun, ["So it is not so."] * 40, False).verdicts)


def test_a_wrong_sentence_may_also_have_been_one_too_many():
    """The story without it is kept in mind, also where what may stand in its place is too much to keep."""
    judged = judge(STORY[:2], ["So it is not so.", *STORY[2:]], True)
    assert [verdict.consistent for verdict in judged.verdicts] == [False, *[True] * len(STORY[2:])]


def test_a_word_is_a_fact_only_where_all_that_may_have_happened_determines_it():
    """A wrong sentence may have changed how many eggs Karl has."""
    begun = ["Karl and Sofia are at the mill today.", "Karl finds two eggs.", "Now Karl has two eggs."]
    told = ["Sofia finds one apple.", "Karl now has two eggs."]
    (_, known), (_, _, unsure) = (judge(begun, [*wrong, *told], False).verdicts for wrong in ([], ["So it is not so."]))
    assert known.consistent
    assert unsure.consistent
    assert "goods" in {fact.slot for fact in known.facts}
    assert "goods" not in {fact.slot for fact in unsure.facts}
