"""The test set: documents and pairs with their vectors, read from prepared folders or encoded from a file.

Shapes.  n concepts of one document · D concept width
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lcm.codec.text import is_length_wish
from lcm.data.shard_cache import RemoteShard, split_shards
from lcm.data.shards import CONCEPTS, SOURCE, Shard, read_sample
from lcm.errors import UserError
from lcm.inference import LCM
from lcm.ledger import Ledger
from lcm.options import existing_file
from lcm.prepare import Columns, Document, Refused, Sources
from lcm.tales import LANGUAGES, Level, tales

SHARDS, REMOTE_SHARDS = 200, 8
"""Training shards that statistics are taken from, spread over all, perhaps thousands; fewer if they must be fetched."""
MEAN_CONCEPTS = 100_000
"""Concepts whose mean is taken, spread over these shards."""


@dataclass(frozen=True)
class Example:
    """A document or a pair as it is stored: "[MODEL]:" and "End of text." are among its sentences.

    source_length: concepts of a pair's prompt with its suffix; 0 for a document
    others:        further summaries of a pair's document
    """

    id: str
    sentences: list[str]
    source_length: int
    vectors: Float[Tensor, "n D"]
    others: tuple[str, ...] = ()

    @property
    def document(self) -> list[str]:
        """The sentences of a document, or those of a pair before its suffix; no markers."""
        return self.sentences[: self.source_length - 1] if self.source_length else self.sentences[:-1]

    @property
    def answer(self) -> list[str]:
        """The summary of a pair; empty for a document."""
        return self.sentences[self.source_length : -1] if self.source_length else []


@dataclass(frozen=True)
class Pair(Document):
    """A document with its summary. others: further ones, where a row lists several"""

    others: tuple[str, ...] = ()


class Pairs(Columns):
    """Columns of rows that are {document, summary}, where summary may be a list of texts."""

    def document(self, row: dict[str, Any], name: str, place: str, lang: str, folder: Path) -> Document | Refused:
        given = row.get(self.summary or "")
        found = []
        for text in given if isinstance(given, list) and given else [given]:
            one = {**row, self.summary: text} if self.summary in row else row
            if isinstance(pair := super().document(one, name, place, lang, folder), Refused):
                return pair
            found.append(pair)
        return Pair(**vars(found[0]), others=tuple(pair.summary or "" for pair in found[1:]))


PAIR, TEXT = Pairs(text="document", summary="summary", split=""), Columns(split="")


class PairOrText(Columns):
    """Columns of rows that are {document, summary} or {text}, whatever their split."""

    @property
    def wanted(self) -> set[str]:
        return PAIR.wanted | TEXT.wanted

    def document(self, row: dict[str, Any], name: str, place: str, lang: str, folder: Path) -> Document | Refused:
        both = [columns.document(row, name, place, lang, folder) for columns in (PAIR, TEXT)]
        neither = Refused("neither {document, summary} nor {text}", place)
        refused = [r for r in both if isinstance(r, Refused) and not r.reason.startswith("no column")]
        return next((result for result in both if isinstance(result, Document)), refused[0] if refused else neither)


@dataclass(frozen=True)
class EvaluationSet:
    """Examples drawn at random, and the rows that could not be used.

    drawn:   the examples to score
    rows:    number of rows that they were drawn from, unusable ones included
    split:   the split of prepared folders; None for a file
    refused: the unusable rows
    """

    drawn: list[Example]
    rows: int
    split: str | None = None
    refused: Sequence[Refused] = ()

    @property
    def pairs(self) -> list[Example]:
        return [example for example in self.drawn if example.source_length]

    @property
    def documents(self) -> list[Example]:
        return [example for example in self.drawn if not example.source_length]

    @property
    def ledger(self) -> Ledger:
        """The rows that were refused, by reason."""
        found = Ledger()
        for row in self.refused:
            found.add(row.reason, row.example)
        return found


def from_folders(folders: Sequence[str], lcm: LCM, split: str | None, limit: int, seed: int) -> EvaluationSet:
    """Draw at most `limit` examples of one split; by default test, or validation where there is no test, never train.

    Raises UserError for a folder of another codec than the model's, and for an empty split.
    """
    shards = {name: shards_of(folders, lcm, name) for name in ([split] if split else ["test", "validation"])}
    chosen = next((name for name, found in shards.items() if found), None)
    if chosen is None:
        raise UserError(
            f"--data {' '.join(folders)}: no document in {' or '.join(shards)}; prepare more text, "
            "or score what the model was trained on with --split train"
        )
    places = [(shard, i) for shard in shards[chosen] for i in range(shard.record.documents)]
    drawn, checked = [], set[Path]()
    for i in _draw(len(places), limit, seed):
        shard, number = places[i]
        if shard.path not in checked:
            shard.load()  # which compares it with the manifest
            checked.add(shard.path)
        stored = read_sample(shard.fetch(), number)
        vectors = torch.from_numpy(stored.vectors.astype(np.float32))
        # A wish says how long the reference is, which no model may know.
        first = int(stored.source_length > 0 and is_length_wish(stored.sentences[0]))
        length = stored.source_length - first
        drawn.append(Example(stored.id, stored.sentences[first:], length, vectors[first:]))
    return EvaluationSet(drawn, len(places), chosen)


def from_file(path: str, lcm: LCM, limit: int, seed: int) -> EvaluationSet:
    """Draw at most `limit` rows of a file, {document, summary} or {text}; split and encode them as the training data.

    Raises UserError if no row can be used.
    """
    rows = list(Sources([existing_file(path, "--data")], PairOrText()))
    refused = [row for row in rows if isinstance(row, Refused)]
    texts = [row for row in rows if isinstance(row, Document)]
    return drawn_from(texts, EvaluationSet([], len(rows), refused=refused), f"--data={path}", lcm, limit, seed)


def drawn_from(
    texts: Sequence[Document], examples: EvaluationSet, setting: str, lcm: LCM, limit: int, seed: int
) -> EvaluationSet:
    """Draw at most `limit` texts, and encode them. examples: the set without its texts; setting: stands for its name.

    Raises UserError without a text.
    """
    if not texts:
        raise UserError(f"{setting}: no row to score; {examples.ledger.line or 'it is empty'}")
    texts = [texts[i] for i in _draw(len(texts), limit, seed)]
    drawn = _encoded([(text.id, *_sentences(text, lcm)) for text in texts], lcm)
    others = [text.others if isinstance(text, Pair) else () for text in texts]
    return replace(examples, drawn=[replace(one, others=of) for one, of in zip(drawn, others, strict=True)])


def from_tales(levels: Sequence[type[Level]], lcm: LCM, limit: int, seed: int) -> EvaluationSet:
    """Draw stories of the test split, `limit` over all levels, and as many others with their gists of one sentence.

    Raises UserError for a model of another language than the stories have.
    """
    language = next((known for known in LANGUAGES if known == lcm.record.lang), None)
    if language is None:
        raise UserError(f"--truth: stories are in {', '.join(LANGUAGES)}, not in {lcm.record.lang}; name --data")
    each = -(-limit // len(levels))
    endless = [tales(level, 10**9, language, seed) for level in levels]
    drawn = [list(islice((tale for tale in of_one if tale.split == "test"), 2 * each)) for of_one in endless]
    record, texts = lcm.record, list[tuple[str, list[str], int]]()
    for of_one in drawn:
        texts += [(tale.id, [*tale.story, record.end_of_text], 0) for tale in of_one[:each]]
        for tale in of_one[each:]:
            prompt = [*tale.story, record.prompt_suffix]
            texts.append((f"{tale.id}-one", [*prompt, *tale.gist, record.end_of_text], len(prompt)))
    return EvaluationSet(_encoded(texts, lcm), len(texts))


def shards_of(folders: Sequence[str | Path], lcm: LCM, split: str) -> list[Shard]:
    """The shards of a split that are not empty. Raises UserError if they are of another codec than the model's."""
    codec = lcm.record.fingerprint, lcm.record.name
    return [s for folder in folders for s in split_shards(folder, split, *codec) if s.record.documents]


