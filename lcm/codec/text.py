"""Text → sentences → pieces: `Splitter` cuts a text, and `Tokenizer` (SentencePiece) a sentence.

prepare, generate and evaluate share one splitter, so that they cut alike.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import nupunkt
import sentencepiece
from pydantic import BaseModel, Field, TypeAdapter

from lcm.codec.sat import SatModel, remove_emojis, sat_split
from lcm.errors import UserError

END_OF_TEXT = "End of text."
"""The sentence whose vector ends every document (paper §2.3.1)."""
PROMPT_SUFFIX = "[MODEL]:"
"""The sentence whose vector ends the prompt of a pair."""
LENGTHS = (1, 2, 5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
"""Lengths of an answer that a prompt can ask for, in percent of the document's sentences."""
_WISHES = {percent: f"Answer in about {percent} percent of the length." for percent in LENGTHS}
STOPS = "。！？｡।॥۔؟։።፧፨။།༎។៕᱾᱿"  # noqa: RUF001
"""Ends of sentences in scripts that put no blank after them, or that nupunkt does not know."""
CLOSING = "」』”’\"')）】》〉»\\]"  # noqa: RUF001
"""Marks that belong to the sentence before them."""
RULE = 2
"""Version of the rule by which text is cut, in the record of an unfinished data set; 2 knows the stops above."""
NO_STOPS = {"Thai": "Thai", "Laoo": "Lao"}
"""Scripts, as in FLORES codes, in which nothing ends a sentence but what it means."""
SEPARATORS = (
    r"\.\.\.|…", r"\n", "[!！]", "[?？؟]", "[;；؛፤]", "[:：፡፥]", f"[.{STOPS}]", "[,，、،፣၊՝]", r"\t", r"\s"  # noqa: RUF001
)  # fmt: skip
"""Separators at which a long sentence may be cut, strongest first. A separator stays with the piece on its left."""
_CUTS = (*(rf"(?:{s})(?:(?<=\s)|[\"'”’»)\]]*(?=\s))" for s in SEPARATORS), *SEPARATORS)
"""First each separator at the end of a word, then inside words. Compiled on first use, by the cache of `re`."""
_SENTENCE = re.compile(rf"[^{STOPS}]*[{STOPS}](?:\s*[{STOPS}])*[{CLOSING}]*|[^{STOPS}]+")
_PARAGRAPH_BREAK = re.compile(r"\n[^\S\n]*\n|\u2029")


def length_wish(ratio: float) -> str:
    """The sentence at the beginning of a prompt that asks for an answer of this length: the nearest of LENGTHS."""
    return _WISHES[min(LENGTHS, key=lambda percent: abs(math.log(percent / (100 * ratio))))]


def is_length_wish(sentence: str) -> bool:
    """True for a sentence of `length_wish`, which is no text of its document."""
    return sentence in _WISHES.values()


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
    blocks: number of cuts so far in the middle of a sentence that has no separator to cut at
    Raises UserError where SaT's model is not available, or is not the one of the settings.
    """

    def __init__(
        self, settings: SplitterSettings | SatSettings, fits: Callable[[str], bool] | None = None, device: str = "cpu"
    ) -> None:
        self.settings, self.fits, self.emojis, self.blocks = settings, fits, 0, 0
        self._sat = load_sat(settings, device) if isinstance(settings, SatSettings) else None

    def split(self, text: str) -> list[str]:
        """Split a text into sentences with normalized blanks. Only white space (sat: and emojis) is lost.

        A blank line always ends a sentence. An empty text has none.
        """
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        return [piece for sentence in self._sentences(text) for piece in self._capped(sentence)]

    def _sentences(self, text: str) -> Iterator[str]:
        if isinstance(self.settings, SatSettings) and self._sat:
            text, emojis = remove_emojis(text.replace("\u2029", "\n"))
            self.emojis += emojis
            yield from sat_split(text, self._sat, self.settings.threshold, self.settings.max_characters)
        else:
            for paragraph in _PARAGRAPH_BREAK.split(text):
                for sentence in nupunkt.sent_tokenize(paragraph):
                    yield from _SENTENCE.findall(sentence)

    def _capped(self, sentence: str) -> list[str]:
        """Cut a sentence in two, recursively, until every piece is short enough."""
        plain, most = " ".join(sentence.split()), self.settings.max_characters
        if len(plain) <= 1 or (len(plain) <= most and (self.fits is None or self.fits(plain))):
            return [plain] if plain else []
        # Aim at equal pieces, as few as the cap allows: a sentence that needs three is cut near its first third.
        pieces = max(2, -(-len(plain) // most))
        place, is_boundary = _best_cut(sentence, round(len(sentence) * (pieces // 2) / pieces))
        self.blocks += not is_boundary
        return self._capped(sentence[:place]) + self._capped(sentence[place:])


def load_sat(settings: SatSettings, device: str = "cpu") -> SatModel:
    """Load SaT's model. Raises UserError where it is not available, or is not the one of the settings."""
    sat = SatModel(settings.model, device)
    if settings.fingerprint not in ("", sat.fingerprint):
        raise UserError(
            f"splitter: SaT model '{settings.model}' is another one ({sat.fingerprint}) than the text was cut with "
            f"({settings.fingerprint}); put that one there, or name its folder in codec.splitter.model of config.yaml"
        )
    return sat


