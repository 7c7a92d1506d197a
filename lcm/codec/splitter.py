"""Text → sentences. prepare, generate and evaluate share one splitter, so that they cut alike."""

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import nupunkt
from pydantic import BaseModel, Field, TypeAdapter

from lcm.codec.sat import SatModel, count_emojis, sat_split
from lcm.errors import UserError

END_OF_TEXT = "End of text."
"""The sentence whose vector ends every document (paper §2.3.1)."""

PROMPT_SUFFIX = "[MODEL]:"
"""The sentence whose vector ends the prompt of a pair."""

SEPARATORS = (r"\.\.\.|…", r"\n", "[!！]", "[?？]", "[;；]", "[:：]", "[.。]", "[,，、]", r"\t", r"\s")  # noqa: RUF001
"""Separators at which a long sentence may be cut, strongest first. A separator stays with the piece on its left."""

_CUTS = (*(rf"(?:{s})(?:(?<=\s)|[\"'”’»)\]]*(?=\s))" for s in SEPARATORS), *SEPARATORS)
"""First each separator at the end of a word, then inside words. Compiled on first use, by the cache of `re`."""
_PARAGRAPH_BREAK = re.compile(r"\n[^\S\n]*\n|\u2029")


class SplitterSettings(BaseModel, extra="forbid", frozen=True):
    """Settings of the splitter nupunkt. The manifest and the configuration of every model record them."""

    name: Literal["nupunkt"] = "nupunkt"
    max_characters: int = Field(256, ge=1)

    def __str__(self) -> str:
        return self.name


class SatSettings(BaseModel, extra="forbid", frozen=True):
    """Settings of SaT Capped (paper §2.2). fingerprint: hash of the model's files; empty for any model of this name."""

    name: Literal["sat"] = "sat"
    model: str = "sat-3l"
    threshold: float = Field(0.02, ge=0, le=1)
    max_characters: int = Field(256, ge=1)
    fingerprint: str = ""

    def __str__(self) -> str:
        return f"sat ({self.model} {self.fingerprint}, threshold {self.threshold})"


AnySplitter = Annotated[SplitterSettings | SatSettings, Field(discriminator="name")]


def splitter_settings(values: dict[str, Any]) -> SplitterSettings | SatSettings:
    """Settings from the output of their `model_dump`; nupunkt's where it has no name."""
    return TypeAdapter[SplitterSettings | SatSettings](AnySplitter).validate_python({"name": "nupunkt", **values})


class Splitter:
    """Cuts text into sentences that are within `max_characters` and accepted by `fits`.

    fits:   returns True where the codec can encode a sentence whole (default: any sentence)
    device: device of SaT's model; nupunkt uses none
    emojis: number of emojis removed from texts so far; nupunkt keeps them
    Raises UserError where SaT's model is not available, or is not the one of the settings.
    """

    def __init__(
        self,
        settings: SplitterSettings | SatSettings,
        fits: Callable[[str], bool] | None = None,
        device: str = "cpu",
    ) -> None:
        self.settings = settings
        self.fits = fits
        self.emojis = 0
        self._sat = load_sat(settings, device) if isinstance(settings, SatSettings) else None

    def split(self, text: str) -> list[str]:
        """Split a text into sentences with normalized blanks. Only white space (sat: and emojis) is lost.

        A blank line always ends a sentence. An empty text has none.
        """
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        return [piece for sentence in self._sentences(text) for piece in self._capped(sentence)]

    def _sentences(self, text: str) -> Iterator[str]:
        if isinstance(self.settings, SatSettings) and self._sat:
            self.emojis += count_emojis(text)
            yield from sat_split(
                text.replace("\u2029", "\n"), self._sat, self.settings.threshold, self.settings.max_characters
            )
        else:
            for paragraph in _PARAGRAPH_BREAK.split(text):
                yield from nupunkt.sent_tokenize(paragraph)

    def _capped(self, sentence: str) -> list[str]:
        """Cut a sentence in two, recursively, until every piece is short enough."""
        plain = " ".join(sentence.split())
        if len(plain) <= 1 or self._is_short_enough(plain):
            return [plain] if plain else []
        # Aim at equal pieces, as few as the cap allows: a sentence that needs three is cut near its first third.
        pieces = max(2, -(-len(plain) // self.settings.max_characters))
        place = _best_cut(sentence, round(len(sentence) * (pieces // 2) / pieces))
        return self._capped(sentence[:place]) + self._capped(sentence[place:])

    def _is_short_enough(self, sentence: str) -> bool:
        return len(sentence) <= self.settings.max_characters and (self.fits is None or self.fits(sentence))


def load_sat(settings: SatSettings, device: str = "cpu") -> SatModel:
    """Load SaT's model. Raises UserError where it is not available, or is not the one of the settings."""
    sat = SatModel(settings.model, device)
    if settings.fingerprint not in ("", sat.fingerprint):
        raise UserError(
            f"splitter: SaT model '{settings.model}' is another one ({sat.fingerprint}) than the text was cut with "
            f"({settings.fingerprint}); put that one there, or name its folder in codec.splitter.model of config.yaml"
        )
    return sat


def _best_cut(sentence: str, target: int) -> int:
    """The place nearest to `target` after one of the strongest separators in the sentence.

    Separators at the end of a word come first ("3.14" and "Dr.No" stay whole if anything else can be cut), then those
    inside words. Without any separator the place is `target` itself.
    """
    first = len(sentence) - len(sentence.lstrip())
    last = len(sentence.rstrip())
    for pattern in _CUTS:
        places = [m.end() for m in re.compile(pattern).finditer(sentence, first, last) if first < m.end() < last]
        if places:
            return min(places, key=lambda place: abs(place - target))
    return min(max(target, first + 1), last - 1)
