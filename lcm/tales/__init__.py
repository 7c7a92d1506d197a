"""Stories whose truth is known: every sentence has an exact probability given those before it.

    tale = next(tales(Errand, documents=1))             # a story, its split, and its gists
    truth("Anna is a baker who lives near the mill.")    # what may follow, with .probability and .wordings
    parse("Anna has lost her red hat.")                  # Event(kind="lost", arguments={"who": "Anna", …})

Read grammar first (words, kinds of events, wordings), then level (which events may come next) and errand, a level;
inventory, friends and promise are others; words and household are what they speak of. truth reads texts, corpus writes
them, judging compares a continuation with the truth. Nothing here knows vectors, models or torch.
"""

from lcm.tales.corpus import Tale, tales
from lcm.tales.errand import Errand
from lcm.tales.friends import Friends
from lcm.tales.grammar import END, LANGUAGES, Event, Kind, Language, Vocabulary, Word, sentences_of
from lcm.tales.inventory import Inventory
from lcm.tales.level import Choice, Level
from lcm.tales.promise import Promise
from lcm.tales.truth import LEVELS, follow, parse, truth

__all__ = [
    "END",
    "LANGUAGES",
    "LEVELS",
    "Choice",
    "Errand",
    "Event",
    "Friends",
    "Inventory",
    "Kind",
    "Language",
    "Level",
    "Promise",
    "Tale",
    "Vocabulary",
    "Word",
    "follow",
    "judging",
    "parse",
    "sentences_of",
    "tales",
    "truth",
]
