"""Tokens of ROUGE by language, and which texts they can read: where they cannot, nothing is scored.

Words stand between blanks in most scripts, and are runs of letters, marks and digits, as in XL-Sum (Hasan et al. 2021).
Chinese and Japanese put no blanks: each of their characters is a token. Thai, Lao, Khmer, Burmese and Tibetan need a
dictionary, which is not here. English keeps the tokens of rouge-score, so that its scores are those of the field.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from unicodedata import category, normalize

CHARACTERS = ("Hans", "Hant", "Jpan")
"""Scripts, in FLORES codes such as zho_Hans, whose characters are tokens."""
UNREADABLE = ("Thai", "Laoo", "Khmr", "Mymr", "Tibt")
"""Scripts without blanks between words."""
JOINERS = "\u200c\u200d"
"""Zero-width characters inside words of Persian and of Indic languages."""
_CHINESE = "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_DENSE = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"


@dataclass(frozen=True)
class Tokens:
    """A tokenizer with its name in results.json. unread: regular expression of the letters that it cannot read."""

    name: str
    tokenize: Callable[[str], list[str]]
    unread: str

    def read(self, text: str) -> bool:
        """True where the tokenizer reads at least half of the letters and digits of a text, which has some."""
        letters = "".join(character for character in text if category(character)[0] in "LN")
        return len(letters) > 2 * len(re.findall(self.unread, letters)) and bool(self.tokenize(text))

    def count(self, text: str) -> int:
        """Length of a text: in words between blanks, or in characters where they are tokens."""
        return len(self.tokenize(text) if self.name == "characters" else text.split())


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits, in lower case."""
    plain = normalize("NFKC", text).casefold()
    return "".join(c if category(c)[0] in "LMN" or c in JOINERS else " " for c in plain).split()


def characters(text: str) -> list[str]:
    """Each Chinese or Japanese character, and the `words` between them."""
    return words(re.sub(f"([{_CHINESE}])", r" \1 ", normalize("NFKC", text)))


@cache
def english(stem: bool) -> Tokens:
    """The tokens of the package rouge-score, which know a to z and digits; with Porter's stemmer or without."""
    from rouge_score.tokenizers import DefaultTokenizer

    name = "rouge-score, stemmed" if stem else "rouge-score"
    return Tokens(name, DefaultTokenizer(use_stemmer=stem).tokenize, r"[^a-zA-Z0-9]")


@cache
def tokens_of(lang: str) -> Tokens | None:
    """The tokens of a language, by its FLORES code; None where none fit. Downloads nothing."""
    script = lang.rpartition("_")[2]
    if lang == "eng_Latn":
        return english(stem=True)
    if script in UNREADABLE:
        return None
    if script in CHARACTERS:
        return Tokens("characters", characters, f"[{_DENSE}]")
    return Tokens("words", words, f"[{_CHINESE}{_DENSE}]")


def words_of(lang: str) -> Callable[[str], list[str]]:
    """The words of a language by its FLORES code: runs of letters, or characters; none where no blanks part them."""
    script = lang.rpartition("_")[2]
    if script in UNREADABLE:
        return lambda text: []
    return characters if script in CHARACTERS else words
