"""Judge continuations of stories by their truth: is each sentence of the language, may it follow, what else might have.

A wrong sentence, one that is not of the language or cannot follow, is taken for anything that might have come there:
what follows is right if it may follow some event in its place, or the story without it. So a fault counts once.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import islice
from random import Random
from typing import Any, NamedTuple

from lcm.tales.grammar import END, LANGUAGES, Event
from lcm.tales.level import Level
from lcm.tales.truth import LEVELS, follow, parse

CANDIDATES = 60
"""Stories that may have been meant, where a sentence was wrong: more are never kept in mind, a sample of them."""


class Fact(NamedTuple):
    """A word that had to be said, because it was said before; `distance` sentences ago for the last time."""

    slot: str
    distance: int
    right: bool


@dataclass(frozen=True)
class Verdict:
    """One sentence of a continuation. `event` is None where the sentence is not of the language.

    consistent: the event has a probability above 0 after what was told before
    facts:      the words of the event that what was told before determines
    instead:    for a sentence that is not consistent, the possible sentence that is nearest to it, if it was asked for
    """

    sentence: str
    event: Event | None
    consistent: bool
    facts: list[Fact] = field(default_factory=list)
    instead: str = ""


@dataclass(frozen=True)
class Judged:
    """A continuation: a verdict for each sentence, and whether it ends, with one that is right, where a story may end.

    story: prompt and consistent sentences; it may have an event in the place of a wrong one
    """

    verdicts: list[Verdict]
    ends_well: bool
    story: Level

    def share(self, what: str) -> float:
        """Share of sentences that are "grammatical" or "consistent"; 0 without a sentence."""
        good = [v.event is not None if what == "grammatical" else v.consistent for v in self.verdicts]
        return sum(good) / len(good) if good else 0.0


def judge(
    prompt: Sequence[str],
    continuation: Sequence[str],
    ended: bool,
    levels: Sequence[type[Level]] = LEVELS,
    explain: str = "",
) -> Judged:
    """Judge a continuation of `prompt`, sentence by sentence. One in another language is not grammatical.

    ended:   it stopped by itself, not at a limit
    explain: a language, in which the verdict of a wrong sentence says what would have been right; takes a while

    Raises ValueError for a prompt that no story begins with.
    """
    read = [parse(sentence, levels) for sentence in prompt]
    story = follow(read, levels)
    if story is None:
        raise ValueError(f"{' '.join(prompt)!r}: no story of these levels begins like this")
    languages = [event.language for event in read[-1:] if event] or LANGUAGES
    random, verdicts, stories = Random(0), list[Verdict](), [story]
    for sentence in continuation:
        event = parse(sentence, levels, languages)
        facts = list(_facts(stories, event)) if event else []
        if event and (followed := [other for one in stories if (other := one.copy()).take(event)]):
            verdicts.append(Verdict(sentence, event, True, facts))
            stories = followed
        else:
            instead = nearest(sentence, stories, explain) if explain else ""
            verdicts.append(Verdict(sentence, event, False, facts, instead))
            stories = _with_anything(stories, random)
    may_end = any(choice.allows(END) for one in stories for choice in one.choices())
    ends_well = ended and may_end and all(v.consistent for v in verdicts[-1:])
    return Judged(verdicts, ends_well, stories[0])


def _with_anything(stories: Sequence[Level], random: Random) -> list[Level]:
    """The stories as they are, and each with any event that may come next; at most CANDIDATES, drawn at random."""
    longer = [other for story in stories for other in _longer(story, CANDIDATES // len(stories), random)]
    if len(stories) + len(longer) <= CANDIDATES:
        return [*stories, *longer]
    kept = [stories[0], *random.sample(stories[1:], (len(stories) - 1) // 10)]  # the first is without the wrong ones
    return kept + random.sample(longer, min(len(longer), CANDIDATES - len(kept)))


def _longer(story: Level, most: int, random: Random) -> Iterator[Level]:
    """Copies of the story with one more event: with each that may come next, or with `most` that are drawn."""
    few = sum(choice.count() for choice in story.choices()) <= most
    for event in story.next_events() if few else [story.next(random) for _ in range(most)]:
        if event.kind != END.kind:
            other = story.copy()
            other.add(event)
            yield other


def _facts(stories: Sequence[Level], event: Event) -> Iterator[Fact]:
    """Determined words of the event: those that all stories determine alike, by the choices it agrees with best."""

    def agreement(determined: dict[str, str]) -> int:
        return sum(event.arguments[slot] == name for slot, name in determined.items())

    found = []
    for story in stories:
        choices = [choice.determined() for choice in story.choices() if choice.kind is event.grammar]
        if choices:
            found.append(max(choices, key=agreement).items())
    for slot, name in found[0] if found else ():
        said = [i for i, told in enumerate(reversed(stories[0].events), 1) if _says(told, name)]
        if said and all((slot, name) in each for each in found):
            yield Fact(slot, said[0], event.arguments[slot] == name)


def _says(event: Event, name: str) -> bool:
    """True if the event names it; "red hat" names the hat, too."""
    return any(value == name or value.endswith(f" {name}") for value in event.arguments.values())


def nearest(sentence: str, stories: Sequence[Level], language: str, most: int = 3000) -> str:
    """The sentence that shares most words with `sentence`, in order, among the first `most` that might follow."""
    words = sentence.split()
    best, best_score = "", -1.0
    events = (event for story in stories for event in story.next_events() if event.kind != END.kind)
    for event in dict.fromkeys(islice(events, most)):
        for possible in event.told(language):
            score = SequenceMatcher(None, words, possible.split(), autojunk=False).ratio()
            if score > best_score:
                best, best_score = possible, score
    return best


def marked(sentence: str, instead: str) -> list[tuple[str, bool]]:
    """The words of `sentence`, each with True if it is wrong: if it is not in `instead` at its place.

    All are wrong where nothing might have been said instead.
    """
    words = sentence.split()
    right: set[int] = set()
    for block in SequenceMatcher(None, words, instead.split(), autojunk=False).get_matching_blocks():
        right.update(range(block.a, block.a + block.size))
    return [(word, place not in right) for place, word in enumerate(words)]


@dataclass(frozen=True)
class Spread:
    """Events drawn after one beginning, beside the truth.

    after:    the last sentence of the beginning
    distance: total variation between drawn and true events; a sentence that cannot follow is an event of its own
    coverage: share of the kinds, and of the words of each slot, that came up, of those that as many draws of the truth
              would show with a probability of 99%
    kinds:    for each kind of event its shares, drawn and true; "(wrong)" for sentences that cannot follow
    """

    after: str
    distance: float
    coverage: float
    kinds: list[dict[str, Any]]


def spread(story: Level, drawn: Sequence[Event | None], after: str = "") -> Spread:
    """Compare events drawn after a story's beginning with the truth; None stands for a sentence that cannot follow."""
    possible = {event: event.probability for event in story.next_events()}
    counts = Counter(event if event in possible else None for event in drawn)
    shares = {event: count / len(drawn) for event, count in counts.items()}
    distance = sum(abs(shares.get(event, 0.0) - p) for event, p in possible.items()) + shares.get(None, 0.0)
    modes: dict[tuple[str, ...], float] = defaultdict(float)
    for known, p in possible.items():
        for mode in _modes(known):
            modes[mode] += p
    due = {mode for mode, p in modes.items() if (1 - p) ** len(drawn) < 0.01}
    seen = {mode for event in counts if event for mode in _modes(event)}
    both: dict[str, dict[str, float]] = {}
    for event, share in shares.items():
        both.setdefault(event.kind if event else "(wrong)", {"drawn": 0.0, "true": 0.0})["drawn"] += share
    for event, p in possible.items():
        both.setdefault(event.kind, {"drawn": 0.0, "true": 0.0})["true"] += p
    kinds = [{"name": name, **found} for name, found in sorted(both.items(), key=lambda item: -item[1]["true"])]
    return Spread(after, distance / 2, len(seen & due) / max(1, len(due)), kinds)


def _modes(event: Event) -> Iterator[tuple[str, ...]]:
    yield (event.kind,)
    for slot, name in event.arguments.items():
        yield (event.kind, slot, name)
