"""More words of the world: goods that are counted, plants, dishes, animals to care for, furniture, seasons."""

from collections.abc import Iterator
from itertools import product

from lcm.tales.grammar import Vocabulary, Word
from lcm.tales.words import A_ACCUSATIVE, ACCUSATIVE, ADJECTIVES, DATIVE, contracted, plain, thing, vocabulary, word

SCENES: Vocabulary = vocabulary(
    plain(*words)
    for words in (
        ("garden", "in the garden", "im Garten", "en el jardín"),
        ("kitchen", "in the kitchen", "in der Küche", "en la cocina"),
        ("stable", "in the stable", "im Stall", "en el establo"),
        ("workshop", "in the workshop", "in der Werkstatt", "en el taller"),
    )
)


def _plant(english: str, german: str, spanish: str) -> Word:
    """Plants in the plural."""
    return word(
        english,
        {"": english, "the": f"the {english}"},
        {"": german, "the": f"die {german}"},
        {"": spanish.split()[1], "the": spanish},
    )


PLANTS: Vocabulary = vocabulary(
    _plant(*words)
    for words in (
        ("beans", "Bohnen", "las judías"),
        ("peas", "Erbsen", "los guisantes"),
        ("carrots", "Karotten", "las zanahorias"),
        ("onions", "Zwiebeln", "las cebollas"),
        ("roses", "Rosen", "las rosas"),
        ("tomatoes", "Tomaten", "los tomates"),
    )
)


def _made(english: str, german: str, spanish: str) -> Word:
    """Something that is made: a dish, a piece of furniture, an animal that is cared for."""
    article, noun = german.split()
    spanish_article, spanish_noun = spanish.split()
    return word(
        english,
        {"a": f"a {english}", "the": f"the {english}"},
        {
            "subject": german,
            "a": f"{A_ACCUSATIVE[article]} {noun}",
            "the": f"{ACCUSATIVE[article]} {noun}",
            "dative": f"{DATIVE[article]} {noun}",
        },
        {
            "a": f"{'una' if spanish_article == 'la' else 'un'} {spanish_noun}",
            "the": spanish,
            "to": contracted("a", spanish),
            "of": contracted("de", spanish),
        },
    )


DISHES: Vocabulary = vocabulary(
    _made(*words)
    for words in (
        ("pizza", "die Pizza", "la pizza"),
        ("cake", "der Kuchen", "el pastel"),
        ("pie", "die Pastete", "la empanada"),
        ("tart", "die Torte", "la tarta"),
        ("soup", "die Suppe", "la sopa"),
    )
)
BEASTS: Vocabulary = vocabulary(
    _made(*words)
    for words in (
        ("pony", "das Pony", "el poni"),
        ("goat", "die Ziege", "la cabra"),
        ("calf", "das Kalb", "el ternero"),
        ("sheep", "das Schaf", "la oveja"),
        ("donkey", "der Esel", "el burro"),
    )
)
_FURNITURE = (
    ("bench", "die Sitzbank", "el banco"),
    ("table", "der Tisch", "la mesa"),
    ("chair", "der Stuhl", "la silla"),
    ("boat", "das Boot", "la barca"),
    ("shelf", "das Regal", "la repisa"),
    ("cart", "der Wagen", "la carreta"),
)
FURNITURE: Vocabulary = vocabulary(_made(*words) for words in _FURNITURE)
PAINTED: Vocabulary = vocabulary(thing(*both) for both in product(ADJECTIVES[:4], _FURNITURE))
COLORS: Vocabulary = vocabulary(
    word(english, {"": english}, {"": german}, {"": f"de color {spanish}"})
    for english, german, spanish in (
        ("red", "rot", "rojo"),
        ("blue", "blau", "azul"),
        ("green", "grün", "verde"),
        ("yellow", "gelb", "amarillo"),
    )
)
SEASONS: Vocabulary = vocabulary(
    word(
        name,
        {"": name, "the": f"the {name}"},
        {"the": f"den {german}", "subject": f"der {german}"},
        {"the": spanish},
    )
    for name, german, spanish in (
        ("winter", "Winter", "el invierno"),
        ("spring", "Frühling", "la primavera"),
        ("summer", "Sommer", "el verano"),
        ("autumn", "Herbst", "el otoño"),
    )
)


def _goods(english: tuple[str, str], german: tuple[str, str], spanish: tuple[str, str]) -> Iterator[Word]:
    """One to three of an item, such as "two apples"; each knows the plural on its own."""
    (article, german_noun), (spanish_article, spanish_noun) = german[0].split(), spanish[0].split()
    one = {"eng_Latn": f"one {english[0]}", "deu_Latn": f"{A_ACCUSATIVE[article]} {german_noun}"}
    one["spa_Latn"] = f"{'una' if spanish_article == 'la' else 'un'} {spanish_noun}"
    for number in range(1, 4):
        plurals = {
            "eng_Latn": f"{('two', 'three')[number - 2]} {english[1]}",
            "deu_Latn": f"{('zwei', 'drei')[number - 2]} {german[1]}",
            "spa_Latn": f"{('dos', 'tres')[number - 2]} {spanish[1]}",
        }
        yield Word(
            f"{number} {english[0]}", {lang: {"": text} for lang, text in (one if number == 1 else plurals).items()}
        )


_ITEMS = (
    (("apple", "apples"), ("der Apfel", "Äpfel"), ("la manzana", "manzanas")),
    (("plum", "plums"), ("die Pflaume", "Pflaumen"), ("la ciruela", "ciruelas")),
    (("egg", "eggs"), ("das Ei", "Eier"), ("el huevo", "huevos")),
    (("ribbon", "ribbons"), ("das Band", "Bänder"), ("la cinta", "cintas")),
    (("candle", "candles"), ("die Kerze", "Kerzen"), ("la vela", "velas")),
    (("coin", "coins"), ("die Münze", "Münzen"), ("la moneda", "monedas")),
    (("nut", "nuts"), ("die Nuss", "Nüsse"), ("la nuez", "nueces")),
    (("shell", "shells"), ("die Muschel", "Muscheln"), ("la concha", "conchas")),
    (("feather", "feathers"), ("die Feder", "Federn"), ("la pluma", "plumas")),
    (("button", "buttons"), ("der Knopf", "Knöpfe"), ("el botón", "botones")),
)
ITEMS: Vocabulary = vocabulary(plain(names[0], names[1], german[1], spanish[1]) for names, german, spanish in _ITEMS)
"""Items in the plural: "apples"."""
GOODS: Vocabulary = vocabulary(word for item in _ITEMS for word in _goods(*item))
"""One to three of an item, by names such as "2 apple"."""
