"""Words, wordings and events: how an event is told in each language, and how a sentence is read back.

A `Kind` of event has slots (who, place, …), each with its vocabulary, and wordings in every language: templates such as

    {place:at} {who} finds {thing}.

`{place:at}` stands for the form "at" of the place's word ("at the mill"); `{job:a@who}` for the form "a_f" or "a_m",
by the gender of the slot `who`. The first letter of a sentence is made a capital.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import product
from random import Random
from typing import Literal, NamedTuple

Language = Literal["eng_Latn", "deu_Latn", "spa_Latn"]
LANGUAGES: tuple[Language, ...] = ("eng_Latn", "deu_Latn", "spa_Latn")
GENDERS = ("f", "m")
_PLACEHOLDER = re.compile(r"\{(\w+)(?::(\w+))?(?:@(\w+))?\}")


@dataclass(frozen=True, eq=False)
class Word:
    """A word of the world: its name in events, and its forms by language ({"eng_Latn": {"at": "at the mill"}}).

    The form that a plain `{slot}` takes is called "". A person's word has a gender, "f" or "m", with which forms of
    other words agree.
    """

    name: str
    forms: Mapping[str, Mapping[str, str]] = field(repr=False)
    gender: str = ""


Vocabulary = Mapping[str, Word]
"""Words by name; two genders of one word ("the first of the two") have keys of their own and one name."""


class _Piece(NamedTuple):
    """A literal (slot is empty), or a word's form in a slot."""

    text: str
    slot: str
    agrees_with: str


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of event: its slots with their words, and its wordings in each language, parted by "|", equally likely.

    Raises ValueError for a wording that does not say every slot: such a sentence would not tell its event.
    """

    name: str
    slots: Mapping[str, Vocabulary]
    _: KW_ONLY
    eng: str = ""
    deu: str = ""
    spa: str = ""

    @cached_property
    def wordings(self) -> dict[str, tuple[str, ...]]:
        """The templates of each language that has some."""
        texts = zip(LANGUAGES, (self.eng, self.deu, self.spa), strict=True)
        return {language: tuple(map(str.strip, text.split("|"))) for language, text in texts if text}

    def __post_init__(self) -> None:
        if self.name == END.kind:
            raise ValueError(f"{self.name!r} is the kind of the end of a story; expected another name")
        for templates in self.wordings.values():
            for template in templates:
                said = {match[1] for match in _PLACEHOLDER.finditer(template)}
                if said != set(self.slots):
                    raise ValueError(f"{self.name}: {template!r} says {sorted(said)}; expected {sorted(self.slots)}")

    @cached_property
    def _pieces(self) -> dict[str, tuple[tuple[_Piece, ...], ...]]:
        return {language: tuple(tuple(_cut(t)) for t in ts) for language, ts in self.wordings.items()}

    @cached_property
    def _sentences(self) -> dict[tuple[str, int, tuple[Word, ...]], str]:
        return {}

    def sentence(self, words: tuple[Word, ...], language: str, wording: int) -> str:
        """One wording with `words`, which stand in the order of the slots."""
        key = (language, wording, words)
        if key not in self._sentences:
            by_slot = dict(zip(self.slots, words, strict=True))
            told = "".join(_told(piece, by_slot, language) for piece in self._pieces[language][wording])
            self._sentences[key] = told[0].upper() + told[1:]
        return self._sentences[key]

    def event(self, *words: Word, probability: float = 1.0) -> "Event":
        """The event with these words, in the order of the slots."""
        names = {slot: word.name for slot, word in zip(self.slots, words, strict=True)}
        return Event(self.name, names, probability, grammar=self, words=words)

    def parse(self, sentence: str, language: str) -> Iterator["Event"]:
        """Every reading of the sentence as an event of this kind in this language."""
        for wording, (literal, pattern, pieces) in enumerate(self._patterns.get(language, [])):
            if literal in sentence and (match := pattern.fullmatch(sentence)):
                yield from self._readings(match, pieces, language, wording)

    def _readings(
        self, match: re.Match[str], pieces: tuple[_Piece, ...], language: str, wording: int
    ) -> Iterator["Event"]:
        groups = iter(match.groups())
        surfaces = {piece: next(groups) for piece in pieces if piece.slot}
        first = {piece.slot: piece for piece in reversed(surfaces)}
        candidates = []
        for slot, words in self.slots.items():
            surface = surfaces[first[slot]].lower()
            fits = [w for w in words.values() if surface in [f.lower() for f in _forms(w, first[slot], language)]]
            candidates.append(fits)
        for read in product(*candidates):
            if self.sentence(read, language, wording) == match.string:
                yield replace(self.event(*read), language=language, wording=wording)

    @cached_property
    def _patterns(self) -> dict[str, list[tuple[str, re.Pattern[str], tuple[_Piece, ...]]]]:
        """For each wording its longest literal, and a wider regular expression with a group for each word."""
        return {
            language: [
                (
                    max((p.text for p in pieces[1:] if not p.slot), key=len, default=""),
                    self._pattern(pieces, language),
                    pieces,
                )
                for pieces in wordings
            ]
            for language, wordings in self._pieces.items()
        }

    def _pattern(self, pieces: tuple[_Piece, ...], language: str) -> re.Pattern[str]:
        parts = []
        for place, piece in enumerate(pieces):
            if piece.slot:
                forms = {form for word in self.slots[piece.slot].values() for form in _forms(word, piece, language)}
            else:
                forms = {piece.text}
            if place == 0:
                forms = {form[0].upper() + form[1:] for form in forms}
            text = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
            parts.append(f"({text})" if piece.slot else text)
        return re.compile("".join(parts))


@dataclass(frozen=True)
class Event:
    """Something that happens in a story. Two events are equal where kind and arguments are, whatever the wording."""

    kind: str
    arguments: Mapping[str, str]
    probability: float = field(default=1.0, compare=False)
    """Probability that the story goes on with it, given what was told before; 1 for an event that was parsed."""
    language: str = field(default="eng_Latn", compare=False)
    wording: int | None = field(default=None, compare=False)
    """Number of the wording that was parsed, among those of its kind in its language."""
    grammar: Kind | None = field(default=None, compare=False, repr=False)
    words: tuple[Word, ...] = field(default=(), compare=False, repr=False)

    def __hash__(self) -> int:
        return hash((self.kind, tuple(self.arguments.items())))

    @property
    def wordings(self) -> tuple[str, ...]:
        """Every sentence that tells it in its language, all equally likely; none for the end of a story."""
        return self.told(self.language)

    def told(self, language: str) -> tuple[str, ...]:
        """Every sentence that tells it in `language`; none where its kind has no wording in it."""
        if not self.grammar:
            return ()
        count = len(self.grammar.wordings.get(language, ()))
        return tuple(self.grammar.sentence(self.words, language, number) for number in range(count))

    def sentence(self, language: str, random: Random) -> str:
        """One of these sentences."""
        assert self.grammar
        number = int(random.random() * len(self.grammar.wordings[language]))
        return self.grammar.sentence(self.words, language, number)


END = Event("end", {})
"""The story stops here. It has no wordings."""


def sentences_of(text: str) -> list[str]:
    """Cut a text behind each full stop, question mark or exclamation mark that a space follows."""
    return [sentence for sentence in re.split(r"(?<=[.!?])\s+", text.strip()) if sentence]


@lru_cache(maxsize=100_000)
def read(sentence: str, kinds: tuple[Kind, ...], languages: tuple[str, ...]) -> Event | None:
    """The event of a sentence, the first that fits of these kinds; None where no wording of theirs is this sentence."""
    for language in languages:
        for kind in kinds:
            for event in kind.parse(sentence, language):
                return event
    return None


def _cut(template: str) -> Iterator[_Piece]:
    at = 0
    for match in _PLACEHOLDER.finditer(template):
        if match.start() > at:
            yield _Piece(template[at : match.start()], "", "")
        yield _Piece(match[2] or "", match[1], match[3] or "")
        at = match.end()
    if at < len(template):
        yield _Piece(template[at:], "", "")


def _told(piece: _Piece, words: Mapping[str, Word], language: str) -> str:
    if not piece.slot:
        return piece.text
    form = f"{piece.text}_{words[piece.agrees_with].gender}" if piece.agrees_with else piece.text
    return words[piece.slot].forms[language][form]


def _forms(word: Word, piece: _Piece, language: str) -> list[str]:
    """The forms that a word may take at this place: one, or one for each gender."""
    names = [f"{piece.text}_{gender}" for gender in GENDERS] if piece.agrees_with else [piece.text]
    return [word.forms[language][name] for name in names]
