"""Friends: two people in turn, by name, as she or he, or as the first and the second of the two. 10 to 20 sentences."""

from collections.abc import Sequence
from typing import ClassVar

from lcm.tales.grammar import Event, Kind, Word
from lcm.tales.level import Choice, Level, Words, others
from lcm.tales.words import CLOTHES, JOBS, MENTIONS, PEOPLE, PETS, PLACES

ABOUT = Kind(
    "about",
    {"one": PEOPLE, "other": PEOPLE},
    eng="This is a story about {one} and {other}. | In this story you meet {one} and {other}.",
    deu="Diese Geschichte handelt von {one} und {other}. | In dieser Geschichte geht es um {one} und {other}.",
    spa="Esta historia trata de {one} y {other}. | En esta historia aparecen {one} y {other}.",
)
HOME = Kind(
    "home",
    {"who": MENTIONS, "home": PLACES},
    eng="{who} lives {home:near}. | {who} has a house {home:near}.",
    deu="{who} wohnt {home:near}. | {who} hat ein Haus {home:near}.",
    spa="{who} vive {home:near}. | {who} tiene una casa {home:near}.",
)
JOB = Kind(
    "job",
    {"who": MENTIONS, "job": JOBS},
    eng="{who} is a {job}. | {who} works as a {job}.",
    deu="{who} ist {job@who}. | {who} arbeitet als {job@who}.",
    spa="{who} es {job@who}. | {who} trabaja de {job@who}.",
)
PET = Kind(
    "pet",
    {"who": MENTIONS, "pet": PETS},
    eng="{who} has {pet:a}. | {who} takes care of {pet:a}.",
    deu="{who} hat {pet:a}. | {who} kümmert sich um {pet:a}.",
    spa="{who} tiene {pet:a}. | {who} cuida de {pet:a}.",
)
WEARS = Kind(
    "wears",
    {"who": MENTIONS, "clothes": CLOTHES},
    eng="{who} wears {clothes:a}. | {who} is wearing {clothes:a}.",
    deu="{who} trägt {clothes:a}. | {who} trägt heute {clothes:a}.",
    spa="{who} lleva {clothes:a}. | {who} lleva hoy {clothes:a}.",
)
VISIT = Kind(
    "visit",
    {"guest": MENTIONS, "host": PEOPLE, "home": PLACES},
    eng="Later {guest} goes {home:to} and visits {host}. | Later {guest} visits {host} {home:near}.",
    deu="Später geht {guest} {home:to} und besucht {host}. | Später besucht {guest} {host} {home:near}.",
    spa="Más tarde {guest} va {home:to} y visita a {host}. | Más tarde {guest} visita a {host} {home:near}.",
)
TEA = Kind(
    "tea",
    {"host": MENTIONS, "guest": PEOPLE},
    eng="{host} makes tea for {guest}. | {host} pours a cup of tea for {guest}.",
    deu="{host} kocht Tee für {guest}. | {host} gießt {guest} eine Tasse Tee ein.",
    spa="{host} prepara té para {guest}. | {host} le sirve una taza de té a {guest}.",
)
TALK = Kind(
    "talk",
    {"who": MENTIONS, "job": JOBS},
    eng="{who} talks about the work of a {job}. | {who} tells a long story about the life of a {job}.",
    deu="{who} erzählt von {job:work@who}. | {who} erzählt lange vom Leben als {job@who}.",
    spa="{who} habla de su trabajo de {job@who}. | {who} cuenta cómo es la vida de {job:a@who}.",
)
SHOW = Kind(
    "show",
    {"host": MENTIONS, "guest": PEOPLE, "pet": PETS},
    eng="{host} shows {guest} {pet:the}. | {host} goes outside with {guest} and feeds {pet:the}.",
    deu="{host} zeigt {guest} {pet:the}. | {host} geht mit {guest} hinaus und füttert {pet:the}.",
    spa="{host} le enseña {pet:the} a {guest}. | {host} sale con {guest} y da de comer {pet:to}.",
)
LEND = Kind(
    "lend",
    {"host": MENTIONS, "guest": PEOPLE, "clothes": CLOTHES},
    eng="{host} lends {guest} {clothes:the}. | {host} lends {clothes:the} to {guest}.",
    deu="{host} leiht {guest} {clothes:the}. | {host} gibt {guest} für eine Weile {clothes:the}.",
    spa="{host} le presta {clothes:the} a {guest}. | {host} deja que {guest} se lleve {clothes:the}.",
)
NOW_WEARS = Kind(
    "now wears",
    {"guest": MENTIONS, "clothes": CLOTHES},
    eng="Now {guest} wears {clothes:the}. | {guest} puts on {clothes:the}.",
    deu="Jetzt trägt {guest} {clothes:the}. | {guest} {clothes:puts_on}.",
    spa="Ahora {guest} lleva {clothes:the}. | {guest} se pone {clothes:the}.",
)
WALK = Kind(
    "walk",
    {"one": PEOPLE, "other": PEOPLE, "place": PLACES},
    eng="Then {one} and {other} walk {place:to} and back. | {one} and {other} take a walk {place:to} and back.",
    deu="Dann spazieren {one} und {other} {place:to} und zurück. "
    "| {one} und {other} gehen zusammen {place:to} und wieder zurück.",
    spa="Luego {one} y {other} pasean {place:until} y vuelven. | {one} y {other} van {place:to} y después regresan.",
)
GO_HOME = Kind(
    "go home",
    {"guest": MENTIONS, "home": PLACES},
    eng="In the evening {guest} goes home {home:to}. | {guest} goes back {home:to} in the evening.",
    deu="Am Abend geht {guest} zurück {home:to}. | {guest} geht am Abend nach Hause {home:to}.",
    spa="Por la tarde {guest} vuelve {home:to}. | {guest} vuelve por la tarde a su casa {home:near}.",
)
FRIENDS = Kind(
    "friends",
    {"one": PEOPLE, "other": PEOPLE},
    eng="{one} and {other} see each other often. | {one} and {other} will meet again soon.",
    deu="{one} und {other} sehen sich oft. | {one} und {other} treffen sich bald wieder.",
    spa="{one} y {other} se ven a menudo. | {one} y {other} volverán a verse pronto.",
)
VISITED = Kind(
    "gist: visited",
    {"guest": PEOPLE, "host": PEOPLE, "home": PLACES},
    eng="{guest} visits {host} {home:near}.",
    deu="{guest} besucht {host} {home:near}.",
    spa="{host} recibe a {guest} en su casa {home:near}.",
)
BOTH_HOMES = Kind(
    "gist: homes",
    {"one": PEOPLE, "home": PLACES, "other": PEOPLE, "second": PLACES},
    eng="{one} lives {home:near} and {other} lives {second:near}.",
    deu="{one} wohnt {home:near} und {other} wohnt {second:near}.",
    spa="{one} vive {home:near} y {other} vive {second:near}.",
)
LENT = Kind(
    "gist: lent",
    {"host": PEOPLE, "guest": PEOPLE, "clothes": CLOTHES},
    eng="{guest} borrows {clothes:the} from {host}.",
    deu="{guest} leiht sich {clothes:the} von {host}.",
    spa="{host} le presta a {guest} {clothes:the} por un tiempo.",
)
NOT_LENT = Kind(
    "gist: not lent",
    {"guest": PEOPLE, "home": PLACES},
    eng="In the end {guest} goes back {home:to}.",
    deu="Am Ende geht {guest} zurück {home:to}.",
    spa="Al final {guest} vuelve {home:to}.",
)
FACTS = {"home": HOME, "job": JOB, "pet": PET, "wears": WEARS}


