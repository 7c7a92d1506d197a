"""Read stories: what a sentence says, and which events may follow a beginning, with their exact probabilities."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lcm.tales.errand import Errand
from lcm.tales.friends import Friends
from lcm.tales.grammar import LANGUAGES, Event, read, sentences_of
from lcm.tales.inventory import Inventory
from lcm.tales.level import Level
from lcm.tales.promise import Promise

LEVELS: tuple[type[Level], ...] = (Errand, Inventory, Friends, Promise)


def parse(sentence: str, levels: Sequence[type[Level]] = LEVELS, languages: Sequence[str] = LANGUAGES) -> Event | None:
    """The event that a sentence tells, with its `language` and the number of its `wording`.

    None for a sentence that is no wording of any event of these levels and languages: one changed letter is enough.
    """
    return read(sentence, tuple(kind for level in levels for kind in level.kinds), tuple(languages))


def truth(text: str, *, language: str = "eng_Latn", levels: Sequence[type[Level]] = LEVELS) -> list[Event]:
    """Every event that may follow this beginning of a story, with its `probability` and `wordings`; these add up to 1.

    The last is "end" where the story may stop. The first sentence says the level; before it, all are equally likely,
    and `language` is that of the wordings, which otherwise is that of the last sentence. Each of an event's wordings
    has an equal share of its probability. A text that no story begins with has nothing that may follow: [].
    """
    if not text.strip():
        return [
            replace(event, probability=event.probability / len(levels), language=language)
            for level in levels
            for event in level().next_events()
        ]
    events = [parse(sentence, levels) for sentence in sentences_of(text)]
    story = follow(events, levels)
    last = events[-1]
    return [replace(event, language=last.language) for event in story.next_events()] if story and last else []


def follow(events: Iterable[Event | None], levels: Sequence[type[Level]] = LEVELS) -> Level | None:
    """The story that these events tell so far; None where one of them cannot follow those before it."""
    events = list(events)
    for level in levels:
        story = level()
        if all(event is not None and story.take(event) for event in events):
            return story
    return None
