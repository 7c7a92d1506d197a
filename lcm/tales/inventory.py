"""Inventory: two people take, give and lose things; what each has in the end must be counted. 10 to 20 sentences."""

from collections.abc import Sequence
from typing import ClassVar

from lcm.tales.grammar import Event, Kind, Word
from lcm.tales.household import GOODS, ITEMS
from lcm.tales.level import Choice, Level, Words, everyone, others
from lcm.tales.words import PEOPLE, PLACES

TOGETHER = Kind(
    "together",
    {"who": PEOPLE, "friend": PEOPLE, "place": PLACES},
    eng="{who} and {friend} spend the day {place:at}. | {who} and {friend} are {place:at} today.",
    deu="{who} und {friend} verbringen den Tag {place:at}. | {who} und {friend} sind heute {place:at}.",
    spa="{who} y {friend} pasan el día {place:at}. | {who} y {friend} están hoy {place:at}.",
)
TAKE = Kind(
    "take",
    {"who": PEOPLE, "goods": GOODS},
    eng="{who} picks up {goods}. | {who} finds {goods}.",
    deu="{who} hebt {goods} auf. | {who} findet {goods}.",
    spa="{who} recoge {goods} del suelo. | {who} encuentra {goods}.",
)
GIVE = Kind(
    "give",
    {"who": PEOPLE, "friend": PEOPLE, "goods": GOODS},
    eng="{who} gives {friend} {goods}. | {who} hands {goods} to {friend}.",
    deu="{who} gibt {friend} {goods}. | {friend} bekommt von {who} {goods}.",
    spa="{who} le da {goods} a {friend}. | {friend} recibe {goods} de {who}.",
)
THANK = Kind(
    "thank",
    {"friend": PEOPLE, "who": PEOPLE},
    eng="{friend} thanks {who}. | {friend} smiles and thanks {who}.",
    deu="{friend} bedankt sich bei {who}. | {friend} lächelt und dankt {who}.",
    spa="{friend} le da las gracias a {who}. | {friend} sonríe y le da las gracias a {who}.",
)
LOSE = Kind(
    "lose",
    {"who": PEOPLE, "goods": GOODS},
    eng="{who} loses {goods}. | Then {who} loses {goods}.",
    deu="{who} verliert {goods}. | Dann verliert {who} {goods}.",
    spa="{who} pierde {goods}. | Luego {who} pierde {goods}.",
)
HAS = Kind(
    "has",
    {"who": PEOPLE, "goods": GOODS},
    eng="Now {who} has {goods}. | {who} now has {goods}.",
    deu="Jetzt hat {who} {goods}. | {who} hat jetzt {goods}.",
    spa="Ahora {who} tiene {goods}. | {who} tiene ahora {goods}.",
)
NONE = Kind(
    "has none",
    {"who": PEOPLE, "item": ITEMS},
    eng="Now {who} has no {item}. | {who} has no {item} now.",
    deu="Jetzt hat {who} keine {item} mehr. | {who} hat jetzt keine {item} mehr.",
    spa="Ahora {who} ya no tiene {item}. | A {who} ya no le quedan {item}.",
)
PART = Kind(
    "part",
    {"who": PEOPLE, "friend": PEOPLE},
    eng="In the evening {who} and {friend} go home. | Then {who} and {friend} say goodbye.",
    deu="Am Abend gehen {who} und {friend} nach Hause. | Dann verabschieden sich {who} und {friend}.",
    spa="Por la tarde {who} y {friend} vuelven a casa. | Luego {who} y {friend} se despiden.",
)
DAY = Kind(
    "gist: day",
    {"who": PEOPLE, "friend": PEOPLE, "place": PLACES},
    eng="{who} is {place:at} with {friend}.",
    deu="{who} ist mit {friend} {place:at}.",
    spa="{who} está con {friend} {place:at}.",
)
NOTHING = Kind(
    "gist: nothing",
    {"who": PEOPLE},
    eng="In the end {who} has nothing.",
    deu="Am Ende hat {who} nichts.",
    spa="Al final {who} no tiene nada.",
)
ONE = Kind(
    "gist: one kind",
    {"who": PEOPLE, "goods": GOODS},
    eng="In the end {who} has {goods}.",
    deu="Am Ende hat {who} {goods}.",
    spa="Al final {who} tiene {goods}.",
)
BOTH = Kind(
    "gist: both kinds",
    {"who": PEOPLE, "goods": GOODS, "more": GOODS},
    eng="In the end {who} has {goods} and {more}.",
    deu="Am Ende hat {who} {goods} und {more}.",
    spa="Al final {who} tiene {goods} y {more}.",
)


