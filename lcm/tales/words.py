"""The words of the world in English, German and Spanish: people, jobs, places, things, animals, goods.

German nouns are given with their article ("der See"), Spanish ones too ("el lago"); cases and contractions are made
from these.
"""

from collections.abc import Iterable, Iterator
from itertools import product

from lcm.tales.grammar import GENDERS, Vocabulary, Word

Forms = dict[str, str]

_ACCUSATIVE = {"der": "den", "die": "die", "das": "das"}
_DATIVE = {"der": "dem", "die": "der", "das": "dem"}
_A = {"der": "ein", "die": "eine", "das": "ein"}
_A_ACCUSATIVE = {"der": "einen", "die": "eine", "das": "ein"}
_TO = {"der": "zum", "die": "zur", "das": "zum"}


def _word(name: str, english: Forms, german: Forms, spanish: Forms, gender: str = "") -> Word:
    return Word(name, {"eng_Latn": english, "deu_Latn": german, "spa_Latn": spanish}, gender)


def _plain(name: str, english: str, german: str, spanish: str) -> Word:
    """A word with one form a language."""
    return _word(name, {"": english}, {"": german}, {"": spanish})


def _vocabulary(words: Iterable[Word]) -> Vocabulary:
    return {word.name: word for word in words}


def _contracted(preposition: str, spanish: str) -> str:
    """Spanish "a el lago" is "al lago", "de el lago" is "del lago"."""
    article, noun = spanish.split(" ", 1)
    joined = {("a", "el"): "al", ("de", "el"): "del"}.get((preposition, article), f"{preposition} {article}")
    return f"{joined} {noun}"


def _person(name: str, gender: str) -> Word:
    own_german, own_english = {"f": ("ihr", "her"), "m": ("sein", "his")}[gender]
    return _word(name, {"": name, "own": own_english}, {"": name, "own": own_german}, {"": name, "own": "su"}, gender)


PEOPLE: Vocabulary = _vocabulary(
    [_person(name, "f") for name in ("Anna", "Clara", "Emma", "Sofia", "Lina", "Maria", "Mia", "Nora", "Paula", "Vera")]
    + [
        _person(name, "m")
        for name in ("Karl", "David", "Bruno", "Jonas", "Leo", "Martin", "Max", "Oscar", "Simon", "Tom")
    ]
)


def _mention(name: str, gender: str, english: str, german: str, spanish: str) -> Word:
    return _word(name, {"": english}, {"": german}, {"": spanish}, gender)


MENTIONS: Vocabulary = {
    **PEOPLE,
    "she": _mention("she", "f", "she", "sie", "ella"),
    "he": _mention("he", "m", "he", "er", "él"),
    "first f": _mention("the first", "f", "the first of the two", "die erste der beiden", "la primera de las dos"),
    "first m": _mention("the first", "m", "the first of the two", "der erste der beiden", "el primero de los dos"),
    "second f": _mention("the second", "f", "the second of the two", "die zweite der beiden", "la segunda de las dos"),
    "second m": _mention("the second", "m", "the second of the two", "der zweite der beiden", "el segundo de los dos"),
}
"""People by name, and as they are spoken of once two are known."""


def _job(english: str, german: tuple[str, str], spanish: tuple[str, str]) -> Word:
    """A job, with the word for a woman and the word for a man in German and in Spanish."""
    de: Forms = {}
    es: Forms = {}
    for gender, title, trabajo in zip(GENDERS, german, spanish, strict=True):
        de |= {f"_{gender}": title}
        de |= {f"a_{gender}": f"{'eine' if gender == 'f' else 'ein'} {title}"}
        de |= {f"the_{gender}": f"{'die' if gender == 'f' else 'der'} {title}"}
        es |= {f"_{gender}": trabajo}
        es |= {f"a_{gender}": f"{'una' if gender == 'f' else 'un'} {trabajo}"}
        es |= {f"the_{gender}": f"{'la' if gender == 'f' else 'el'} {trabajo}"}
    return _word(english, {"": english}, de, es)


