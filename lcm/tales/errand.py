"""Errand: someone looks for a thing, an animal says where it is, and the way home is remembered. 6 to 10 sentences."""

from collections.abc import Sequence
from typing import ClassVar

from lcm.tales.grammar import Event, Kind, Word
from lcm.tales.level import Choice, Level, everyone, others
from lcm.tales.words import ANIMALS, FEELINGS, JOBS, MORNINGS, NOUN_OF, NOUNS, PEOPLE, PLACES, THINGS

OPEN = Kind(
    "open",
    {"who": PEOPLE, "job": JOBS, "home": PLACES},
    eng="{who} is a {job} who lives {home:near}. | {home:near} there lives a {job} named {who}.",
    deu="{who} ist {job@who} und wohnt {home:near}. | {home:near} wohnt {job:a@who} namens {who}.",
    spa="{who} es {job@who} y vive {home:near}. | {home:near} vive {job:a@who} que se llama {who}.",
)
LOST = Kind(
    "lost",
    {"who": PEOPLE, "thing": THINGS},
    eng="{who} has lost {who:own} {thing}. | {who} cannot find {who:own} {thing}.",
    deu="{who} hat {thing:own@who} verloren. | {who} kann {thing:own@who} nicht finden.",
    spa="{who} ha perdido {who:own} {thing}. | {who} no encuentra {who:own} {thing}.",
)
SEEK = Kind(
    "seek",
    {"who": PEOPLE, "thing": THINGS},
    eng="{who} is looking for {thing:a}. | {who} hopes to find {thing:a}.",
    deu="{who} sucht {thing:a}. | {who} möchte {thing:a} finden.",
    spa="{who} busca {thing:a}. | {who} quiere encontrar {thing:a}.",
)
MORNING = Kind(
    "morning",
    {"morning": MORNINGS},
    eng="It is a {morning} morning. | The morning is {morning}.",
    deu="Es ist ein {morning:a} Morgen. | Der Morgen ist {morning}.",
    spa="Es una mañana {morning}. | La mañana es {morning}.",
)
MEET = Kind(
    "meet",
    {"who": PEOPLE, "place": PLACES, "animal": ANIMALS},
    eng="{place:at} {who} meets {animal:a}. | {who} goes {place:to} and meets {animal:a}.",
    deu="{place:at} trifft {who} {animal:a}. | {who} geht {place:into} und trifft {animal:a}.",
    spa="{place:at} {who} se encuentra con {animal:a}. | {who} va {place:to} y se encuentra con {animal:a}.",
)
UNSURE = Kind(
    "unsure",
    {"animal": ANIMALS, "thing": THINGS},
    eng="{animal:the} has not seen {thing:the}. | {animal:the} does not know where {thing:the} is.",
    deu="{animal:subject} hat {thing:the} nicht gesehen. | {animal:subject} weiß nicht, wo {thing:subject} ist.",
    spa="{animal:the} no ha visto {thing:the}. | {animal:the} no sabe dónde está {thing:the}.",
)
KNOWS = Kind(
    "knows",
    {"animal": ANIMALS, "thing": THINGS, "place": PLACES},
    eng="{animal:the} says that {thing:the} is {place:at}. | {animal:the} has seen {thing:the} {place:at}.",
    deu="{animal:subject} sagt, dass {thing:subject} {place:at} ist. "
    "| {animal:subject} hat {thing:the} {place:at} gesehen.",
    spa="{animal:the} dice que {thing:the} está {place:at}. | {animal:the} ha visto {thing:the} {place:at}.",
)
THANK = Kind(
    "thank",
    {"who": PEOPLE, "animal": ANIMALS, "place": PLACES},
    eng="{who} thanks {animal:the} and goes {place:to}. | {who} says thank you to {animal:the} and walks {place:to}.",
    deu="{who} dankt {animal:dative} und geht {place:into}. | {who} sagt {animal:dative} Danke und läuft {place:into}.",
    spa="{who} da las gracias {animal:to} y va {place:to}. "
    "| {who} le agradece la ayuda {animal:to} y camina {place:until}.",
)
FIND = Kind(
    "find",
    {"who": PEOPLE, "thing": THINGS, "place": PLACES},
    eng="{place:at} {who} finds {thing:the}. | {who} finds {thing:the} {place:at}.",
    deu="{place:at} findet {who} {thing:the}. | {who} findet {thing:the} {place:at}.",
    spa="{place:at} {who} encuentra {thing:the}. | {who} encuentra {thing:the} {place:at}.",
)
GONE = Kind(
    "gone",
    {"thing": THINGS, "place": PLACES},
    eng="But {thing:the} is not {place:at}. | But {thing:the} is no longer {place:at}.",
    deu="Aber {thing:subject} ist nicht {place:at}. | Aber {thing:subject} ist nicht mehr {place:at}.",
    spa="Pero {thing:the} no está {place:at}. | Pero {thing:the} ya no está {place:at}.",
)
RETURN = Kind(
    "return",
    {"who": PEOPLE, "noun": NOUNS, "home": PLACES},
    eng="{who} goes back {home:to} with {noun:the}. | In the evening {who} walks back {home:to} with {noun:the}.",
    deu="{who} geht mit {noun:dative} zurück {home:to}. | Am Abend geht {who} mit {noun:dative} zurück {home:to}.",
    spa="{who} vuelve {home:to} con {noun:the}. | Por la tarde {who} vuelve {home:to} con {noun:the}.",
)
RETURN_WITHOUT = Kind(
    "return without",
    {"who": PEOPLE, "noun": NOUNS, "home": PLACES},
    eng="{who} goes back {home:to} without {noun:the}. | In the evening {who} walks back {home:to} without {noun:the}.",
    deu="{who} geht ohne {noun:the} zurück {home:to}. | Am Abend geht {who} ohne {noun:the} zurück {home:to}.",
    spa="{who} vuelve {home:to} sin {noun:the}. | Por la tarde {who} vuelve {home:to} sin {noun:the}.",
)
FEEL = Kind(
    "feel",
    {"who": PEOPLE, "job": JOBS, "feeling": FEELINGS},
    eng="{who} the {job} is {feeling}. | In the end {who} the {job} is {feeling}.",
    deu="{job:the@who} {who} ist {feeling}. | Am Ende ist {job:the@who} {who} {feeling}.",
    spa="{job:the@who} {who} está {feeling@who}. | Al final {job:the@who} {who} está {feeling@who}.",
)
FOUND = Kind(
    "gist: found",
    {"who": PEOPLE, "job": JOBS, "thing": THINGS, "place": PLACES},
    eng="{who} the {job} finds {thing:the} {place:at}.",
    deu="{job:the@who} {who} findet {thing:the} {place:at}.",
    spa="{job:the@who} {who} encuentra {thing:the} {place:at}.",
)
NOT_FOUND = Kind(
    "gist: not found",
    {"who": PEOPLE, "job": JOBS, "thing": THINGS},
    eng="{who} the {job} does not find {thing:the}.",
    deu="{job:the@who} {who} findet {thing:the} nicht.",
    spa="{job:the@who} {who} no encuentra {thing:the}.",
)
WANTED = Kind(
    "gist: wanted",
    {"who": PEOPLE, "job": JOBS, "thing": THINGS},
    eng="{who} the {job} is looking for {thing:a}.",
    deu="{job:the@who} {who} sucht {thing:a}.",
    spa="{job:the@who} {who} busca {thing:a}.",
)
HELPED = Kind(
    "gist: helped",
    {"place": PLACES, "animal": ANIMALS},
    eng="{place:at} {animal:a} helps.",
    deu="{place:at} hilft {animal:a_subject}.",
    spa="{place:at} le ayuda {animal:a}.",
)
HOME_WITH = Kind(
    "gist: home with",
    {"who": PEOPLE, "noun": NOUNS, "place": PLACES},
    eng="{who} finds {noun:the} {place:at} and goes home.",
    deu="{who} findet {noun:the} {place:at} und geht nach Hause.",
    spa="{who} encuentra {noun:the} {place:at} y vuelve a casa.",
)
HOME_WITHOUT = Kind(
    "gist: home without",
    {"who": PEOPLE, "noun": NOUNS},
    eng="{who} goes home without {noun:the}.",
    deu="{who} geht ohne {noun:the} nach Hause.",
    spa="{who} vuelve a casa sin {noun:the}.",
)