WEIGHTS = {TAKE: 3, GIVE: 4, LOSE: 1, HAS: 2, NONE: 1, THANK: 4}
COUNTS = (1, 2, 3)
MOST = COUNTS[-1]
"""Nobody has more of an item."""

GOODS_OF = {item: tuple(GOODS[f"{n} {item}"] for n in COUNTS) for item in ITEMS}
"""One, two and three of each item."""


def counted(goods: Word) -> tuple[int, str]:
    """The number and the item: (2, "apple")."""
    number, item = goods.name.split()
    return int(number), item


class Inventory(Level):
    """Two people, two kinds of items, up to three of each."""

    name: ClassVar[str] = "inventory"
    longest: ClassVar[int] = 20
    kinds: ClassVar[tuple[Kind, ...]] = (TOGETHER, TAKE, GIVE, THANK, LOSE, HAS, NONE, PART, DAY, NOTHING, ONE, BOTH)

    def __init__(self) -> None:
        super().__init__()
        self.people: tuple[Word, ...] = ()
        self.items: list[str] = []
        """Kinds of items in this story, the first to be met first."""
        self.owned: dict[tuple[Word, str], int] = {}

    def choices(self) -> Sequence[Choice]:
        if not self.events:
            return [
                Choice(1 / len(PEOPLE), TOGETHER, (p, others(PEOPLE, p), everyone(PLACES))) for p in PEOPLE.values()
            ]
        if self.events[-1].kind == "part":
            return [Choice(1.0)]
        told = len(self.events)
        leaving = 0.0 if told < 9 else 1.0 if told == self.longest - 1 else 0.2
        choices = [Choice(leaving, PART, self.people)] if leaving else []
        acts = {kind: options for kind, options in self._acts().items() if options} if leaving < 1 else {}
        total = sum(WEIGHTS[kind] for kind in acts)
        for kind, options in acts.items():
            share = (1 - leaving) * WEIGHTS[kind] / total / len(options)
            choices += [Choice(share, kind, words) for words in options]
        return choices

    def _acts(self) -> dict[Kind, list[tuple[Words, ...]]]:
        """The options of each kind of act. Nobody does the same twice in a row, or gives back what was just given."""
        last = self.events[-1]
        take: list[tuple[Words, ...]] = []
        give: list[tuple[Words, ...]] = []
        lose: list[tuple[Words, ...]] = []
        has: list[tuple[Words, ...]] = []
        none: list[tuple[Words, ...]] = []
        for who, friend in (self.people, self.people[::-1]):
            if len(self.items) < 2 and last.kind != "take":
                take.append((who, tuple(goods for item in ITEMS if item not in self.items for goods in GOODS_OF[item])))
            for item in self.items:
                have, theirs = self.owned.get((who, item), 0), self.owned.get((friend, item), 0)
                same = last.words[-1] in GOODS_OF[item]
                if have < MOST and not (same and last.kind in ("take", "lose")):
                    take.append((who, GOODS_OF[item][: MOST - have]))
                if have and theirs < MOST and not (same and last.kind == "give"):
                    give.append((who, friend, GOODS_OF[item][: min(have, MOST - theirs)]))
                if have and not same:
                    lose.append((who, GOODS_OF[item][:have]))
                if (who, item) in self.owned and last.kind not in ("has", "has none"):
                    (has if have else none).append((who, GOODS_OF[item][have - 1] if have else ITEMS[item]))
        thanks: list[tuple[Words, ...]] = [(last.words[1], last.words[0])] if last.kind == "give" else []
        return {TAKE: take, GIVE: give, LOSE: lose, HAS: has, NONE: none, THANK: thanks}

    def add(self, event: Event) -> None:
        super().add(event)
        match event.kind:
            case "together":
                self.people = event.words[:2]
            case "take" | "give" | "lose":
                number, item = counted(event.words[-1])
                if item not in self.items:
                    self.items.append(item)
                giver, taker = event.words[0], event.words[-2]
                if event.kind != "take":
                    self.owned[giver, item] -= number
                if event.kind != "lose":
                    self.owned[taker, item] = self.owned.get((taker, item), 0) + number

    def _end(self, who: Word) -> Event:
        have = [GOODS_OF[item][n - 1] for item in self.items if (n := self.owned.get((who, item), 0))]
        return (NOTHING, ONE, BOTH)[len(have)].event(who, *have)

    def gist(self) -> list[Event]:
        return [self._end(self.people[0])]

    def long_gist(self) -> list[Event]:
        assert isinstance(self.people, tuple)
        return [DAY.event(*self.events[0].words), *map(self._end, self.people)]