JOBS: Vocabulary = _vocabulary(
    _job(*words)
    for words in (
        ("baker", ("Bäckerin", "Bäcker"), ("panadera", "panadero")),
        ("farmer", ("Bäuerin", "Bauer"), ("granjera", "granjero")),
        ("teacher", ("Lehrerin", "Lehrer"), ("maestra", "maestro")),
        ("painter", ("Malerin", "Maler"), ("pintora", "pintor")),
        ("doctor", ("Ärztin", "Arzt"), ("médica", "médico")),
        ("gardener", ("Gärtnerin", "Gärtner"), ("jardinera", "jardinero")),
        ("cook", ("Köchin", "Koch"), ("cocinera", "cocinero")),
        ("singer", ("Sängerin", "Sänger"), ("cantante", "cantante")),
        ("shepherd", ("Schäferin", "Schäfer"), ("pastora", "pastor")),
        ("smith", ("Schmiedin", "Schmied"), ("herrera", "herrero")),
        ("writer", ("Schriftstellerin", "Schriftsteller"), ("escritora", "escritor")),
        ("potter", ("Töpferin", "Töpfer"), ("alfarera", "alfarero")),
    )
)


def _place(name: str, at: str, german: str, german_at: str, spanish: str, spanish_at: str) -> Word:
    article, noun = german.split()
    return _word(
        name,
        {"at": f"{at} the {name}", "to": f"to the {name}", "near": f"near the {name}"},
        {"at": german_at, "to": f"{_TO[article]} {noun}", "near": f"nahe {_DATIVE[article]} {noun}"},
        {
            "at": spanish_at,
            "to": _contracted("a", spanish),
            "until": f"hasta {spanish}",
            "near": f"cerca {_contracted('de', spanish)}",
        },
    )


PLACES: Vocabulary = _vocabulary(
    _place(*words)
    for words in (
        ("mill", "at", "die Mühle", "an der Mühle", "el molino", "en el molino"),
        ("lake", "at", "der See", "am See", "el lago", "junto al lago"),
        ("forest", "in", "der Wald", "im Wald", "el bosque", "en el bosque"),
        ("hill", "on", "der Hügel", "auf dem Hügel", "la colina", "en la colina"),
        ("river", "at", "der Fluss", "am Fluss", "el río", "junto al río"),
        ("bridge", "at", "die Brücke", "an der Brücke", "el puente", "junto al puente"),
        ("church", "at", "die Kirche", "an der Kirche", "la iglesia", "en la iglesia"),
        ("market", "at", "der Markt", "auf dem Markt", "el mercado", "en el mercado"),
        ("harbor", "at", "der Hafen", "am Hafen", "el puerto", "en el puerto"),
        ("castle", "at", "das Schloss", "am Schloss", "el castillo", "en el castillo"),
        ("beach", "on", "der Strand", "am Strand", "la playa", "en la playa"),
        ("tower", "at", "der Turm", "am Turm", "la torre", "junto a la torre"),
    )
)

_ADJECTIVES = (
    ("red", "rot", "rojo", "roja"),
    ("blue", "blau", "azul", "azul"),
    ("green", "grün", "verde", "verde"),
    ("yellow", "gelb", "amarillo", "amarilla"),
    ("small", "klein", "pequeño", "pequeña"),
    ("new", "neu", "nuevo", "nueva"),
)
_NOUNS = (
    ("key", "der Schlüssel", "la llave"),
    ("map", "die Karte", "el mapa"),
    ("letter", "der Brief", "la carta"),
    ("ring", "der Ring", "el anillo"),
    ("lamp", "die Lampe", "la lámpara"),
    ("cup", "die Tasse", "la taza"),
    ("cape", "der Umhang", "la capa"),
    ("box", "die Kiste", "la caja"),
    ("basket", "der Korb", "la cesta"),
    ("hat", "der Hut", "el sombrero"),
)
_CLOTHES = (
    ("cape", "der Umhang", "la capa"),
    ("hat", "der Hut", "el sombrero"),
    ("scarf", "der Schal", "la bufanda"),
)