def check_language(settings: SplitterSettings | SatSettings, lang: str) -> None:
    """Raise UserError for a language in which the splitter would find no sentence. lang: FLORES code, as tha_Thai"""
    name = NO_STOPS.get(lang.rpartition("_")[2])
    if name and isinstance(settings, SplitterSettings):
        raise UserError(
            f"--lang={lang}: {name} has no mark that ends a sentence, and the splitter nupunkt would cut blocks of "
            f"{settings.max_characters} characters; prepare with --splitter sat"
        )


def _best_cut(sentence: str, target: int) -> tuple[int, bool]:
    """The place nearest to `target` after one of the strongest separators in the sentence.

    Separators at the end of a word come first ("3.14" and "Dr.No" stay whole if anything else can be cut), then those
    inside words. Without any separator the place is `target` itself, and the second value False.
    """
    first, last = len(sentence) - len(sentence.lstrip()), len(sentence.rstrip())
    for pattern in _CUTS:
        places = [m.end() for m in re.compile(pattern).finditer(sentence, first, last) if first < m.end() < last]
        if places:
            return min(places, key=lambda place: abs(place - target)), True
    return min(max(target, first + 1), last - 1), False


class Tokenizer:
    """Sentences ↔ pieces, with SONAR's language tokens.

    The encoder reads [language] pieces </s>; the decoder starts from </s> [language] and ends with </s>. config.json
    has: `special` and `languages`, the ids of these tokens; `piece_shift`, the offset of the file's ids (NLLB's file
    has no padding token, which comes before all its pieces); `banned`, the ids that no decoder may produce (default:
    padding, begin, the language tokens and the reserved ones; unknown is a piece like any other).
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        """Raises KeyError for a missing entry of the configuration, UserError for a file that is no vocabulary."""
        special, self._shift, banned = config["special"], config.get("piece_shift", 0), config.get("banned")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path}: not a SentencePiece vocabulary; copy it again") from error
        self.end = special["eos"]
        self.languages: dict[str, int] = dict(config["languages"])
        self.written = range(self._shift, self._shift + self._model.get_piece_size())
        """Ids of pieces of text."""
        if banned is None:
            controls = (special["pad"], special["bos"])
            banned = [i for i in range(config["model"]["vocab"]) if i in controls or i not in self.written]
        self.banned: list[int] = list(banned)

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Pieces of each sentence, without language and end. Raises UserError for a string of invalid Unicode."""
        for number, sentence in enumerate(sentences):
            try:
                sentence.encode("utf-8")
            except UnicodeEncodeError as error:
                raise UserError(f"sentence {number} is not text: {sentence[:60]!r} is half of a character") from error
        # One thread: callers use more cores by running several processes.
        rows: list[list[int]] = self._model.encode(list(sentences), num_threads=1)
        return [[piece + self._shift for piece in row] for row in rows] if self._shift else rows

    def decode(self, pieces: list[int]) -> str:
        """Text of the pieces; tokens that are not text, such as languages, are dropped."""
        return self._model.decode([piece - self._shift for piece in pieces if piece in self.written])

    def starts_word(self, piece: int) -> bool:
        """True where a word begins with this piece; False for tokens that are not text."""
        return piece in self.written and self._model.id_to_piece(piece - self._shift).startswith("▁")

    def language(self, lang: str) -> int:
        """Token of a language such as eng_Latn. Raises UserError naming the known ones, the most similar first."""
        if lang not in self.languages:
            alike = sorted(self.languages, key=lambda code: (code[:3] != lang[:3], code[:1] != lang[:1]))
            known = ", ".join(alike[:8]) + (f", … ({len(alike)} in all)" if len(alike) > 8 else "")
            raise UserError(f"lang={lang!r}: this codec knows {known}")
        return self.languages[lang]
