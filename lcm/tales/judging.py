"""Judge continuations of stories by their truth: is each sentence of the language, may it follow, what else might have.

A sentence that cannot follow is left out of what the next ones are judged by, as if it had not been told.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from lcm.tales.grammar import END, LANGUAGES, Event
from lcm.tales.level import Choice, Level
from lcm.tales.truth import LEVELS, follow, parse


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

    story: prompt and consistent sentences
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
    verdicts = []
    for sentence in continuation:
        event = parse(sentence, levels, languages)
        facts = list(_facts(story, event)) if event else []
        if event and story.take(event):
            verdicts.append(Verdict(sentence, event, True, facts))
        else:
            instead = nearest(sentence, story, explain) if explain else ""
            verdicts.append(Verdict(sentence, event, False, facts, instead))
    ends_well = ended and all(v.consistent for v in verdicts[-1:]) and any(c.allows(END) for c in story.choices())
    return Judged(verdicts, ends_well, story)


def _facts(story: Level, event: Event) -> Iterator[Fact]:
    """The determined words of the event, by the choice of its kind that it agrees with best."""
    choices = [choice for choice in story.choices() if choice.kind is event.grammar]
    if not choices:
        return

    def agreement(choice: Choice) -> int:
        return sum(event.arguments[slot] == name for slot, name in choice.determined().items())

    for slot, name in max(choices, key=agreement).determined().items():
        said = [i for i, told in enumerate(reversed(story.events), 1) if _says(told, name)]
        if said:
            yield Fact(slot, said[0], event.arguments[slot] == name)


def _says(event: Event, name: str) -> bool:
    """True if the event names it; "red hat" names the hat, too."""
    return any(value == name or value.endswith(f" {name}") for value in event.arguments.values())


def nearest(sentence: str, story: Level, language: str, most: int = 3000) -> str:
    """The sentence that shares most words with `sentence`, in order, among the first `most` that might follow."""
    words = sentence.split()
    best, best_score = "", -1.0
    for event, _ in zip(story.next_events(), range(most), strict=False):
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
