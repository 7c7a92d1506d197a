"""A corpus as examples: pieces with the ids of their languages, everything short enough."""

from collections.abc import Sequence
from dataclasses import dataclass

from lcm.codec import Splitter, SplitterSettings
from lcm.codec_lab.training.batches import Example
from lcm.codec_lab.training.corpus import Corpus
from lcm.codec_lab.training.start import Start
from lcm.errors import UserError


@dataclass(frozen=True)
class Examples:
    """train: sentences, then translations in both directions; texts: of the sentences, by their number."""

    train: list[Example]
    texts: list[str]
    validation: list[Example]
    validation_texts: list[str]


def make_examples(corpus: Corpus, start: Start, max_characters: int, validation_sentences: int) -> Examples:
    """Cut what is over the codec's `max_pieces`, as `lcm prepare` would; translations that are over it are left out."""
    splitter = Splitter(
        SplitterSettings(max_characters=max_characters),
        fits=lambda sentence: len(start.tokenizer.encode([sentence])[0]) <= start.max_pieces,
    )
    fitting = _fitting(corpus.sentences, start, splitter)
    train = [_sentence(start, pieces, lang, number) for number, (_, pieces, lang) in enumerate(fitting)]
    turned = [both for pair in corpus.pairs for both in (pair, pair.turned)]
    sources = start.tokenizer.encode([pair.source for pair in turned])
    wanted = start.tokenizer.encode([pair.target for pair in turned])
    for pair, source, target in zip(turned, sources, wanted, strict=True):
        if source and target and max(len(source), len(target)) <= start.max_pieces:
            langs = start.tokenizer.language(pair.source_lang), start.tokenizer.language(pair.target_lang)
            train.append(Example(tuple(source), tuple(target), langs[0], langs[1]))
    # Evenly from the whole: held-out files are often sorted by where their sentences come from.
    step = max(1, len(corpus.validation) // validation_sentences)
    watched = _fitting(corpus.validation[::step][:validation_sentences], start, splitter)
    return Examples(
        train,
        [text for text, _, _ in fitting],
        [_sentence(start, pieces, lang, number) for number, (_, pieces, lang) in enumerate(watched)],
        [text for text, _, _ in watched],
    )


def _sentence(start: Start, pieces: Sequence[int], lang: str, number: int) -> Example:
    token = start.tokenizer.language(lang)
    return Example(tuple(pieces), tuple(pieces), token, token, number)


def _fitting(
    sentences: Sequence[tuple[str, str]], start: Start, splitter: Splitter
) -> list[tuple[str, list[int], str]]:
    """Distinct sentences with their pieces and languages, none over the limit, none without a piece."""
    rows = start.tokenizer.encode([sentence for sentence, _ in sentences])
    found: dict[tuple[str, str], list[int]] = {}
    for (sentence, lang), pieces in zip(sentences, rows, strict=True):
        if len(pieces) <= start.max_pieces:
            found.setdefault((sentence, lang), pieces)
            continue
        for part in splitter.split(sentence):
            found.setdefault((part, lang), start.tokenizer.encode([part])[0])
    fitting = [(text, pieces, lang) for (text, lang), pieces in found.items() if 0 < len(pieces) <= start.max_pieces]
    if sentences and not fitting:
        raise UserError(f"none of {len(sentences):,} sentences has 1 to {start.max_pieces} pieces")
    return fitting
