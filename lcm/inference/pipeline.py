"""Text in, text out: a trained model beside its codec. `lcm.load` returns an `LCM`.

Shapes.  D concept width · n concepts of one prompt or continuation
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lcm.codec import Codec, Splitter, load_codec, splitter_settings
from lcm.config import CodecRecord, Config
from lcm.data import MANIFEST, is_url
from lcm.errors import UserError
from lcm.inference.loop import Generated, StopReason, StopRules, generate
from lcm.inference.nearest import Bank
from lcm.models import ConceptModel, Sampling, load_model, settle
from lcm.seeds import derive_seed

Decode = Literal["codec", "nearest", "both"]
Task = Literal["continue", "answer"]
DEFAULT = Sampling()
ROWS = 64
"""Prompts that are continued side by side."""


@dataclass(frozen=True)
class Generation:
    """A continuation. `text` is its sentences, joined by blanks.

    sentences:  what the codec's decoder says, or with decode="nearest" the bank's sentences
    nearest:    for every concept the closest sentence of the bank; None with decode="codec"
    similarity: how close, a cosine (see Bank.nearest); None with decode="codec"
    roundtrip:  of the best of several samples, the mean distance between a concept and encode(decode(concept))
    """

    text: str
    sentences: list[str]
    nearest: list[str] | None
    similarity: list[float] | None
    stop_reason: StopReason
    roundtrip: float | None = None


class LCM:
    """What `lcm.load` returns: `.generate` and `.generate_many`, over `.model`, `.codec` and `.config`."""

    def __init__(self, model: ConceptModel, codec: Codec, config: Config) -> None:
        self.record = _codec_record(config, codec)
        self.model, self.codec, self.config = model.eval(), codec, config
        fits = partial(codec.fits, lang=self.record.lang)
        self.splitter = Splitter(splitter_settings(self.record.splitter), fits)

    @cached_property
    def bank(self) -> Bank:
        """The sentences of the training shards; assign another bank to replace it."""
        missing = [path for path in self.config.data.path if not is_url(path) and not Path(path, MANIFEST).is_file()]
        if missing or not self.config.data.path:
            raise UserError(
                f"data.path={', '.join(missing) or '(none)'}: the shards that the model was trained on are not there; "
                "name a prepared folder with --bank, or use --decode codec"
            )
        return Bank.from_shards(self.config.data.path, codec=self.record.fingerprint)

    def generate(
        self,
        text: str,
        *,
        max_sentences: int | None = None,
        min_sentences: int = 1,
        sampling: Sampling = DEFAULT,
        samples: int = 1,
        decode: Decode = "codec",
        beam: int = 1,
        task: Task | None = None,
        lang: str | None = None,
        output_lang: str | None = None,
    ) -> Generation:
        """Continue `text`, or answer it where task="answer" (the default of a model trained on pairs alone).

        max_sentences: 16, or half of the model's slots where that is less
        sampling:      how concepts are drawn; what is not set is the model family's default
        samples:       draw so many continuations, and keep the one whose concepts are nearest to real sentences: the
                       smallest mean distance between a concept and encode(decode(concept))
        lang:          FLORES code of the text; the language of the training data where it is not given
        output_lang:   of what is decoded; the text's where it is not given
        Raises UserError where the text is empty, the bank that `decode` asks for is not there, or the model's family
        has no such setting of `sampling`.
        """
        return self.generate_many(
            [text],
            max_sentences=max_sentences,
            min_sentences=min_sentences,
            sampling=sampling,
            samples=samples,
            decode=decode,
            beam=beam,
            task=task,
            lang=lang,
            output_lang=output_lang,
        )[0]

    def generate_many(
        self,
        texts: Sequence[str],
        *,
        max_sentences: int | None = None,
        min_sentences: int = 1,
        sampling: Sampling = DEFAULT,
        samples: int = 1,
        decode: Decode = "codec",
        beam: int = 1,
        task: Task | None = None,
        lang: str | None = None,
        output_lang: str | None = None,
    ) -> list[Generation]:
        """One result for each text, in order: what `generate` gives for it alone."""
        if not texts:
            return []
        settle(sampling, self.model.defaults)  # before the work, as the bank: either may be refused
        bank = None if decode == "codec" else self.bank
        stop = self.stop_rules(max_sentences, min_sentences)
        prompts = self.shorten(self.prompts(texts, task, lang), stop, task)
        results, distances = self.best_of(samples, prompts, stop, sampling)
        generations = self.to_text(results, None if decode == "nearest" else beam, bank, output_lang or lang)
        return [replace(g, roundtrip=d) for g, d in zip(generations, distances, strict=True)]

    def stop_rules(self, max_sentences: int | None = None, min_sentences: int = 1) -> StopRules:
        """The codec's threshold for the end of a text, and a length that leaves room for a prompt."""
        slots = self.config.data.slots
        most = min(16, slots // 2) if max_sentences is None else max_sentences
        if most > slots - 2:
            raise UserError(
                f"--max-sentences={most}: expected at most {slots - 2}, as the model reads {slots} concepts"
            )
        return StopRules(max_sentences=most, min_sentences=min_sentences, end_threshold=self.record.stop_threshold)

    def prompts(self, texts: Sequence[str], task: Task | None, lang: str | None = None) -> list[Float[Tensor, "_ D"]]:
        """Each text's sentences as concepts, cut as in training; then "[MODEL]:" where an answer is wanted.

        "[MODEL]:" is in the language of the training data whatever the text's, as it was there.
        """
        suffix = [self.record.prompt_suffix] if self._answers(task) else []
        split = [self.splitter.split(text) for text in texts]
        for number, sentences in enumerate(split, start=1):
            if not sentences:
                raise UserError(f"text {number} of {len(texts)} is empty; expected at least one sentence")
        flat = [sentence for sentences in split for sentence in sentences + suffix]
        own, of_suffix = lang or self.record.lang, [self.record.lang] * len(suffix)
        langs = [code for sentences in split for code in [own] * len(sentences) + of_suffix]
        vectors = self.codec.encode(flat, lang=langs)
        return list(torch.split(vectors, [len(sentences) + len(suffix) for sentences in split]))

    def shorten(
        self, prompts: Sequence[Float[Tensor, "_ D"]], stop: StopRules, task: Task | None
    ) -> list[Float[Tensor, "_ D"]]:
        """Prompts that leave room for `stop.max_sentences`; what is dropped is told once, on stderr.

        A continuation needs what came last, so the oldest concepts go. A document to be answered keeps its beginning
        and its suffix, as pairs that were too long did in training.
        """
        room = self.config.data.slots - stop.max_sentences
        long = sum(len(prompt) > room for prompt in prompts)
        answers = self._answers(task)
        if long:
            lost = "concepts before the prompt's suffix" if answers else "oldest concepts"
            told = f"{long} of {len(prompts)} prompts are longer than {room} concepts; their {lost} were dropped"
            print(told, file=sys.stderr)
        if answers:
            return [p if len(p) <= room else torch.cat([p[: room - 1], p[-1:]]) for p in prompts]
        return [prompt[-room:] for prompt in prompts]

    def _answers(self, task: Task | None) -> bool:
        return (task or self.record.default_task) == "answer"

    def continue_concepts(
        self, prompts: Sequence[Float[Tensor, "_ D"]], stop: StopRules, sampling: Sampling
    ) -> list[Generated]:
        """`generate`, in batches of ROWS prompts of about one length, on the model's device."""
        device = self.model.end_of_text.device
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        results: dict[int, Generated] = {}
        for start in range(0, len(order), ROWS):
            chosen = order[start : start + ROWS]
            batch = generate(self.model, [prompts[i].to(device) for i in chosen], stop, sampling)
            results |= zip(chosen, batch, strict=True)
        return [results[i] for i in range(len(prompts))]

    def best_of(
        self, samples: int, prompts: Sequence[Float[Tensor, "_ D"]], stop: StopRules, sampling: Sampling
    ) -> tuple[list[Generated], list[float | None]]:
        """The best of so many continuations of each prompt, and its mean round-trip distance.

        The first is drawn with the given seed, so that more samples never do worse; of one, nothing is measured.
        """
        if samples == 1:
            return self.continue_concepts(prompts, stop, sampling), [None] * len(prompts)
        seeds = [sampling.seed, *(derive_seed(sampling.seed, number) for number in range(1, samples))]
        drawn = [self.continue_concepts(prompts, stop, replace(sampling, seed=seed)) for seed in seeds]
        distance = [self._round_trip(results) for results in drawn]
        best = [min(range(samples), key=lambda sample: distance[sample][i]) for i in range(len(prompts))]
        found = [distance[sample][i] for i, sample in enumerate(best)]
        return [drawn[sample][i] for i, sample in enumerate(best)], [d if d < math.inf else None for d in found]

    def _round_trip(self, results: Sequence[Generated]) -> list[float]:
        """Mean |encode(decode(x)) - x| over each continuation; infinite where it has no concept."""
        vectors, lang = torch.cat([result.vectors for result in results]).cpu(), self.record.lang
        again = self.codec.encode(self.codec.decode(vectors, lang=lang), lang=lang)
        each = (again - vectors).norm(dim=1)
        parts = torch.split(each, [len(result.vectors) for result in results])
        return [float(part.mean()) if len(part) else math.inf for part in parts]

    def to_text(
        self, results: Sequence[Generated], beam: int | None, bank: Bank | None, lang: str | None = None
    ) -> list[Generation]:
        """All concepts of all results at once through the codec's decoder (unless `beam` is None) and the bank."""
        vectors = torch.cat([result.vectors for result in results]).cpu()
        counts = [len(result.vectors) for result in results]
        near, similarity = bank.nearest(vectors) if bank else ([], torch.zeros(0, 1))
        nearest = [sentences[0] for sentences in near]
        decoded = nearest if beam is None else self.codec.decode(vectors, lang=lang or self.record.lang, beam=beam)
        generations, start = [], 0
        for result, count in zip(results, counts, strict=True):
            part = slice(start, start + count)
            generations.append(
                Generation(
                    text=" ".join(decoded[part]),
                    sentences=decoded[part],
                    nearest=nearest[part] if bank else None,
                    similarity=similarity[part, 0].tolist() if bank else None,
                    stop_reason=result.reason,
                )
            )
            start += count
        return generations


def load(folder: str | Path, device: str | None = None, codec: str | Path | None = None) -> LCM:
    """The model of a run's folder or an exported one, beside the codec that it was trained on.

    device: where both run; by default a GPU where there is one
    codec:  another one with the same encoder, such as "sonar-finetuned", or the same one elsewhere
    Raises UserError where the folder holds no model, or the codec is not the one of the training data.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, config = load_model(folder)
    if config.codec is None:
        raise UserError(
            f"{folder}/config.yaml: has no codec section, so its concepts mean nothing; train on lcm prepare's data"
        )
    return LCM(model.to(device), load_codec(codec or config.codec.name, device=device), config)


def _codec_record(config: Config, codec: Codec) -> CodecRecord:
    """What the model was trained on, if `codec` is just that."""
    record = config.codec
    assert record is not None, "load() refuses a model without one"
    if codec.fingerprint != record.fingerprint:
        raise UserError(
            f"codec '{record.name}' is not the one that the model was trained on: fingerprint {codec.fingerprint}, "
            f"expected {record.fingerprint}; put back the codec of the training data, or prepare and train again"
        )
    return record