def _noun(english: str, german: str, spanish: str) -> Word:
    article, noun = german.split()
    return _word(
        english,
        {"": english, "the": f"the {english}"},
        {"the": f"{_ACCUSATIVE[article]} {noun}", "dative": f"{_DATIVE[article]} {noun}", "subject": german},
        {"the": spanish},
    )


def _thing(adjective: tuple[str, str, str, str], noun: tuple[str, str, str]) -> Word:
    """A noun with its adjective; in German declined behind der, ein and sein."""
    english, german, masculine, feminine = adjective
    name, (article, german_noun), (spanish_article, spanish_noun) = noun[0], noun[1].split(), noun[2].split()
    strong = {"der": f"{german}en", "die": f"{german}e", "das": f"{german}es"}[article]
    weak = f"{german}en" if article == "der" else f"{german}e"
    ending = {"der": "en", "die": "e", "das": ""}[article]
    spanish = f"{spanish_noun} {feminine if spanish_article == 'la' else masculine}"
    return _word(
        f"{english} {name}",
        {"": f"{english} {name}", "the": f"the {english} {name}", "a": f"a {english} {name}"},
        {
            "subject": f"{article} {german}e {german_noun}",
            "the": f"{_ACCUSATIVE[article]} {weak} {german_noun}",
            "a": f"ein{ending} {strong} {german_noun}",
            "own_f": f"ihr{ending} {strong} {german_noun}",
            "own_m": f"sein{ending} {strong} {german_noun}",
        },
        {
            "": spanish,
            "the": f"{spanish_article} {spanish}",
            "a": f"{'una' if spanish_article == 'la' else 'un'} {spanish}",
        },
    )


NOUNS: Vocabulary = _vocabulary(_noun(*noun) for noun in _NOUNS)
THINGS: Vocabulary = _vocabulary(_thing(*both) for both in product(_ADJECTIVES, _NOUNS))
CLOTHES: Vocabulary = _vocabulary(_thing(*both) for both in product(_ADJECTIVES[:4], _CLOTHES))
NOUN_OF: dict[Word, Word] = {THINGS[f"{a[0]} {n[0]}"]: NOUNS[n[0]] for a, n in product(_ADJECTIVES, _NOUNS)}
"""The noun of a thing: "key" of "red key"."""


def _animal(english: str, german: str, spanish: str, oblique: str = "") -> Word:
    """An animal; `oblique` is the German noun in the accusative and dative, where it differs ("Hasen")."""
    article, noun = german.split()
    oblique = oblique or noun
    spanish_article, spanish_noun = spanish.split()
    return _word(
        english,
        {"a": f"{'an' if english[0] in 'aeiou' else 'a'} {english}", "the": f"the {english}"},
        {
            "subject": german,
            "a": f"{_A_ACCUSATIVE[article]} {oblique}",
            "a_subject": f"{_A[article]} {noun}",
            "the": f"{_ACCUSATIVE[article]} {oblique}",
            "dative": f"{_DATIVE[article]} {oblique}",
        },
        {
            "a": f"{'un' if spanish_article == 'el' else 'una'} {spanish_noun}",
            "the": spanish,
            "to": _contracted("a", spanish),
        },
    )


ANIMALS: Vocabulary = _vocabulary(
    _animal(*words)
    for words in (
        ("fox", "der Fuchs", "el zorro"),
        ("deer", "das Reh", "el ciervo"),
        ("bear", "der Bär", "el oso", "Bären"),
        ("cat", "die Katze", "el gato"),
        ("dog", "der Hund", "el perro"),
        ("duck", "die Ente", "el pato"),
        ("frog", "der Frosch", "la rana"),
        ("goat", "die Ziege", "la cabra"),
        ("mouse", "die Maus", "el ratón"),
        ("crow", "die Krähe", "el cuervo"),
    )
)
PETS: Vocabulary = _vocabulary(
    [ANIMALS[name] for name in ("cat", "dog", "duck", "goat")]
    + [
        _animal("turtle", "die Schildkröte", "la tortuga"),
        _animal("sheep", "das Schaf", "la oveja"),
        _animal("rabbit", "das Kaninchen", "el conejo"),
        _animal("donkey", "der Esel", "el burro"),
    ]
)


