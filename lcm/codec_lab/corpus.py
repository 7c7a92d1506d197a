"""Text files → distinct training sentences, translations and held-out sentences → rows of pieces.

Held-out sentences are never trained on. No row is over the codec's limit, and each has the ids of its languages.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lcm.codec.text import Splitter, SplitterSettings
from lcm.codec_lab.batches import PieceRow
from lcm.codec_lab.settings import CorpusSettings
from lcm.codec_lab.start import Start
from lcm.errors import UserError
from lcm.ledger import Ledger
from lcm.options import existing_file
from lcm.prepare import Columns, Refused, Sources, find_inputs, read_rows, split_of
from lcm.streams import read_lines


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
    refused:  rows that are no documents, files of folders that are no input, translations that are too long
    """

    sentences: list[tuple[str, str]] = field(default_factory=list)
    pairs: list[Translation] = field(default_factory=list)
    validation: list[tuple[str, str]] = field(default_factory=list)
    documents: int = 0
    left_out: int = 0
    refused: Ledger = field(default_factory=Ledger)

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
    splits: dict[str, dict[tuple[str, str], None]] = {"train": {}, "validation": {}, "test": {}}
    for text in data.text:
        files = find_inputs(text.files, setting="data.text", passed=corpus.refused)
        for document in Sources(files, Columns(text=text.column), text.lang):
            if isinstance(document, Refused):
                corpus.refused.add(document.reason, document.example)
                continue
            corpus.documents += 1
            sentences = splitter.split(document.text)
            if found.touches(sentences):
                corpus.left_out += 1
            else:
                split = document.split or split_of(document.id)
                splits[split] |= dict.fromkeys((sentence, text.lang) for sentence in sentences)
    for pair in read_pairs(data.pairs, corpus.refused):
        if any(found.touches(splitter.split(text)) for text in (pair.source, pair.target)):
            corpus.left_out += 1
        else:
            corpus.pairs.append(pair)
    validation = splits["validation"]
    if held_out:
        validation = dict.fromkeys((" ".join(sentence.split()), data.text[0].lang) for sentence in held_out)
    corpus.sentences = [sentence for sentence in splits["train"] if sentence not in validation]
    corpus.validation = list(validation)
    if not corpus.sentences:
        raise UserError(
            f"data.text has no sentence to train on: {corpus.documents} documents were read, {corpus.left_out} of them "
            f"held out; {corpus.refused.line or 'nothing was refused'}"
        )
    return corpus


def read_held_out(name: str) -> list[str]:
    """Read a file of one sentence a line; in a line with tabs, the sentence follows the last one."""
    lines = read_lines(existing_file(name, "data.held_out"), "data.held_out")
    return [sentence for line in lines if (sentence := line.rsplit("\t", 1)[-1].strip())]


def read_pairs(names: Sequence[str], passed: Ledger | None = None) -> Iterator[Translation]:
    """Read translations from .jsonl files, plain or compressed. Raises UserError for a row without its four columns."""
    expected = f"expected text in the columns {', '.join(Translation._fields)}"
    for path in find_inputs(names, setting="data.pairs", passed=passed) if names else ():
        for number, row in read_rows(path):
            if isinstance(row, Refused):
                raise UserError(f"data.pairs: {row.example}: {row.reason}; {expected}")
            texts = [row.get(column) for column in Translation._fields]
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise UserError(f"data.pairs: {path}:{number}: {expected}; mend the row, or leave it out")
            source, target, source_lang, target_lang = map(str, texts)
            yield Translation(" ".join(source.split()), " ".join(target.split()), source_lang, target_lang)


@dataclass(frozen=True)
class PieceRows:
    """train: sentences, then translations in both directions. texts: the sentences themselves, by number."""

    train: list[PieceRow]
    texts: list[str]
    validation: list[PieceRow]
    validation_texts: list[str]


def tokenize(corpus: Corpus, start: Start, data: CorpusSettings) -> PieceRows:
    """Cut sentences over the codec's `max_pieces` as `lcm prepare` would; drop translations that are over it."""
    texts, train = _sentence_rows(corpus.sentences, start, data)
    pairs = [both for pair in corpus.pairs for both in (pair, pair.turned)]
    sources = start.tokenizer.encode([pair.source for pair in pairs])
    targets = start.tokenizer.encode([pair.target for pair in pairs])
    for pair, source, target in zip(pairs, sources, targets, strict=True):
        if source and target and max(len(source), len(target)) <= start.max_pieces:
            source_lang, target_lang = map(start.tokenizer.language, (pair.source_lang, pair.target_lang))
            train.append(PieceRow(tuple(source), tuple(target), source_lang, target_lang))
        else:
            corpus.refused.add("translation over max_pieces", pair.source[:80])
    # An even sample: held-out files are often sorted by where their sentences come from.
    step = max(1, len(corpus.validation) // data.validation_sentences)
    validation_texts, validation = _sentence_rows(corpus.validation[::step][: data.validation_sentences], start, data)
    return PieceRows(train, texts, validation, validation_texts)


def _sentence_rows(
    sentences: Sequence[tuple[str, str]], start: Start, data: CorpusSettings
) -> tuple[list[str], list[PieceRow]]:
    """Distinct (sentence, language) as texts and as rows, of 1 to `max_pieces` pieces each."""
    encode, most = start.tokenizer.encode, start.max_pieces
    splitter = Splitter(
        SplitterSettings(max_characters=data.max_characters), fits=lambda sentence: len(encode([sentence])[0]) <= most
    )
    found: dict[tuple[str, str], list[int]] = {}
    for (sentence, lang), pieces in zip(sentences, encode([text for text, _ in sentences]), strict=True):
        if len(pieces) <= most:
            found.setdefault((sentence, lang), pieces)
        else:
            found |= {(part, lang): encode([part])[0] for part in splitter.split(sentence) if (part, lang) not in found}
    fitting = {key: tuple(pieces) for key, pieces in found.items() if 0 < len(pieces) <= most}
    if sentences and not fitting:
        raise UserError(f"none of {len(sentences):,} sentences has 1 to {most} pieces")
    tokens = {lang: start.tokenizer.language(lang) for _, lang in fitting}
    rows = [
        PieceRow(pieces, pieces, tokens[lang], tokens[lang], number)
        for number, ((_, lang), pieces) in enumerate(fitting.items())
    ]
    return [text for text, _ in fitting], rows
