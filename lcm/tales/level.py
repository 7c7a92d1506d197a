"""Levels: which events may come next in a story, with their probabilities, and how a story is drawn.

A level is a subclass of `Level`. An instance is one story in the making: `choices` says which kinds of events may come
next, `add` takes the event that came. Everything that `choices` looks at has been said in the story, so the probability
of the next sentence is exact for a reader, too.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import product
from random import Random
from typing import ClassVar, TypeVar

from lcm.tales.grammar import END, Event, Kind, Vocabulary, Word

Words = Word | Sequence[Word] | Mapping[Word, float]
"""The words that a slot may take: one, several that are equally likely, or words with their probabilities."""


@dataclass(frozen=True)
class Choice:
    """One kind of event that may come next: its probability, and the words of each slot, independent of one another.

    Without a kind, the story ends.
    """

    probability: float
    kind: Kind | None = None
    words: tuple[Words, ...] = ()

    def events(self) -> Iterator[Event]:
        """Every event of this kind that may come next, with its probability."""
        if self.kind is None:
            yield replace(END, probability=self.probability)
            return
        for drawn in product(*map(_weighted, self.words)):
            probability = self.probability
            for _, share in drawn:
                probability *= share
            yield self.kind.event(*(word for word, _ in drawn), probability=probability)

    def count(self) -> int:
        """The number of `events`."""
        return math.prod(len(_weighted(words)) for words in self.words)

    def draw(self, random: Random) -> Event:
        if self.kind is None:
            return END
        return self.kind.event(*(_drawn(words, random) for words in self.words))

    def allows(self, event: Event) -> bool:
        """True where the event has a probability above 0 under this choice."""
        if self.kind is None or event.grammar is not self.kind:
            return self.kind is None and event.kind == END.kind
        return all(
            any(word.name == other.name for other, _ in _weighted(words))
            for word, words in zip(event.words, self.words, strict=True)
        )

    def known(self, event: Event) -> Event:
        """The event with this choice's words: a sentence may leave open of which gender "the first" is."""
        words = [
            next(other for other, _ in _weighted(words) if other.name == word.name)
            for word, words in zip(event.words, self.words, strict=True)
        ]
        return replace(event, words=tuple(words))

    def determined(self) -> dict[str, str]:
        """Slots that can only take one word, because of what was said before, with that word's name."""
        slots = zip(self.kind.slots, self.words, strict=True) if self.kind else ()
        return {slot: words.name for slot, words in slots if isinstance(words, Word)}


LevelT = TypeVar("LevelT", bound="Level")


class Level(ABC):
    """A story in the making. Subclasses say what may follow; `events` is what has been told.

    A story's first event decides whether it is held out: the numbers of its words add up to a multiple of 20 for
    validation, to one more for test. So every word is met in training, and these combinations never.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[Kind, ...]]
    """Every kind of event, those of the gists included."""
    longest: ClassVar[int] = 128
    """Sentences of the longest story."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    @abstractmethod
    def choices(self) -> Sequence[Choice]:
        """Kinds of events that may come next; the probabilities add up to 1."""

    def add(self, event: Event) -> None:
        """Append an event that `choices` allows. Overrides remember what their `choices` look at, too."""
        self.events.append(event)

    @abstractmethod
    def gist(self) -> list[Event]:
        """The finished story in one sentence."""

    @abstractmethod
    def long_gist(self) -> list[Event]:
        """The finished story in three sentences."""

    @classmethod
    def draw(cls, random: Random) -> "Level":
        """A whole story."""
        story = cls()
        story.finish(random)
        return story

    def finish(self, random: Random) -> None:
        """Draw the rest of this story."""
        while (event := self.next(random)) != END:
            self.add(event)

    def next(self, random: Random) -> Event:
        """Draw an event that may come next, without adding it."""
        choices = self.choices()
        (choice,) = random.choices(choices, [c.probability for c in choices]) if len(choices) > 1 else choices
        return choice.draw(random)

    def take(self, event: Event) -> bool:
        """Add the event if it may come next. False, and nothing is added, where its probability is 0."""
        choice = next((choice for choice in self.choices() if choice.allows(event)), None)
        if choice and choice.kind:
            self.add(choice.known(event))
        return choice is not None

    def copy(self: LevelT) -> LevelT:
        """Another story that has told the same so far. Copies the lists, dicts and sets of a subclass, too."""
        other = copy(self)
        vars(other).update((n, v.copy()) for n, v in vars(self).items() if isinstance(v, list | dict | set))
        return other

    def next_events(self) -> list[Event]:
        """Every event that may come next, with its probability; these add up to 1."""
        return [event for choice in self.choices() for event in choice.events()]

    def split(self) -> str:
        """train, validation or test, by the combination of words in the first event."""
        first = self.events[0]
        assert first.grammar
        number = sum(
            list(vocabulary.values()).index(word)
            for vocabulary, word in zip(first.grammar.slots.values(), first.words, strict=True)
        )
        return {0: "validation", 1: "test"}.get(number % 20, "train")


def others(vocabulary: Vocabulary, *without: Word) -> tuple[Word, ...]:
    """The words of a vocabulary but for some."""
    return tuple(word for word in vocabulary.values() if word not in without)


def everyone(vocabulary: Vocabulary) -> tuple[Word, ...]:
    return tuple(vocabulary.values())


def _weighted(words: Words) -> Sequence[tuple[Word, float]]:
    if isinstance(words, Word):
        return [(words, 1.0)]
    return list(words.items()) if isinstance(words, Mapping) else [(word, 1 / len(words)) for word in words]


def _drawn(words: Words, random: Random) -> Word:
    if isinstance(words, Word):
        return words
    if isinstance(words, Mapping):
        return random.choices(list(words), list(words.values()))[0]
    return words[int(random.random() * len(words))]
