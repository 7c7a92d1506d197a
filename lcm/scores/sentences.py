"""Sentences of a text to judge, by the splitter of the data; a model's and another system's are cut alike."""

from functools import cache

from lcm.codec.text import Splitter, SplitterSettings


@cache
def _splitter() -> Splitter:
    return Splitter(SplitterSettings(max_characters=10_000))  # whole sentences: these judges read what fits


def sentences(text: str) -> list[str]:
    """The sentences of a text, with normalized blanks."""
    return _splitter().split(text)
