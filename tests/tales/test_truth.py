"""The truth about stories: probabilities that add up, that the generator follows, and that a reader can work out."""

from collections import defaultdict
from random import Random

import numpy as np
import pytest

from lcm.tales import (
    LEVELS,
    Errand,
    Event,
    Friends,
    Inventory,
    Level,
    Promise,
    follow,
    parse,
    sentences_of,
    tales,
    truth,
)
from lcm.tales.grammar import END


def probability_of(story: Level, event: Event) -> float:
    return sum(other.probability for other in story.next_events() if other == event)


def limit_of_chi_squared(freedom: int) -> float:
    """The value that chance exceeds once in 10,000 times (Wilson and Hilferty's approximation)."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + 3.719 * spread**0.5) ** 3


@pytest.mark.parametrize(("level", "stories"), [(Errand, 6700), (Inventory, 1500), (Friends, 1500), (Promise, 300)])
def test_probabilities_add_up_to_1_at_every_point_of_ten_thousand_stories(level, stories):
    for seed in range(stories):
        finished, story = level.draw(Random(seed)), level()
        for event in finished.events:
            choices = story.choices()
            assert sum(choice.probability for choice in choices) == pytest.approx(1)
            assert all(choice.probability > 0 for choice in choices)
            assert sum(choice.allows(event) for choice in choices) == 1
            story.add(event)
        (end,) = [choice for choice in story.choices() if choice.kind is None]
        assert end.probability > 0


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_every_event_that_may_come_next_is_listed_once_and_they_add_up_to_1(level):
    for seed in range(10):
        story = level()
        for event in level.draw(Random(seed)).events:
            if story.events:  # the openings of promise are 91,200
                listed = story.next_events()
                assert len(set(listed)) == len(listed)
                assert sum(other.probability for other in listed) == pytest.approx(1)
            story.add(event)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_stories_are_drawn_as_often_as_their_probabilities_say(level):
    """Each event falls at a point of the cumulative probability that is uniform if the truth is the generator's."""
    random = Random(0)
    points: dict[str, list[float]] = defaultdict(list)
    for seed in range(250 if level is not Promise else 40):
        story = level()
        for event in [*level.draw(Random(f"drawn {seed}")).events, END]:
            if story.events:
                lower = 0.0
                for other in story.next_events():
                    if other == event:
                        points[story.events[-1].kind].append(lower + random.random() * other.probability)
                        break
                    lower += other.probability
            if event != END:
                story.add(event)
    for kind, drawn in points.items():
        bins = min(20, len(drawn) // 10)
        if bins < 4:
            continue
        counts, _ = np.histogram(drawn, bins=bins, range=(0, 1))
        expected = len(drawn) / bins
        statistic = float(((counts - expected) ** 2 / expected).sum())
        assert statistic < limit_of_chi_squared(bins - 1), kind


def test_the_probability_of_a_story_is_what_can_be_worked_out_by_hand():
    told = [
        ("Anna is a baker who lives near the mill.", 1 / (2 * 20 * 12 * 12)),  # 2 levels, 20 people, 12 jobs, 12 places
        ("Anna has lost her red hat.", 1 / 2 / 60),  # lost or sought; 6 adjectives, 10 nouns
        ("It is a warm morning.", 0.4 * 0.3),  # 40% tell of the morning, 30% of these are cold
        ("At the lake Anna meets a fox.", 1 / 11 / 10),  # any place but her home; 10 animals
        ("The fox has not seen the red hat.", 0.3),
        ("Anna goes to the hill and meets a deer.", 1 / 10 / 9),  # neither home nor lake, nor the fox
        ("The deer has seen the red hat at the church.", 1 / 9),  # nowhere that she has been
        ("Anna thanks the deer and goes to the church.", 1 / 2),
        ("Anna finds the red hat at the church.", 0.8),
        ("Anna goes back to the mill with the hat.", 1),
    ]
    text = ""
    for sentence, expected in told:
        (probability,) = [
            event.probability for event in truth(text, levels=(Errand, Friends)) if sentence in event.wordings
        ]
        assert probability == pytest.approx(expected), sentence
        text = f"{text} {sentence}"
    assert [(event.kind, event.probability, event.wordings) for event in truth(text)] == [
        ("end", 1, ())
    ]  # ten sentences


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("language", ["eng_Latn", "deu_Latn", "spa_Latn"])
def test_a_text_tells_its_reader_what_the_story_in_the_making_knows(level, language):
    random = Random(1)
    for seed in range(5):
        story, text = level(), ""
        for event in level.draw(Random(seed)).events:
            if story.events:
                read = truth(text)
                assert {(e, e.probability) for e in read} == {(e, e.probability) for e in story.next_events()}
                assert any(event.sentence(language, random) in other.wordings for other in read)
            story.add(event)
            text = f"{text} {event.sentence(language, random)}"


def test_nothing_follows_a_text_that_no_story_begins_with():
    beginning = "Anna is a baker who lives near the mill. Anna has lost her red hat."
    assert truth(beginning)
    for wrong in (
        beginning.replace("baker", "banker"),  # no word of the language
        beginning.replace("has lost her", "has lost his"),  # no sentence of it
        beginning.replace("Anna has", "Clara has"),  # a sentence, of someone else
        beginning + " Anna goes back to the mill with the hat.",  # too soon
        "Anna has lost her red hat.",  # no beginning
    ):
        assert truth(wrong) == [], wrong


def test_an_event_that_cannot_come_next_is_not_taken():
    story = Errand()
    assert story.take(parse("Anna is a baker who lives near the mill."))
    assert not story.take(parse("Clara has lost her red hat."))
    assert [event.kind for event in story.events] == ["open"]
    assert story.take(parse("Anna has lost her red hat."))


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_held_out_combinations_are_never_in_training_and_every_word_is(level):
    """A story's split depends on its first sentence alone."""
    random = Random(3)
    combinations, words = defaultdict(set), defaultdict(set)
    for _ in range(3000):
        story = level()
        story.add(random.choice(story.choices()).draw(random))
        combinations[story.split()].add(tuple(story.events[0].arguments.values()))
        words[story.split()].update(story.events[0].arguments.items())
    assert not combinations["train"] & (combinations["validation"] | combinations["test"])
    assert not combinations["validation"] & combinations["test"]
    assert words["test"] | words["validation"] <= words["train"]
    assert 0.02 < len(combinations["test"]) / sum(map(len, combinations.values())) < 0.08


@pytest.mark.parametrize(("level", "least"), [(Errand, 6), (Inventory, 10), (Friends, 10), (Promise, 40)])
def test_stories_are_as_long_as_their_level_says(level, least):
    lengths = {len(level.draw(Random(seed)).events) for seed in range(300)}
    assert least <= min(lengths) <= least + 4
    assert level.longest - 20 <= max(lengths) <= level.longest


def test_stories_of_every_level_are_followed_from_their_text():
    for level in LEVELS:
        for tale in tales(level, 20 if level is not Promise else 3, seed=5):
            story = follow([parse(sentence) for sentence in sentences_of(" ".join(tale.story))])
            assert isinstance(story, level)
            assert tale.gist[0] in story.gist()[0].wordings


@pytest.mark.parametrize("last", ["take", "lose"])
def test_nobody_picks_up_again_what_was_just_taken_or_lost(last):
    after = 0
    for seed in range(40):
        story, events = Inventory(), Inventory.draw(Random(seed)).events
        for event in events:
            story.add(event)
            if event.kind == last:
                item = event.arguments["goods"].split()[1]
                after += 1
                assert item not in {
                    following.arguments["goods"].split()[1]
                    for following in story.next_events()
                    if following.kind == "take"
                }
    assert after > 20
