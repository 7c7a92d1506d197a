"""Corpora of stories: documents, and pairs of a story and its gist. A seed gives the same stories in every language."""

from collections.abc import Iterator
from random import Random
from typing import Literal, NamedTuple

from lcm.tales.grammar import Event
from lcm.tales.level import Level

Gist = Literal["one", "three", "expand"]


class Tale(NamedTuple):
    """A story with its gists, each as a list of sentences."""

    id: str
    split: str
    story: list[str]
    gist: list[str]
    long_gist: list[str]

    def document(self) -> dict[str, str]:
        """A row of documents.jsonl."""
        return {"id": self.id, "text": " ".join(self.story), "split": self.split}

    def pair(self, gist: Gist = "one") -> dict[str, str]:
        """A row of pairs.jsonl: the story and its gist of one or three sentences, or a long gist to be expanded."""
        document, summary = self.story, self.gist if gist == "one" else self.long_gist
        if gist == "expand":
            document, summary = summary, document
        texts = {"document": " ".join(document), "summary": " ".join(summary)}
        return {"id": f"{self.id}-{gist}", **texts, "split": self.split}


def tales(level: type[Level], documents: int, language: str = "eng_Latn", seed: int = 0) -> Iterator[Tale]:
    """Draw stories. The id has level, language, seed and number: "errand-eng_Latn-1-000017"."""
    for number in range(documents):
        random = Random(f"{seed} {level.name} {number}")
        story = level.draw(random)
        told = [_told(events, language, random) for events in (story.events, story.gist(), story.long_gist())]
        yield Tale(f"{level.name}-{language}-{seed}-{number:06}", story.split(), *told)


def _told(events: list[Event], language: str, random: Random) -> list[str]:
    """A wording of each event, all equally likely."""
    return [event.sentence(language, random) for event in events]