def mean_vector(shards: Sequence[Shard], dim: int) -> Float[Tensor, " D"]:
    """The mean of about MEAN_CONCEPTS concepts of whole documents, without their end-of-text vectors."""
    shards = _spread(shards)
    step = max(1, sum(shard.record.concepts for shard in shards) // MEAN_CONCEPTS)
    total, count = np.zeros(dim), 0
    for shard in shards:
        for offset, concepts, _ in shard.load()[::step].tolist():
            vectors = shard.read(offset, concepts, dim)[:-1]
            total += vectors.sum(axis=0, dtype=np.float64)
            count += len(vectors)
    return torch.from_numpy(total / max(1, count)).float()


def answer_lengths(shards: Sequence[Shard]) -> list[int]:
    """Number of sentences of each pair's summary, from the indexes alone."""
    indexes = [index[index[:, SOURCE] > 0] for index in (shard.load() for shard in _spread(shards))]
    return [int(n) for index in indexes for n in index[:, CONCEPTS] - index[:, SOURCE] - 1]


def _spread(shards: Sequence[Shard]) -> Sequence[Shard]:
    most = REMOTE_SHARDS if any(isinstance(shard, RemoteShard) for shard in shards) else SHARDS
    return shards[:: -(-len(shards) // most)] if shards else shards


def _draw(total: int, limit: int, seed: int) -> list[int]:
    """Draw `limit` distinct numbers below `total`, in rising order; all of them if there are fewer."""
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(total, generator=generator)[:limit].tolist())


def _encoded(texts: Sequence[tuple[str, list[str], int]], lcm: LCM) -> list[Example]:
    """Encode texts, each (id, sentences, source_length), in one call of the codec.

    The last sentence is a marker, and so is the one before an answer: these are in the training data's language.
    """
    flat = [sentence for _, sentences, _ in texts for sentence in sentences]
    langs = [
        lcm.record.lang if place in (source_length - 1, len(sentences) - 1) else lcm.lang
        for _, sentences, source_length in texts
        for place in range(len(sentences))
    ]
    vectors = torch.split(lcm.codec.encode(flat, lang=langs), [len(sentences) for _, sentences, _ in texts])
    return [Example(*text, part) for text, part in zip(texts, vectors, strict=True)]


def _sentences(text: Document, lcm: LCM) -> tuple[list[str], int]:
    """Split a row into sentences with the markers that prepare adds; also return its source_length."""
    record, split = lcm.record, lcm.splitter.split
    if text.summary is None:
        return [*split(text.text), record.end_of_text], 0
    prompt = [*split(text.text), record.prompt_suffix]
    return [*prompt, *split(text.summary), record.end_of_text], len(prompt)