class Friends(Level):
    """Facts about both, then one or two visits at which they come back: whose home, pet, job and clothes they are."""

    name: ClassVar[str] = "friends"
    longest: ClassVar[int] = 20
    kinds: ClassVar[tuple[Kind, ...]] = (
        ABOUT, HOME, JOB, PET, WEARS, VISIT, TEA, TALK, SHOW, LEND, NOW_WEARS, WALK, GO_HOME, FRIENDS,
        VISITED, BOTH_HOMES, LENT, NOT_LENT,
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.people: tuple[Word, ...] = ()
        self.facts: dict[tuple[str, Word], Word] = {}
        """("home", Anna): the mill."""
        self.guests: list[Word] = []
        """The guest of each visit."""
        self.scene: list[str] = []
        """Kinds of events since the last visit began; empty while nobody visits."""
        self.lent: tuple[Word, Word, Word] | None = None

    def choices(self) -> Sequence[Choice]:
        if not self.events:
            return [Choice(1 / len(PEOPLE), ABOUT, (one, others(PEOPLE, one))) for one in PEOPLE.values()]
        if self.events[-1].kind == "friends":
            return [Choice(1.0)]
        if self.scene:
            return self._scene()
        if not self.guests:
            return self._facts()
        again = 0.3 if len(self.guests) == 1 and len(self.events) <= 12 else 0.0
        return [*self._visits(again), Choice(1 - again, FRIENDS, self.people)]

    def _mentions(self, who: Word) -> dict[Word, float]:
        """A name, or she and he where that is clear, or else the first and the second of the two."""
        one, other = self.people
        if one.gender != other.gender:
            return {who: 0.5, MENTIONS["she" if who.gender == "f" else "he"]: 0.5}
        return {who: 0.7, MENTIONS[f"{'first' if who is one else 'second'} {who.gender}"]: 0.3}

    def _facts(self) -> list[Choice]:
        """A fact of whose turn it is, until at least four are told, both homes among them."""
        told = len(self.events) - 1
        who = self.people[told % 2]
        homes = all(("home", person) in self.facts for person in self.people)
        visits = 0.0 if told < 4 or not homes else 1.0 if told == 2 * len(FACTS) else 0.4
        choices = self._visits(visits)
        open_facts = [kind for kind in FACTS if (kind, who) not in self.facts]
        for kind in open_facts if visits < 1 else ():
            choices.append(Choice((1 - visits) / len(open_facts), FACTS[kind], (self._mentions(who), self._free(kind))))
        return choices

    def _free(self, kind: str) -> Words:
        """The words for a fact that the other person does not have already."""
        vocabulary = list(FACTS[kind].slots.values())[1]
        return others(vocabulary, *(word for (other, _), word in self.facts.items() if other == kind))

    def _visits(self, probability: float) -> list[Choice]:
        """A visit of either to the other; a second visit is returned."""
        guests = [person for person in self.people if person not in self.guests]
        choices = []
        for guest in guests if probability else ():
            host = self._other(guest)
            words = (self._mentions(guest), host, self.facts["home", host])
            choices.append(Choice(probability / len(guests), VISIT, words))
        return choices

    def _other(self, who: Word) -> Word:
        return self.people[1] if who is self.people[0] else self.people[0]

    def _scene(self) -> list[Choice]:
        guest = self.guests[-1]
        host = self._other(guest)
        if self.scene[-1] == "lend":
            assert self.lent
            return [Choice(1.0, NOW_WEARS, (self._mentions(guest), self.lent[2]))]
        acts: list[tuple[str, Kind, tuple[Words, ...]]] = [("tea", TEA, (self._mentions(host), guest))]
        if job := self.facts.get(("job", host)):
            acts.append(("talk", TALK, (self._mentions(host), job)))
        if pet := self.facts.get(("pet", host)):
            acts.append(("show", SHOW, (self._mentions(host), guest, pet)))
        if (clothes := self.facts.get(("wears", host))) and not self.lent:
            acts.append(("lend", LEND, (self._mentions(host), guest, clothes)))
        homes = [self.facts["home", person] for person in self.people]
        acts.append(("walk", WALK, (*self.people, others(PLACES, *homes))))
        acts = [act for act in acts if act[0] not in self.scene]
        leaving = 0.0 if len(self.scene) < 3 else 1.0 if len(self.scene) >= 5 or not acts else 0.4
        choices = [Choice((1 - leaving) / len(acts), kind, words) for _, kind, words in acts] if leaving < 1 else []
        if leaving:
            choices.append(Choice(leaving, GO_HOME, (self._mentions(guest), self.facts["home", guest])))
        return choices

    def add(self, event: Event) -> None:
        super().add(event)
        if event.kind == "about":
            self.people = event.words
        elif event.kind in FACTS:
            self.facts[event.kind, self._person(event.words[0])] = event.words[1]
        elif event.kind == "visit":
            self.guests.append(self._person(event.words[0]))
            self.scene = ["visit"]
        elif event.kind == "go home":
            self.scene = []
        elif self.scene:
            self.scene.append(event.kind)
        if event.kind == "lend":
            self.lent = (self._person(event.words[0]), event.words[1], event.words[2])

    def _person(self, mention: Word) -> Word:
        """Whom a mention means."""
        return next(who for who in self.people if mention.name in {word.name for word in self._mentions(who)})

    def gist(self) -> list[Event]:
        guest = self.guests[0]
        host = self._other(guest)
        return [VISITED.event(guest, host, self.facts["home", host])]

    def long_gist(self) -> list[Event]:
        one, other = self.people
        homes = BOTH_HOMES.event(one, self.facts["home", one], other, self.facts["home", other])
        guest = self.guests[0]
        end = LENT.event(*self.lent) if self.lent else NOT_LENT.event(guest, self.facts["home", guest])
        return [homes, *self.gist(), end]
