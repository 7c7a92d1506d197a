"""Promise: what is promised in the first sentence is kept in the last; chapters on other things between. 40 to 128."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from lcm.tales.grammar import Event, Kind, Vocabulary, Word
from lcm.tales.household import BEASTS, COLORS, DISHES, FURNITURE, PAINTED, PLANTS, SCENES, SEASONS
from lcm.tales.level import Choice, Level, Words, everyone, others
from lcm.tales.words import PEOPLE, PLACES, THINGS

PROMISE = Kind(
    "promise",
    {"who": PEOPLE, "friend": PEOPLE, "thing": THINGS, "season": SEASONS},
    eng="{who} promises {friend} {thing:a} for {season:the}. | For {season:the} {who} promises {friend} {thing:a}.",
    deu="{who} verspricht {friend} {thing:a} für {season:the}. | Für {season:the} verspricht {who} {friend} {thing:a}.",
    spa="{who} promete que para {season:the} le dará {thing:a} a {friend}. "
    "| Para {season:the} {who} le promete {thing:a} a {friend}.",
)
PART = Kind(
    "part",
    {"who": PEOPLE, "scene": SCENES},
    eng="The next part of the story is about {who} {scene}. | Now the story turns to {who} {scene}.",
    deu="Der nächste Teil der Geschichte handelt von {who} {scene}. | Nun geht es um {who} {scene}.",
    spa="La siguiente parte de la historia trata de {who} {scene}. | Ahora la historia habla de {who} {scene}.",
)
PLANT = Kind(
    "plant",
    {"who": PEOPLE, "plants": PLANTS},
    eng="{who} plants {plants}. | {who} is going to grow {plants}.",
    deu="{who} pflanzt {plants}. | {who} möchte {plants} anbauen.",
    spa="{who} planta {plants}. | {who} quiere cultivar {plants}.",
)
WATER = Kind(
    "water",
    {"who": PEOPLE, "plants": PLANTS},
    eng="{who} waters {plants:the}. | Every day {who} waters {plants:the}.",
    deu="{who} gießt {plants:the}. | Jeden Tag gießt {who} {plants:the}.",
    spa="{who} riega {plants:the}. | Cada día {who} riega {plants:the}.",
)
GROW = Kind(
    "grow",
    {"plants": PLANTS},
    eng="The sun shines and {plants:the} grow. | {plants:the} grow well.",
    deu="Die Sonne scheint und {plants:the} wachsen. | {plants:the} wachsen gut.",
    spa="El sol brilla y {plants:the} crecen. | {plants:the} crecen mucho.",
)
PICK = Kind(
    "pick",
    {"who": PEOPLE, "plants": PLANTS},
    eng="{who} gathers {plants:the}. | At last {who} gathers {plants:the}.",
    deu="{who} holt {plants:the} aus dem Beet. | Endlich legt {who} {plants:the} in einen Korb.",
    spa="{who} recoge {plants:the}. | Por fin {who} recoge {plants:the}.",
)
COOK = Kind(
    "cook",
    {"who": PEOPLE, "dish": DISHES},
    eng="{who} is going to make {dish:a}. | In the morning {who} starts to make {dish:a}.",
    deu="{who} möchte {dish:a} machen. | {who} beginnt, {dish:a} zu machen.",
    spa="{who} quiere hacer {dish:a}. | {who} empieza a hacer {dish:a}.",
)
WAIT = Kind(
    "wait",
    {"who": PEOPLE, "dish": DISHES},
    eng="{who} waits until {dish:the} is ready. | {who} keeps an eye on {dish:the}.",
    deu="{who} wartet, bis {dish:subject} fertig ist. | {who} passt auf {dish:the} auf.",
    spa="{who} espera a que {dish:the} esté en su punto. | {who} vigila {dish:the}.",
)
SMELL = Kind(
    "smell",
    {"dish": DISHES},
    eng="{dish:the} smells good. | Soon {dish:the} smells very good.",
    deu="{dish:subject} riecht gut. | Bald riecht {dish:subject} sehr gut.",
    spa="{dish:the} huele rico. | Pronto {dish:the} huele muy rico.",
)
EAT = Kind(
    "eat",
    {"who": PEOPLE, "dish": DISHES},
    eng="{who} eats some of {dish:the}. | At last {who} tastes {dish:the}.",
    deu="{who} isst etwas von {dish:dative}. | Endlich probiert {who} {dish:the}.",
    spa="{who} come un poco {dish:of}. | Por fin {who} prueba {dish:the}.",
)
FEED = Kind(
    "feed",
    {"who": PEOPLE, "beast": BEASTS},
    eng="{who} feeds {beast:the}. | {who} gives {beast:the} some grass.",
    deu="{who} füttert {beast:the}. | {who} gibt {beast:dative} etwas Gras.",
    spa="{who} da de comer {beast:to}. | {who} le da un poco de hierba {beast:to}.",
)
BRUSH = Kind(
    "brush",
    {"who": PEOPLE, "beast": BEASTS},
    eng="{who} brushes {beast:the}. | {who} talks to {beast:the}.",
    deu="{who} bürstet {beast:the}. | {who} spricht mit {beast:dative}.",
    spa="{who} cepilla {beast:to}. | {who} le habla {beast:to}.",
)
LEAD = Kind(
    "lead",
    {"who": PEOPLE, "beast": BEASTS, "place": PLACES},
    eng="{who} leads {beast:the} {place:to}. | {who} goes {place:to} with {beast:the}.",
    deu="{who} führt {beast:the} {place:into}. | {who} geht mit {beast:dative} {place:into}.",
    spa="{who} lleva {beast:to} {place:until}. | {who} va {place:to} con {beast:the}.",
)
SLEEP = Kind(
    "sleep",
    {"beast": BEASTS},
    eng="At night {beast:the} sleeps. | {beast:the} sleeps all night.",
    deu="In der Nacht schläft {beast:subject}. | {beast:subject} schläft die ganze Nacht.",
    spa="Por la noche {beast:the} duerme. | {beast:the} duerme toda la noche.",
)
BUILD = Kind(
    "build",
    {"who": PEOPLE, "furniture": FURNITURE},
    eng="{who} begins to build {furniture:a}. | {who} is going to build {furniture:a}.",
    deu="{who} beginnt, {furniture:a} zu bauen. | {who} möchte {furniture:a} bauen.",
    spa="{who} comienza a construir {furniture:a}. | {who} quiere construir {furniture:a}.",
)
SAW = Kind(
    "saw",
    {"who": PEOPLE, "furniture": FURNITURE},
    eng="{who} cuts the wood for {furniture:the}. | {who} gets more wood for {furniture:the}.",
    deu="{who} sägt das Holz für {furniture:the}. | {who} holt noch mehr Holz für {furniture:the}.",
    spa="{who} corta la madera para {furniture:the}. | {who} trae más madera para {furniture:the}.",
)
MEASURE = Kind(
    "measure",
    {"who": PEOPLE, "furniture": FURNITURE},
    eng="{who} measures the wood for {furniture:the}. | {who} looks at the plan for {furniture:the}.",
    deu="{who} misst das Holz für {furniture:the}. | {who} schaut auf den Plan für {furniture:the}.",
    spa="{who} mide la madera para {furniture:the}. | {who} mira el plano {furniture:of}.",
)
PAINT = Kind(
    "paint",
    {"who": PEOPLE, "furniture": FURNITURE, "color": COLORS},
    eng="{who} paints {furniture:the} {color}. | Then {who} paints {furniture:the} {color}.",
    deu="{who} streicht {furniture:the} {color}. | Dann streicht {who} {furniture:the} {color}.",
    spa="{who} pinta {furniture:the} {color}. | Luego {who} pinta {furniture:the} {color}.",
)
ADMIRE = Kind(
    "admire",
    {"who": PEOPLE, "painted": PAINTED},
    eng="{who} takes {painted:the} outside. | {who} admires {painted:the}.",
    deu="{who} bringt {painted:the} nach draußen. | {who} bewundert {painted:the}.",
    spa="{who} saca {painted:the} del taller. | {who} admira {painted:the}.",
)
COMES = Kind(
    "season comes",
    {"season": SEASONS},
    eng="Then {season} comes. | At last it is {season}.",
    deu="Dann kommt {season:subject}. | Endlich ist {season:subject} da.",
    spa="Luego {season:the} llega al pueblo. | Por fin {season:the} está aquí.",
)
KEPT = Kind(
    "kept",
    {"who": PEOPLE, "friend": PEOPLE, "thing": THINGS},
    eng="{who} keeps {who:own} promise and gives {friend} {thing:the}. "
    "| As promised, {who} brings {friend} {thing:the}.",
    deu="{who} hält {who:own} Versprechen und gibt {friend} {thing:the}. "
    "| Wie versprochen bringt {who} {friend} {thing:the}.",
    spa="{who} cumple su promesa y le da {thing:the} a {friend}. "
    "| Como prometió, {who} le trae {thing:the} a {friend}.",
)
KEPT_IT = Kind(
    "gist: kept",
    {"who": PEOPLE, "friend": PEOPLE, "thing": THINGS},
    eng="{friend} gets {thing:the} that {who} has promised.",
    deu="{friend} bekommt von {who} wie versprochen {thing:the}.",
    spa="{friend} recibe {thing:the} que {who} le ha prometido.",
)
PROMISED = Kind(
    "gist: promised",
    {"who": PEOPLE, "friend": PEOPLE, "season": SEASONS},
    eng="{who} makes {friend} a promise for {season:the}.",
    deu="{who} verspricht {friend} etwas für {season:the}.",
    spa="Para {season:the}, {who} le promete algo a {friend}.",
)
FIRST_PART = Kind(
    "gist: first part",
    {"who": PEOPLE, "scene": SCENES},
    eng="Meanwhile {who} is {scene}.",
    deu="Inzwischen ist {who} {scene}.",
    spa="Mientras tanto {who} está {scene}.",
)


class Cycle(NamedTuple):
    """A plant, dish, animal or piece of furniture from start to end, with two to four events between."""

    items: Vocabulary
    start: Kind
    middle: tuple[Kind, ...]
    end: Kind


CYCLES = {
    "garden": Cycle(PLANTS, PLANT, (WATER, GROW), PICK),
    "kitchen": Cycle(DISHES, COOK, (WAIT, SMELL), EAT),
    "stable": Cycle(BEASTS, FEED, (BRUSH, LEAD), SLEEP),
    "workshop": Cycle(FURNITURE, BUILD, (SAW, MEASURE), ADMIRE),
}
LEAST, MOST = 38, 104
"""Sentences behind which no other part need, or may, begin."""


class Promise(Level):
    """A promise, parts about other people in other places, two or three cycles each, and the promise kept."""

    name: ClassVar[str] = "promise"
    kinds: ClassVar[tuple[Kind, ...]] = (
        PROMISE, PART, PLANT, WATER, GROW, PICK, COOK, WAIT, SMELL, EAT, FEED, BRUSH, LEAD, SLEEP,
        BUILD, SAW, MEASURE, PAINT, ADMIRE, COMES, KEPT, KEPT_IT, PROMISED, FIRST_PART,
    )  # fmt: skip

    promised: tuple[Word, ...]
    """The words of the promise: who, to whom, the thing, the season."""
    who: Word
    scene: Word
    item: Word
    painted: Word | None = None

    def __init__(self) -> None:
        super().__init__()
        self.middles = 0
        """Events since the start of the cycle."""
        self.cycles = 0
        """Cycles that ended in this part."""
        self.had: list[Word] = []
        """The items of the cycles of this part."""

    def choices(self) -> Sequence[Choice]:
        if not self.events:
            words = everyone(THINGS), everyone(SEASONS)
            return [Choice(1 / len(PEOPLE), PROMISE, (p, others(PEOPLE, p), *words)) for p in PEOPLE.values()]
        last = self.events[-1].kind
        if last == "promise":
            return [Choice(1.0, PART, (others(PEOPLE, *self.promised[:2]), everyone(SCENES)))]
        if last == "season comes":
            return [Choice(1.0, KEPT, self.promised[:3])]
        if last == "kept":
            return [Choice(1.0)]
        cycle = CYCLES[self.scene.name]
        if last == "part" or last == cycle.end.name:
            return self._between(cycle)
        return self._within(cycle)

    def _between(self, cycle: Cycle) -> list[Choice]:
        """A new cycle, a new part, or the end."""
        told = len(self.events)
        again = {0: 1.0, 1: 1.0, 2: 0.5}.get(self.cycles, 0.0)
        ends = 0.0 if told < LEAST else 1.0 if told > MOST else 0.25
        choices = [Choice(again, cycle.start, (self.who, others(cycle.items, *self.had)))] if again else []
        if again < 1 and ends < 1:
            people, scenes = others(PEOPLE, *self.promised[:2], self.who), others(SCENES, self.scene)
            choices.append(Choice((1 - again) * (1 - ends), PART, (people, scenes)))
        if again < 1 and ends:
            choices.append(Choice((1 - again) * ends, COMES, (self.promised[3],)))
        return choices

    def _within(self, cycle: Cycle) -> list[Choice]:
        if self.painted:
            return [Choice(1.0, ADMIRE, (self.who, self.painted))]
        ends = 0.0 if self.middles < 2 else 1.0 if self.middles == 4 else 0.4
        kinds = [kind for kind in cycle.middle if kind.name != self.events[-1].kind]
        choices = [self._choice((1 - ends) / len(kinds), kind) for kind in kinds] if ends < 1 else []
        end = PAINT if cycle.end is ADMIRE else cycle.end
        return [*choices, self._choice(ends, end)] if ends else choices

    def _choice(self, probability: float, kind: Kind) -> Choice:
        """A choice of which the person and the item are known."""
        known: dict[str, Words] = {"who": self.who, "place": everyone(PLACES), "color": everyone(COLORS)}
        return Choice(probability, kind, tuple(known.get(slot, self.item) for slot in kind.slots))

    def add(self, event: Event) -> None:
        super().add(event)
        assert event.grammar
        match event.kind:
            case "promise":
                self.promised = event.words
            case "part":
                self.who, self.scene = event.words
                self.cycles, self.had = 0, []
            case "paint":
                self.painted = PAINTED[f"{event.arguments['color']} {self.item.name}"]
            case "season comes" | "kept":
                pass
            case kind if kind == CYCLES[self.scene.name].start.name:
                self.item, self.middles = event.words[1], 0
                self.had.append(self.item)
            case kind if kind == CYCLES[self.scene.name].end.name:
                self.cycles, self.painted = self.cycles + 1, None
            case _:
                self.middles += 1

    def gist(self) -> list[Event]:
        return [KEPT_IT.event(*self.promised[:3])]

    def long_gist(self) -> list[Event]:
        who, friend, _, season = self.promised
        first = next(event for event in self.events if event.kind == "part")
        return [PROMISED.event(who, friend, season), FIRST_PART.event(*first.words), *self.gist()]
