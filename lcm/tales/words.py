"""The words of the world in English, German and Spanish: people, jobs, places, things, animals, goods.

German nouns are given with their article ("der See"), Spanish ones too ("el lago"); cases and contractions are made
from these.
"""

from collections.abc import Iterable
from itertools import product

from lcm.tales.grammar import GENDERS, Vocabulary, Word

Forms = dict[str, str]

ACCUSATIVE = {"der": "den", "die": "die", "das": "das"}
DATIVE = {"der": "dem", "die": "der", "das": "dem"}
_A = {"der": "ein", "die": "eine", "das": "ein"}
A_ACCUSATIVE = {"der": "einen", "die": "eine", "das": "ein"}
_TO = {"der": "zum", "die": "zur", "das": "zum"}
_BY = {"der": "beim", "die": "bei der", "das": "beim"}
_INTO = {"Wald": "in den Wald", "Hügel": "auf den Hügel", "Markt": "auf den Markt"}
"""Places that one does not only go up to."""


def word(name: str, english: Forms, german: Forms, spanish: Forms, gender: str = "") -> Word:
    return Word(name, {"eng_Latn": english, "deu_Latn": german, "spa_Latn": spanish}, gender)


def plain(name: str, english: str, german: str, spanish: str) -> Word:
    """A word with one form a language."""
    return word(name, {"": english}, {"": german}, {"": spanish})


def vocabulary(words: Iterable[Word]) -> Vocabulary:
    return {word.name: word for word in words}


def contracted(preposition: str, spanish: str) -> str:
    """Spanish "a el lago" is "al lago", "de el lago" is "del lago"."""
    article, noun = spanish.split(" ", 1)
    joined = {("a", "el"): "al", ("de", "el"): "del"}.get((preposition, article), f"{preposition} {article}")
    return f"{joined} {noun}"


def _person(name: str, gender: str) -> Word:
    own_german, own_english = {"f": ("ihr", "her"), "m": ("sein", "his")}[gender]
    return word(name, {"": name, "own": own_english}, {"": name, "own": own_german}, {"": name, "own": "su"}, gender)


PEOPLE: Vocabulary = vocabulary(
    [_person(name, "f") for name in ("Anna", "Clara", "Emma", "Sofia", "Lina", "Maria", "Mia", "Nora", "Paula", "Vera")]
    + [
        _person(name, "m")
        for name in ("Karl", "David", "Bruno", "Jonas", "Leo", "Martin", "Max", "Oscar", "Simon", "Tom")
    ]
)


def _mention(name: str, gender: str, english: str, german: str, spanish: str) -> Word:
    return word(name, {"": english}, {"": german}, {"": spanish}, gender)


