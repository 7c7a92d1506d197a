"""Texts that a model writes, to be judged beside those of people: summaries, their controls, continuations."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from lcm.evaluation.examples import Example
from lcm.inference import LCM, Bank, Long, Task
from lcm.models import Sampling
from lcm.scores import Row

Texts = Sequence[Sequence[str]]
"""The text of each example, as sentences."""
MOST = 16
"""Sentences of the longest summary that a model may write."""
LEAD = 3
"""Sentences of the lead control if no training pairs say how long summaries are: the custom for news."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of summaries in sentences, from the training pairs alone, never from the pairs that are scored.

    lead: the median: what the lead control copies from the document's beginning
    most: the longest, up to MOST: the limit of the model's summaries, which should stop by themselves before
    """

    lead: int
    most: int

    @classmethod
    def of(cls, answers: Sequence[int], slots: int) -> "Lengths":
        room = min(MOST, slots // 2)
        if not answers:
            return cls(lead=LEAD, most=room)
        return cls(lead=max(1, int(np.median(answers))), most=min(room, max([1, *answers])))


@dataclass(frozen=True)
class Writer:
    """A model with its sampling settings, and the bank of nearest sentences if there is one."""

    lcm: LCM
    bank: Bank | None
    sampling: Sampling
    long: Long | None = None
    length: float | None = None

    def write(self, examples: Sequence[Example], prompts: Sequence[int], task: Task, most: int) -> list[dict[str, Any]]:
        """Continue each example after its first `prompts[i]` concepts, for at most `most` sentences.

        Summaries have the length, and are of the part of a long document, that were asked for.

        Returns lines of examples.jsonl: the prompt without its suffix, a person's text for it, and the model's.
        """
        if not examples:
            return []
        lcm, stop = self.lcm, self.lcm.stop_rules(most)
        read = [example.vectors[:n] for example, n in zip(examples, prompts, strict=True)]
        asked = (self.long, self.length) if task == "answer" else (None, None)
        pieces = lcm.pieces(read, stop, task, *asked)
        results = pieces.joined(lcm.continue_pieces(pieces, stop, self.sampling))
        texts = lcm.to_text(results, beam=1, bank=self.bank)
        answers = zip(examples, results, strict=True)
        sources = [_extracted(one, new.vectors) if task == "answer" else None for one, new in answers]
        if long := sum(map(bool, pieces.dropped)):
            print(f"{long} of {len(read)} texts are longer than the model reads: see --long", file=sys.stderr)
        return [
            {
                "kind": "summary" if task == "answer" else "continuation",
                "id": example.id,
                "prompt": example.document if task == "answer" else example.sentences[:n],
                "reference": example.answer if task == "answer" else example.sentences[n:-1][:most],
                "others": list(example.others),
                "model": text.sentences,
                "nearest": text.nearest,
                "source": source,
                "similarity": text.similarity,
                "stop": text.stop_reason,
                "dropped": dropped,
                "chunks": chunks,
            }
            for example, n, text, source, dropped, chunks in zip(
                examples, prompts, texts, sources, pieces.dropped, pieces.counts, strict=True
            )
        ]


def _extracted(example: Example, concepts: Float[Tensor, "m D"]) -> list[str]:
    """The sentence of the document that is nearest to each concept, by cosine."""
    if not example.document:
        return []
    own = normalize(example.vectors[: len(example.document)])
    return [example.document[i] for i in (normalize(concepts.cpu()) @ own.T).argmax(dim=1).tolist()]


def summarize(
    writer: Writer, pairs: Sequence[Example], lengths: Lengths
) -> tuple[dict[str, list[Row]], list[dict[str, Any]]]:
    """The summaries of the model and of the controls, to be judged, and a line for each pair; empty without pairs."""
    if not pairs:
        return {}, []
    written = writer.write(pairs, [pair.source_length for pair in pairs], "answer", lengths.most)
    texts = systems(writer.lcm, pairs, written, lengths.lead)
    lines = []
    for i, line in enumerate(written):
        lines.append({**line, **{name: list(texts[name][i]) for name in ("lead", "roundtrip")}})
    return {name: rows_of(pairs, of_one) for name, of_one in texts.items()}, lines


def long_counts(lines: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Numbers of documents longer than the model's slots, by what became of them."""
    written = [line for line in lines if line["kind"] == "summary"]
    return {
        "read_in_part": sum(line["dropped"] > 0 for line in written),
        "read_in_chunks": sum(line["chunks"] > 1 for line in written),
    }


def rows_of(pairs: Sequence[Example], texts: Texts) -> list[Row]:
    """One system's texts beside the documents and summaries of the pairs."""
    return [
        Row(pair.id, " ".join(pair.document), (" ".join(pair.answer), *pair.others), " ".join(text))
        for pair, text in zip(pairs, texts, strict=True)
    ]


def continuations(writer: Writer, documents: Sequence[Example]) -> list[dict[str, Any]]:
    """A row for each document, continued from its middle, or after its tenth sentence if that comes earlier."""
    long = [document for document in documents if len(document.document) >= 2]
    prompts = [min(10, len(document.document) // 2) for document in long]
    return writer.write(long, prompts, "continue", 3)


def systems(lcm: LCM, pairs: Sequence[Example], written: Sequence[dict[str, Any]], lead: int) -> dict[str, Texts]:
    """The summaries of the model and of its controls.

    nearest:   the model's, each sentence replaced by the closest one of the training data; absent without a bank
    source:    the model's, each sentence replaced by the closest one of the document: what it would extract
    lead:      the document's first sentences
    roundtrip: the reference, encoded and decoded: an upper bound for anything that passes through the codec
    """
    vectors = torch.cat([pair.vectors[pair.source_length : -1] for pair in pairs])
    decoded = iter(lcm.codec.decode(vectors, lang=lcm.lang))
    texts: dict[str, Texts] = {"model": [row["model"] for row in written]}
    if all(row["nearest"] is not None for row in written):
        texts["nearest"] = [row["nearest"] for row in written]
    texts["source"] = [row["source"] for row in written]
    texts["lead"] = [pair.document[:lead] for pair in pairs]
    texts["roundtrip"] = [[next(decoded) for _ in pair.answer] for pair in pairs]
    return texts
