"""Texts that a model writes beside those of people: summaries scored with ROUGE, their controls, continuations."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from lcm.evaluation.examples import Example
from lcm.evaluation.scoring import bootstrap
from lcm.evaluation.tokens import tokens_of
from lcm.inference import LCM, Bank, Task
from lcm.models import Sampling

Texts = Sequence[Sequence[str]]
"""The text of each example, as sentences."""
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
MOST = 16
"""Sentences of the longest summary that a model may write."""
LEAD = 3
"""Sentences of the lead control if no training pairs say how long summaries are: the custom for news."""


def rouge(predictions: Texts, references: Texts, lang: str = "eng_Latn") -> dict[str, Float64[np.ndarray, " n"]]:
    """ROUGE-1, -2, -L and -Lsum: the F measure of each text in [0, 1]; texts are lists of sentences.

    Tokens are those of the language (`tokens_of`). NaN, never 0, for a reference that they cannot read.
    """
    from rouge_score.rouge_scorer import RougeScorer

    found = {name: np.full(len(references), np.nan) for name in ROUGE}
    if (tokens := tokens_of(lang)) is None:
        return found
    scorer = RougeScorer(list(ROUGE), tokenizer=tokens)
    for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if tokens.read("\n".join(reference)):
            scores = scorer.score(target="\n".join(reference), prediction="\n".join(prediction))
            for name in ROUGE:
                found[name][i] = scores[name].fmeasure
    return found


def rouge_record(pairs: Sequence[Example], lang: str) -> dict[str, Any]:
    """The entry `rouge` of results.json: tokens, and the references that they cannot read, with the first one's id."""
    tokens = tokens_of(lang)
    unread = [pair.id for pair in pairs if tokens is None or not tokens.read("\n".join(pair.answer))]
    record = {"tokens": tokens.name if tokens else None, "lang": lang, "scored": len(pairs) - len(unread)}
    return {**record, "not_scored": len(unread), "first_not_scored": unread[0] if unread else None}


def rouge_line(record: Mapping[str, Any]) -> str | None:
    """Say what a person must know of ROUGE: that some summaries, or all, are not scored; None where all are."""
    if not record.get("not_scored"):
        return None
    total = record["scored"] + record["not_scored"]
    if record["tokens"] is None:
        return f"ROUGE: no summary of {total:,} is scored: {record['lang']} has no blanks between words to cut at"
    why = f"their references have no words that the tokens '{record['tokens']}' of {record['lang']} read"
    return f"ROUGE: {record['not_scored']:,} of {total:,} summaries not scored, {why} ({record['first_not_scored']}, …)"


def length_ratio(predictions: Texts, references: Texts, lang: str = "eng_Latn") -> float:
    """Words of all predictions divided by words of all references; in Chinese and Japanese, characters."""
    if (tokens := tokens_of(lang)) is None:
        return float("nan")
    written, wanted = (sum(map(tokens.count, texts)) for texts in (predictions, references))
    return written / wanted if wanted else float("nan")


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

    def write(self, examples: Sequence[Example], prompts: Sequence[int], task: Task, most: int) -> list[dict[str, Any]]:
        """Continue each example after its first `prompts[i]` concepts, for at most `most` sentences.

        Returns lines of examples.jsonl: the prompt without its suffix, a person's text for it, and the model's.
        """
        if not examples:
            return []
        lcm, stop = self.lcm, self.lcm.stop_rules(most)
        read = [example.vectors[:n] for example, n in zip(examples, prompts, strict=True)]
        results = lcm.continue_concepts(lcm.shorten(read, stop, task), stop, self.sampling)
        texts = lcm.to_text(results, beam=1, bank=self.bank)
        return [
            {
                "kind": "summary" if task == "answer" else "continuation",
                "id": example.id,
                "prompt": example.document if task == "answer" else example.sentences[:n],
                "reference": example.answer if task == "answer" else example.sentences[n:-1][:most],
                "model": text.sentences,
                "nearest": text.nearest,
                "similarity": text.similarity,
                "stop": text.stop_reason,
            }
            for example, n, text in zip(examples, prompts, texts, strict=True)
        ]


def summarize(
    writer: Writer, pairs: Sequence[Example], lengths: Lengths, samples: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """ROUGE of the model's summaries and of the controls, and a row for each pair; empty without pairs."""
    if not pairs:
        return {}, []
    written = writer.write(pairs, [pair.source_length for pair in pairs], "answer", lengths.most)
    texts = systems(writer.lcm, pairs, written, lengths.lead)
    table, single = score(texts, [pair.answer for pair in pairs], samples, writer.sampling.seed, writer.lcm.record.lang)
    rows = []
    for i, row in enumerate(written):
        controls = {name: list(texts[name][i]) for name in ("lead", "roundtrip")}
        scores = {name: {metric: values[i] for metric, values in single[name].items()} for name in texts}
        rows.append({**row, **controls, "rouge": scores})
    return table, rows


def continuations(writer: Writer, documents: Sequence[Example]) -> list[dict[str, Any]]:
    """A row for each document, continued from its middle, or after its tenth sentence if that comes earlier."""
    long = [document for document in documents if len(document.document) >= 2]
    prompts = [min(10, len(document.document) // 2) for document in long]
    return writer.write(long, prompts, "continue", 3)


def systems(lcm: LCM, pairs: Sequence[Example], written: Sequence[dict[str, Any]], lead: int) -> dict[str, Texts]:
    """The summaries of the model and of its controls.

    nearest:   the model's, each sentence replaced by the closest real one; absent without a bank
    lead:      the document's first sentences
    roundtrip: the reference, encoded and decoded: an upper bound for anything that passes through the codec
    """
    vectors = torch.cat([pair.vectors[pair.source_length : -1] for pair in pairs])
    decoded = iter(lcm.codec.decode(vectors, lang=lcm.record.lang))
    texts: dict[str, Texts] = {"model": [row["model"] for row in written]}
    if all(row["nearest"] is not None for row in written):
        texts["nearest"] = [row["nearest"] for row in written]
    texts["lead"] = [pair.document[:lead] for pair in pairs]
    texts["roundtrip"] = [[next(decoded) for _ in pair.answer] for pair in pairs]
    return texts


def score(
    texts: Mapping[str, Texts], references: Texts, samples: int, seed: int, lang: str = "eng_Latn"
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, list[float]]]]:
    """ROUGE of each system with 95% intervals and its length ratio; and ROUGE of each single text.

    A text that is not scored is in no mean, of any system.
    """
    table: dict[str, dict[str, Any]] = {}
    single: dict[str, dict[str, list[float]]] = {}
    for name, predictions in texts.items():
        scores = rouge(predictions, references, lang)
        is_scored = (~np.isnan(scores[ROUGE[0]])).astype(np.float64)
        table[name] = {
            metric: asdict(bootstrap(np.nan_to_num(scores[metric]), is_scored, samples, seed)) for metric in ROUGE
        }
        table[name]["length_ratio"] = length_ratio(predictions, references, lang)
        single[name] = {metric: scores[metric].tolist() for metric in ROUGE}
    return table, single