class Errand(Level):
    """A thing is wanted, one or two animals are met, the thing is found or gone, and the way leads home."""

    name: ClassVar[str] = "errand"
    longest: ClassVar[int] = 10
    kinds: ClassVar[tuple[Kind, ...]] = (
        OPEN, LOST, SEEK, MORNING, MEET, UNSURE, KNOWS, THANK, FIND, GONE, RETURN, RETURN_WITHOUT, FEEL,
        FOUND, NOT_FOUND, WANTED, HELPED, HOME_WITH, HOME_WITHOUT,
    )  # fmt: skip

    who: Word
    job: Word
    home: Word
    thing: Word
    animal: Word
    met_at: Word
    place: Word
    """The place where the thing is said to be."""

    def choices(self) -> Sequence[Choice]:
        last = self.events[-1].kind if self.events else ""
        match last:
            case "":
                return [Choice(1.0, OPEN, (everyone(PEOPLE), everyone(JOBS), everyone(PLACES)))]
            case "open":
                things = everyone(THINGS)
                return [Choice(0.5, LOST, (self.who, things)), Choice(0.5, SEEK, (self.who, things))]
            case "lost" | "seek":
                weights = dict(zip(MORNINGS.values(), (0.4, 0.3, 0.2, 0.1), strict=True))
                return [Choice(0.4, MORNING, (weights,)), *self._meetings(0.6)]
            case "morning" | "unsure":
                return self._meetings(1.0)
            case "meet":
                met_at = [event.words[1] for event in self.events if event.kind == "meet"]
                where = others(PLACES, self.home, *met_at)
                knows = (self.animal, self.thing, where)
                if any(event.kind == "unsure" for event in self.events):
                    return [Choice(1.0, KNOWS, knows)]
                return [Choice(0.3, UNSURE, (self.animal, self.thing)), Choice(0.7, KNOWS, knows)]
            case "knows":
                return [Choice(0.5, THANK, (self.who, self.animal, self.place)), *self._arrivals(0.5)]
            case "thank":
                return self._arrivals(1.0)
            case "find" | "gone":
                kind = RETURN if last == "find" else RETURN_WITHOUT
                return [Choice(1.0, kind, (self.who, NOUN_OF[self.thing], self.home))]
            case "return" | "return without":
                if len(self.events) == self.longest:
                    return [Choice(1.0)]
                names = {"happy": 0.6, "proud": 0.4} if last == "return" else {"sad": 0.7, "tired": 0.3}
                feelings = {FEELINGS[name]: share for name, share in names.items()}
                return [Choice(0.5, FEEL, (self.who, self.job, feelings)), Choice(0.5)]
            case _:
                return [Choice(1.0)]

    def _meetings(self, probability: float) -> list[Choice]:
        if not any(event.kind == "meet" for event in self.events):
            return [Choice(probability, MEET, (self.who, others(PLACES, self.home), everyone(ANIMALS)))]
        places, animals = others(PLACES, self.home, self.met_at), others(ANIMALS, self.animal)
        return [Choice(probability, MEET, (self.who, places, animals))]

    def _arrivals(self, probability: float) -> list[Choice]:
        return [
            Choice(0.8 * probability, FIND, (self.who, self.thing, self.place)),
            Choice(0.2 * probability, GONE, (self.thing, self.place)),
        ]

    def add(self, event: Event) -> None:
        super().add(event)
        match event.kind:
            case "open":
                self.who, self.job, self.home = event.words
            case "lost" | "seek":
                self.thing = event.words[1]
            case "meet":
                _, self.met_at, self.animal = event.words
            case "knows":
                self.place = event.words[2]

    @property
    def _found(self) -> bool:
        return any(event.kind == "find" for event in self.events)

    def gist(self) -> list[Event]:
        if self._found:
            return [FOUND.event(self.who, self.job, self.thing, self.place)]
        return [NOT_FOUND.event(self.who, self.job, self.thing)]

    def long_gist(self) -> list[Event]:
        noun = NOUN_OF[self.thing]
        end = HOME_WITH.event(self.who, noun, self.place) if self._found else HOME_WITHOUT.event(self.who, noun)
        return [WANTED.event(self.who, self.job, self.thing), HELPED.event(self.met_at, self.animal), end]
