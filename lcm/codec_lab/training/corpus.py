"""Text files → distinct training sentences, translations, and held-out sentences that are never trained on."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lcm.codec.text import Splitter, SplitterSettings
from lcm.codec_lab.training.settings import CorpusSettings
from lcm.errors import UserError
from lcm.files import existing_file
from lcm.prepare import Columns, Refused, Sources, find_inputs, read_rows, split_of

PAIR_COLUMNS = ("source", "target", "source_lang", "target_lang")


class Translation(NamedTuple):
    """One meaning in two languages."""

    source: str
    target: str
    source_lang: str
    target_lang: str

    @property
    def turned(self) -> "Translation":
        return Translation(self.target, self.source, self.target_lang, self.source_lang)


@dataclass
class Corpus:
    """sentences: distinct (text, language), in order of appearance. validation: likewise, none of them trained on.

    left_out: documents and pairs that hold a held-out sentence
    refused:  rows that are no documents
    """

    sentences: list[tuple[str, str]] = field(default_factory=list)
    pairs: list[Translation] = field(default_factory=list)
    validation: list[tuple[str, str]] = field(default_factory=list)
    documents: int = 0
    left_out: int = 0
    refused: int = 0

    @property
    def texts(self) -> list[str]:
        """All training text, for a vocabulary."""
        return [text for text, _ in self.sentences] + [text for p in self.pairs for text in (p.source, p.target)]

    @property
    def languages(self) -> list[str]:
        """Languages in order of appearance."""
        both = [lang for pair in self.pairs for lang in (pair.source_lang, pair.target_lang)]
        return list(dict.fromkeys([*(lang for _, lang in self.sentences), *both]))


class HeldOut:
    """Finds held-out sentences in documents, as the splitter cuts them."""

    def __init__(self, sentences: Iterable[str], splitter: Splitter) -> None:
        self._by_first: dict[str, list[list[str]]] = {}
        for sentence in sentences:
            if parts := splitter.split(sentence):
                self._by_first.setdefault(parts[0], []).append(parts)

    def touches(self, sentences: Sequence[str]) -> bool:
        """True if a whole held-out sentence is among these."""
        return any(
            list(sentences[place : place + len(parts)]) == parts
            for place, sentence in enumerate(sentences)
            for parts in self._by_first.get(sentence, ())
        )


def read_corpus(data: CorpusSettings) -> Corpus:
    """Read all files of `data`. Raises UserError for a missing file, and where no sentence is left to train on."""
    if not data.text:
        raise UserError("data.text is empty: name the files to train on, such as examples/corpus")
    splitter = Splitter(SplitterSettings(max_characters=data.max_characters))
    held_out = [sentence for name in data.held_out for sentence in read_held_out(name)]
    corpus, found = Corpus(), HeldOut(held_out, splitter)
    train: dict[tuple[str, str], None] = {}
    validation: dict[tuple[str, str], None] = {}
    for lang, split, sentences in _documents(data, splitter, corpus):
        if found.touches(sentences):
            corpus.left_out += 1
        elif split == "train":
            train |= dict.fromkeys((sentence, lang) for sentence in sentences)
        elif split == "validation":
            validation |= dict.fromkeys((sentence, lang) for sentence in sentences)
    for pair in read_pairs(data.pairs):
        if any(found.touches(splitter.split(text)) for text in (pair.source, pair.target)):
            corpus.left_out += 1
        else:
            corpus.pairs.append(pair)
    if held_out:
        validation = dict.fromkeys((" ".join(sentence.split()), data.text[0].lang) for sentence in held_out)
    corpus.sentences = [sentence for sentence in train if sentence not in validation]
    corpus.validation = list(validation)
    if not corpus.sentences:
        raise UserError(
            f"data.text has no sentence to train on: {corpus.documents} documents were read, {corpus.left_out} of them "
            f"held out and {corpus.refused} rows refused; lcm prepare on the same files tells why rows are refused"
        )
    return corpus


def _documents(data: CorpusSettings, splitter: Splitter, corpus: Corpus) -> Iterator[tuple[str, str, list[str]]]:
    """Yield language, split and sentences of each document, and count documents and refused rows in `corpus`."""
    for text in data.text:
        for document in Sources(find_inputs(text.files, setting="data.text"), Columns(text=text.column), text.lang):
            if isinstance(document, Refused):
                corpus.refused += 1
                continue
            corpus.documents += 1
            yield text.lang, document.split or split_of(document.id), splitter.split(document.text)


def read_held_out(name: str) -> list[str]:
    """Read a file of one sentence a line; in a line with tabs, the sentence follows the last one."""
    lines = existing_file(name, "data.held_out").read_text(encoding="utf-8").splitlines()
    return [sentence for line in lines if (sentence := line.rsplit("\t", 1)[-1].strip())]


def read_pairs(names: Sequence[str]) -> Iterator[Translation]:
    """Read translations from .jsonl files, plain or compressed. Raises UserError for a row without its four columns."""
    expected = f"expected text in the columns {', '.join(PAIR_COLUMNS)}"
    for path in find_inputs(names, setting="data.pairs") if names else ():
        for number, row in read_rows(path):
            if isinstance(row, Refused):
                raise UserError(f"data.pairs: {row.example}: {row.reason}; {expected}")
            texts = [row.get(column) for column in PAIR_COLUMNS]
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise UserError(f"data.pairs: {path}:{number}: {expected}; mend the row, or leave it out")
            source, target, source_lang, target_lang = map(str, texts)
            yield Translation(" ".join(source.split()), " ".join(target.split()), source_lang, target_lang)
