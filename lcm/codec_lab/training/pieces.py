"""A corpus in pieces: rows with the ids of their languages, none over the codec's limit."""

from collections.abc import Sequence
from dataclasses import dataclass

from lcm.codec.text import Splitter, SplitterSettings
from lcm.codec_lab.training.batches import PieceRow
from lcm.codec_lab.training.corpus import Corpus
from lcm.codec_lab.training.settings import CorpusSettings
from lcm.codec_lab.training.start import Start
from lcm.errors import UserError


@dataclass(frozen=True)
class PieceRows:
    """train: sentences, then translations in both directions. texts: the sentences themselves, by number."""

    train: list[PieceRow]
    texts: list[str]
    validation: list[PieceRow]
    validation_texts: list[str]


def tokenize(corpus: Corpus, start: Start, data: CorpusSettings) -> PieceRows:
    """Cut sentences over the codec's `max_pieces` as `lcm prepare` would; drop translations that are over it."""
    texts, train = _sentences(corpus.sentences, start, data)
    pairs = [both for pair in corpus.pairs for both in (pair, pair.turned)]
    sources = start.tokenizer.encode([pair.source for pair in pairs])
    targets = start.tokenizer.encode([pair.target for pair in pairs])
    for pair, source, target in zip(pairs, sources, targets, strict=True):
        if source and target and max(len(source), len(target)) <= start.max_pieces:
            source_lang, target_lang = map(start.tokenizer.language, (pair.source_lang, pair.target_lang))
            train.append(PieceRow(tuple(source), tuple(target), source_lang, target_lang))
    # An even sample: held-out files are often sorted by where their sentences come from.
    step = max(1, len(corpus.validation) // data.validation_sentences)
    validation_texts, validation = _sentences(corpus.validation[::step][: data.validation_sentences], start, data)
    return PieceRows(train, texts, validation, validation_texts)


def _sentences(
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