MENTIONS: Vocabulary = {
    **PEOPLE,
    "she": _mention("she", "f", "she", "sie", "ella"),
    "he": _mention("he", "m", "he", "er", "él"),
    "first f": _mention("the first", "f", "the first of the two", "die Erste der beiden", "la primera de las dos"),
    "first m": _mention("the first", "m", "the first of the two", "der Erste der beiden", "el primero de los dos"),
    "second f": _mention("the second", "f", "the second of the two", "die Zweite der beiden", "la segunda de las dos"),
    "second m": _mention("the second", "m", "the second of the two", "der Zweite der beiden", "el segundo de los dos"),
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
        de |= {f"work_{gender}": f"{'ihrer' if gender == 'f' else 'seiner'} Arbeit als {title}"}
        es |= {f"_{gender}": trabajo}
        es |= {f"a_{gender}": f"{'una' if gender == 'f' else 'un'} {trabajo}"}
        es |= {f"the_{gender}": f"{'la' if gender == 'f' else 'el'} {trabajo}"}
    return word(english, {"": english}, de, es)


JOBS: Vocabulary = vocabulary(
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
    return word(
        name,
        {"at": f"{at} the {name}", "to": f"to the {name}", "near": f"near the {name}"},
        {
            "at": german_at,
            "to": f"{_TO[article]} {noun}",
            "into": _INTO.get(noun, f"{_TO[article]} {noun}"),
            "near": f"{_BY[article]} {noun}",
        },
        {
            "at": spanish_at,
            "to": contracted("a", spanish),
            "until": f"hasta {spanish}",
            "near": f"cerca {contracted('de', spanish)}",
        },
    )


PLACES: Vocabulary = vocabulary(
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

ADJECTIVES = (
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
    return word(
        english,
        {"": english, "the": f"the {english}"},
        {"the": f"{ACCUSATIVE[article]} {noun}", "dative": f"{DATIVE[article]} {noun}", "subject": german},
        {"the": spanish},
    )


def thing(adjective: tuple[str, str, str, str], noun: tuple[str, str, str]) -> Word:
    """A noun with its adjective; in German declined behind der, ein and sein."""
    english, german, masculine, feminine = adjective
    name, (article, german_noun), (spanish_article, spanish_noun) = noun[0], noun[1].split(), noun[2].split()
    strong = {"der": f"{german}en", "die": f"{german}e", "das": f"{german}es"}[article]
    weak = f"{german}en" if article == "der" else f"{german}e"
    ending = {"der": "en", "die": "e", "das": ""}[article]
    spanish = f"{spanish_noun} {feminine if spanish_article == 'la' else masculine}"
    return word(
        f"{english} {name}",
        {"": f"{english} {name}", "the": f"the {english} {name}", "a": f"a {english} {name}"},
        {
            "subject": f"{article} {german}e {german_noun}",
            "the": f"{ACCUSATIVE[article]} {weak} {german_noun}",
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


_PUTS_ON = {"Umhang": ("legt sich", "um"), "Hut": ("setzt sich", "auf"), "Schal": ("bindet sich", "um")}


def _garment(adjective: tuple[str, str, str, str], noun: tuple[str, str, str]) -> Word:
    """Something to wear; in German the noun decides how one puts it on."""
    garment = thing(adjective, noun)
    verb, prefix = _PUTS_ON[noun[1].split()[1]]
    german = garment.forms["deu_Latn"]
    german = {**german, "puts_on": f"{verb} {german['the']} {prefix}"}
    return Word(garment.name, {**garment.forms, "deu_Latn": german})


NOUNS: Vocabulary = vocabulary(_noun(*noun) for noun in _NOUNS)
THINGS: Vocabulary = vocabulary(thing(*both) for both in product(ADJECTIVES, _NOUNS))
CLOTHES: Vocabulary = vocabulary(_garment(*both) for both in product(ADJECTIVES[:4], _CLOTHES))
NOUN_OF: dict[Word, Word] = {THINGS[f"{a[0]} {n[0]}"]: NOUNS[n[0]] for a, n in product(ADJECTIVES, _NOUNS)}
"""The noun of a thing: "key" of "red key"."""


def _animal(english: str, german: str, spanish: str, oblique: str = "") -> Word:
    """An animal; `oblique` is the German noun in the accusative and dative, where it differs ("Hasen")."""
    article, noun = german.split()
    oblique = oblique or noun
    spanish_article, spanish_noun = spanish.split()
    return word(
        english,
        {"a": f"{'an' if english[0] in 'aeiou' else 'a'} {english}", "the": f"the {english}"},
        {
            "subject": german,
            "a": f"{A_ACCUSATIVE[article]} {oblique}",
            "a_subject": f"{_A[article]} {noun}",
            "the": f"{ACCUSATIVE[article]} {oblique}",
            "dative": f"{DATIVE[article]} {oblique}",
        },
        {
            "a": f"{'un' if spanish_article == 'el' else 'una'} {spanish_noun}",
            "the": spanish,
            "to": contracted("a", spanish),
        },
    )


ANIMALS: Vocabulary = vocabulary(
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
PETS: Vocabulary = vocabulary(
    [ANIMALS[name] for name in ("cat", "dog", "duck", "goat")]
    + [
        _animal("turtle", "die Schildkröte", "la tortuga"),
        _animal("sheep", "das Schaf", "la oveja"),
        _animal("rabbit", "das Kaninchen", "el conejo"),
        _animal("donkey", "der Esel", "el burro"),
    ]
)


def _feeling(english: str, german: str, feminine: str, masculine: str) -> Word:
    return word(english, {"": english}, {"": german}, {"_f": feminine, "_m": masculine})


FEELINGS: Vocabulary = vocabulary(
    _feeling(*words)
    for words in (
        ("happy", "froh", "contenta", "contento"),
        ("proud", "stolz", "orgullosa", "orgulloso"),
        ("sad", "traurig", "triste", "triste"),
        ("tired", "müde", "cansada", "cansado"),
    )
)
MORNINGS: Vocabulary = vocabulary(
    word(english, {"": english}, {"": german, "a": f"{german}er"}, {"": spanish})
    for english, german, spanish in (
        ("sunny", "sonnig", "soleada"),
        ("warm", "warm", "cálida"),
        ("windy", "windig", "ventosa"),
        ("quiet", "still", "tranquila"),
    )
)
