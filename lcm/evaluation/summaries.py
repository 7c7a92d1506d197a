"""What a model writes, beside what people wrote: summaries scored with ROUGE, their controls, and continuations."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from lcm.evaluation.examples import Example
from lcm.evaluation.metrics import ROUGE, bootstrap, length_ratio, rouge
from lcm.inference import LCM, Bank, Generation, Task
from lcm.models import Sampling

Texts = Sequence[Sequence[str]]
"""One text an example, as sentences."""
MOST = 16
"""No summary is asked for that is longer."""
LEAD = 3
"""Sentences of the lead control where no training pairs say how long a summary is: what is usual for news."""


@dataclass(frozen=True)
class Lengths:
    """How long summaries are, in sentences, learned from the training pairs and never from those that are scored.

    lead: the median; what the lead control copies from the beginning of the document
    most: the longest, at most MOST; the model may write so much and must stop by itself before
    """

    lead: int
    most: int

    @classmethod
    def of(cls, answers: Sequence[int], slots: int) -> "Lengths":
        room = min(MOST, slots // 2)
        if not answers:
            return cls(lead=LEAD, most=room)
        return cls(lead=max(1, int(np.median(answers))), most=min(room, max(1, *answers, 1)))


@dataclass(frozen=True)
class Written:
    """The model's text for one prompt (its suffix left out), and what a person wrote there."""

    id: str
    prompt: list[str]
    reference: list[str]
    generation: Generation

    def as_row(self, kind: str) -> dict[str, Any]:
        """A line of examples.jsonl."""
        written = asdict(self.generation)
        return {
            "kind": kind,
            "id": self.id,
            "prompt": self.prompt,
            "reference": self.reference,
            "model": written["sentences"],
            "nearest": written["nearest"],
            "similarity": written["similarity"],
            "stop": written["stop_reason"],
        }


def write(
    lcm: LCM,
    examples: Sequence[Example],
    prompts: Sequence[int],
    task: Task,
    most: int,
    sampling: Sampling,
    bank: Bank | None,
) -> list[Written]:
    """Go on after the first `prompts[i]` concepts of each example, at most `most` sentences far."""
    if not examples:
        return []
    stop = lcm.stop_rules(most)
    read = [example.vectors[:n] for example, n in zip(examples, prompts, strict=True)]
    results = lcm.continue_concepts(lcm.shorten(read, stop, task), stop, sampling)
    generations = lcm.to_text(results, beam=1, bank=bank)
    return [
        Written(
            id=example.id,
            prompt=example.document if task == "answer" else example.sentences[:n],
            reference=example.answer if task == "answer" else example.sentences[n:-1][:most],
            generation=generation,
        )
        for example, n, generation in zip(examples, prompts, generations, strict=True)
    ]


def summarize(
    lcm: LCM, pairs: Sequence[Example], lengths: Lengths, bank: Bank | None, samples: int, sampling: Sampling
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """ROUGE of the model's summaries and of their controls, and a row for each summary. Nothing without pairs."""
    if not pairs:
        return {}, []
    written = write(lcm, pairs, [pair.source_length for pair in pairs], "answer", lengths.most, sampling, bank)
    texts = systems(lcm, pairs, written, lengths.lead)
    table, single = score(texts, [pair.answer for pair in pairs], samples, sampling.seed)
    rows = []
    for i, text in enumerate(written):
        controls = {name: list(texts[name][i]) for name in ("lead", "roundtrip")}
        scores = {name: {metric: values[i] for metric, values in single[name].items()} for name in texts}
        rows.append({**text.as_row("summary"), **controls, "rouge": scores})
    return table, rows


def continuations(
    lcm: LCM, documents: Sequence[Example], bank: Bank | None, sampling: Sampling
) -> list[dict[str, Any]]:
    """A row for each document, continued from its middle, or after its tenth sentence where that comes earlier."""
    long = [document for document in documents if len(document.document) >= 2]
    prompts = [min(10, len(document.document) // 2) for document in long]
    return [text.as_row("continuation") for text in write(lcm, long, prompts, "continue", 3, sampling, bank)]


def systems(lcm: LCM, pairs: Sequence[Example], written: Sequence[Written], lead: int) -> dict[str, Texts]:
    """The model's summaries and those of its controls.

    nearest:   the model's, every sentence replaced by the closest real one; where there is a bank
    lead:      the document's first sentences
    roundtrip: the reference, encoded and decoded: as good as anything can be that must pass through the codec
    """
    vectors = torch.cat([pair.vectors[pair.source_length : -1] for pair in pairs])
    decoded = iter(lcm.codec.decode(vectors, lang=lcm.record.lang))
    texts: dict[str, Texts] = {"model": [w.generation.sentences for w in written]}
    nearest = [w.generation.nearest for w in written if w.generation.nearest is not None]
    if len(nearest) == len(written):
        texts["nearest"] = nearest
    texts["lead"] = [pair.document[:lead] for pair in pairs]
    texts["roundtrip"] = [[next(decoded) for _ in pair.answer] for pair in pairs]
    return texts


def score(
    texts: Mapping[str, Texts], references: Texts, samples: int, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, list[float]]]]:
    """Of every system ROUGE with 95% intervals and the length ratio; and every text's own ROUGE."""
    table: dict[str, dict[str, Any]] = {}
    single: dict[str, dict[str, list[float]]] = {}
    for name, predictions in texts.items():
        scores = rouge(predictions, references)
        ones = np.ones(len(predictions))
        table[name] = {metric: asdict(bootstrap(scores[metric], ones, samples, seed)) for metric in ROUGE}
        table[name]["length_ratio"] = length_ratio(predictions, references)
        single[name] = {metric: scores[metric].tolist() for metric in ROUGE}
    return table, single