def _goods(english: tuple[str, str], german: tuple[str, str], spanish: tuple[str, str]) -> Iterator[Word]:
    """One to three of an item, such as "two apples"; each knows the plural on its own."""
    (article, german_noun), (spanish_article, spanish_noun) = german[0].split(), spanish[0].split()
    one = {"eng_Latn": f"one {english[0]}", "deu_Latn": f"{_A_ACCUSATIVE[article]} {german_noun}"}
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


def _feeling(english: str, german: str, feminine: str, masculine: str) -> Word:
    return _word(english, {"": english}, {"": german}, {"_f": feminine, "_m": masculine})


FEELINGS: Vocabulary = _vocabulary(
    _feeling(*words)
    for words in (
        ("happy", "froh", "contenta", "contento"),
        ("proud", "stolz", "orgullosa", "orgulloso"),
        ("sad", "traurig", "triste", "triste"),
        ("tired", "müde", "cansada", "cansado"),
    )
)
MORNINGS: Vocabulary = _vocabulary(
    _word(english, {"": english}, {"": german, "a": f"{german}er"}, {"": spanish})
    for english, german, spanish in (
        ("sunny", "sonnig", "soleada"),
        ("warm", "warm", "cálida"),
        ("windy", "windig", "ventosa"),
        ("quiet", "still", "tranquila"),
    )
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
ITEMS: Vocabulary = _vocabulary(_plain(names[0], names[1], german[1], spanish[1]) for names, german, spanish in _ITEMS)
"""Items in the plural: "apples"."""
GOODS: Vocabulary = _vocabulary(word for item in _ITEMS for word in _goods(*item))
"""One to three of an item, by names such as "2 apple"."""


SCENES: Vocabulary = _vocabulary(
    _plain(*words)
    for words in (
        ("garden", "in the garden", "im Garten", "en el jardín"),
        ("kitchen", "in the kitchen", "in der Küche", "en la cocina"),
        ("stable", "in the stable", "im Stall", "en el establo"),
        ("workshop", "in the workshop", "in der Werkstatt", "en el taller"),
    )
)


def _plant(english: str, german: str, spanish: str) -> Word:
    """Plants in the plural."""
    return _word(
        english,
        {"": english, "the": f"the {english}"},
        {"": german, "the": f"die {german}"},
        {"": spanish.split()[1], "the": spanish},
    )


PLANTS: Vocabulary = _vocabulary(
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
    return _word(
        english,
        {"a": f"a {english}", "the": f"the {english}"},
        {
            "subject": german,
            "a": f"{_A_ACCUSATIVE[article]} {noun}",
            "the": f"{_ACCUSATIVE[article]} {noun}",
            "dative": f"{_DATIVE[article]} {noun}",
        },
        {
            "a": f"{'una' if spanish_article == 'la' else 'un'} {spanish_noun}",
            "the": spanish,
            "to": _contracted("a", spanish),
            "of": _contracted("de", spanish),
        },
    )


DISHES: Vocabulary = _vocabulary(
    _made(*words)
    for words in (
        ("pizza", "die Pizza", "la pizza"),
        ("cake", "der Kuchen", "el pastel"),
        ("pie", "die Pastete", "la empanada"),
        ("tart", "die Torte", "la tarta"),
        ("soup", "die Suppe", "la sopa"),
    )
)
BEASTS: Vocabulary = _vocabulary(
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
FURNITURE: Vocabulary = _vocabulary(_made(*words) for words in _FURNITURE)
PAINTED: Vocabulary = _vocabulary(_thing(*both) for both in product(_ADJECTIVES[:4], _FURNITURE))
COLORS: Vocabulary = _vocabulary(
    _word(english, {"": english}, {"": german}, {"": f"de color {spanish}"})
    for english, german, spanish in (
        ("red", "rot", "rojo"),
        ("blue", "blau", "azul"),
        ("green", "grün", "verde"),
        ("yellow", "gelb", "amarillo"),
    )
)
SEASONS: Vocabulary = _vocabulary(
    _word(
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
