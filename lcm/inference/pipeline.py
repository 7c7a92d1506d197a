"""Text in, text out: a trained model with its codec and its options. `lcm.load` returns an `LCM`.

Shapes.  D concept width · n concepts of one prompt or continuation
"""

import math
import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Literal, TypedDict, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from lcm.batch import derive_seed
from lcm.codec import Codec, load_codec
from lcm.codec.text import Splitter, check_language, splitter_settings
from lcm.config import Config
from lcm.data.manifest import MANIFEST, is_url
from lcm.errors import UserError, in_one_line
from lcm.files import expanded
from lcm.inference.loop import Generated, StopReason, StopRules, generate
from lcm.inference.nearest import Bank
from lcm.models import ConceptModel, Prompts, Sampling, load_model, resolve_sampling
from lcm.options import Option, check_fields, refuse_idle

ROWS = 64
"""Prompts in a batch."""
Decode = Literal["codec", "nearest", "both"]
Task = Literal["continue", "answer"]


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Settings of a continuation. Raises UserError for a number out of range."""

    max_sentences: Annotated[int | None, Option(least=1)] = None
    """Sentences to write at most (default: 16, or half of the model's slots if that is less)."""
    min_sentences: Annotated[int, Option(least=0)] = 1
    """Sentences to write at least."""
    sampling: Sampling = field(default_factory=Sampling)
    """Settings for drawing concepts; None stands for the default of the model's family."""
    samples: Annotated[int, Option(least=1)] = 1
    """Draw N continuations and keep the one whose concepts are nearest to real sentences: the smallest mean distance
    between a concept and encode(decode(concept))."""
    decode: Decode = "codec"
    """codec: the decoder's sentences; nearest: the closest real sentences of a bank; both: one beside the other."""
    beam: Annotated[int, Option(least=1)] = 1
    """Beams of the decoder; 1 is greedy."""
    task: Task | None = None
    """answer: write what follows the document of a pair, as in training (default: answer for a model trained on pairs
    alone, else continue)."""
    lang: Annotated[str | None, Option("CODE")] = None
    """FLORES code of the text (default: the training data's)."""
    output_lang: Annotated[str | None, Option("CODE")] = None
    """FLORES code of the continuation (default: the text's)."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.decode == "nearest":
            idle = "means nothing to --decode nearest, which decodes nothing; take codec or both"
            refuse_idle(self, ("beam", "output_lang"), idle)
        if self.max_sentences is not None and self.min_sentences > self.max_sentences:
            most = f"expected at most --max-sentences={self.max_sentences}"
            raise UserError(f"--min-sentences={self.min_sentences}: {most}")


class GenerateKeywords(TypedDict, total=False):
    """The fields of `GenerateOptions` as keyword arguments."""

    max_sentences: int | None
    min_sentences: int
    sampling: Sampling
    samples: int
    decode: Decode
    beam: int
    task: Task | None
    lang: str | None
    output_lang: str | None


@dataclass(frozen=True)
class Generation:
    """A continuation. `text` is its sentences, joined by spaces.

    sentences:  the decoder's; with decode="nearest" the bank's
    nearest:    the closest sentence of the bank to each concept; None with decode="codec"
    similarity: cosine of each concept and its nearest sentence (see Bank.nearest); None with decode="codec"
    roundtrip:  with several samples, the mean distance between a concept of the best and encode(decode(concept))
    """

    text: str
    sentences: list[str]
    nearest: list[str] | None
    similarity: list[float] | None
    stop_reason: StopReason
    roundtrip: float | None = None


class LCM:
    """A trained `.model` with its `.codec` and `.config`; continues texts by `.generate` and `.generate_many`."""

    def __init__(self, model: ConceptModel, codec: Codec, config: Config) -> None:
        """Raises UserError if `codec` is not the one that the model was trained on."""
        record = config.codec
        assert record is not None, "load() refuses a model without one"
        if codec.fingerprint != record.fingerprint:
            raise UserError(
                f"codec '{record.name}' is not the one that the model was trained on: fingerprint {codec.fingerprint}, "
                f"expected {record.fingerprint}; put back the codec of the training data, or prepare and train again"
            )
        self.model, self.codec, self.config, self.record = model.eval(), codec, config, record
        self._set_language(record.lang)

    def _set_language(self, lang: str) -> None:
        self.lang = lang
        self.splitter = Splitter(splitter_settings(self.record.splitter), partial(self.codec.fits, lang=lang))

    def in_language(self, lang: str) -> "LCM":
        """The model with the language of texts set to `lang`; markers stay in that of the training data.

        Raises UserError for a language that the codec does not know, or the splitter cannot cut.
        """
        if lang == self.lang:
            return self
        self.codec.fits("", lang)
        other = copy(self)
        other._set_language(lang)
        check_language(other.splitter.settings, lang)
        return other

    @property
    def missing_data(self) -> list[str]:
        """The folders of training data that are not on this machine."""
        return [path for path in self.config.data.folders if not is_url(path) and not Path(path, MANIFEST).is_file()]

    @cached_property
    def bank(self) -> Bank:
        """Sentences of the training shards; assign another bank to replace them."""
        if (missing := self.missing_data) or not self.config.data.folders:
            raise UserError(
                f"data.path={', '.join(missing) or '(none)'}: the shards that the model was trained on are not there; "
                "name a prepared folder with --bank, or use --decode codec"
            )
        return Bank.from_shards(self.config.data.folders, codec=self.record.fingerprint)

    def generate(self, text: str, **options: Unpack[GenerateKeywords]) -> Generation:
        """Continue `text`, or answer it with task="answer". The options are the fields of `GenerateOptions`.

        Raises UserError for an empty text, a number out of range, a setting of `sampling` that the model's family does
        not have, and where `decode` needs a bank that is not there.
        """
        return self.generate_many([text], **options)[0]

    def generate_many(self, texts: Sequence[str], **options: Unpack[GenerateKeywords]) -> list[Generation]:
        """Continue several texts; each result is what `generate` gives for that text alone. Raises UserError as it."""
        return self.continue_texts(texts, GenerateOptions(**options))

    @in_one_line()
    def continue_texts(self, texts: Sequence[str], options: GenerateOptions) -> list[Generation]:
        if isinstance(texts, str):
            raise UserError(f"texts={texts[:40]!r}: expected a list of texts; generate takes a single one")
        if strange := [text for text in texts if not isinstance(text, str)]:
            raise UserError(f"{strange[0]!r} is of type {type(strange[0]).__name__}; expected a text, as a string")
        if not texts:
            return []
        self.sampling(options.sampling)  # first, as the bank: either may raise
        bank = None if options.decode == "codec" else self.bank
        stop = self.stop_rules(options.max_sentences, options.min_sentences)
        prompts = self.shorten(self.prompts(texts, options.task, options.lang), stop, options.task)
        results, distances = self.best_of(options.samples, prompts, stop, options.sampling)
        beam = None if options.decode == "nearest" else options.beam
        generations = self.to_text(results, beam, bank, options.output_lang or options.lang)
        return [replace(g, roundtrip=d) for g, d in zip(generations, distances, strict=True)]

    def stop_rules(self, max_sentences: int | None = None, min_sentences: int = 1) -> StopRules:
        """Combine the codec's end-of-text threshold with a length that leaves room for a prompt."""
        slots = self.config.data.slots
        most = min(16, slots // 2) if max_sentences is None else max_sentences
        if most > slots - 2:
            raise UserError(f"--max-sentences={most}: expected at most {slots - 2}: the model reads {slots} concepts")
        return StopRules(max_sentences=most, min_sentences=min_sentences, end_threshold=self.record.stop_threshold)

    def prompts(self, texts: Sequence[str], task: Task | None, lang: str | None = None) -> list[Float[Tensor, "_ D"]]:
        """Split and encode each text as in training; before an answer, "[MODEL]:" in the training data's language."""
        check_language(self.splitter.settings, lang or self.lang)
        split = [self.splitter.split(text) for text in texts]
        for number, sentences in enumerate(split, start=1):
            if not sentences:
                raise UserError(f"text {number} of {len(texts)} is empty; expected at least one sentence")
        suffix = [(self.record.prompt_suffix, self.record.lang)] if self._answers(task) else []
        prompts = [[(sentence, lang or self.lang) for sentence in sentences] + suffix for sentences in split]
        flat, langs = zip(*(pair for prompt in prompts for pair in prompt), strict=True)
        vectors = self.codec.encode(list(flat), lang=list(langs))
        return list(torch.split(vectors, [len(prompt) for prompt in prompts]))

    def shorten(self, prompts: Prompts, stop: StopRules, task: Task | None) -> list[Float[Tensor, "_ D"]]:
        """Cut prompts that leave no room for `stop.max_sentences`, with one warning on stderr for all of them.

        A continuation needs the end of its prompt, so the oldest concepts are dropped. An answer needs the document's
        beginning and the suffix, so the concepts between them are dropped, as for long pairs in training.
        """
        room = self.config.data.slots - stop.max_sentences
        long = sum(len(prompt) > room for prompt in prompts)
        answers = self._answers(task)
        if long:
            dropped = "concepts before the prompt's suffix" if answers else "oldest concepts"
            warning = f"{long} of {len(prompts)} prompts are longer than {room} concepts; their {dropped} were dropped"
            print(warning, file=sys.stderr)
        if answers:
            return [p if len(p) <= room else torch.cat([p[: room - 1], p[-1:]]) for p in prompts]
        return [prompt[-room:] for prompt in prompts]

    def sampling(self, asked: Sampling) -> Sampling:
        """Complete settings by those of the model's folder. Raises UserError for one that the family does not have."""
        sampling = asked.completed(self.config.sampling)
        resolve_sampling(sampling, self.model.defaults)
        return sampling

    def _answers(self, task: Task | None) -> bool:
        return (task or self.record.default_task) == "answer"

    def continue_concepts(self, prompts: Prompts, stop: StopRules, sampling: Sampling) -> list[Generated]:
        """Run the generation loop in batches of ROWS prompts of similar length."""
        sampling = self.sampling(sampling)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        results: dict[int, Generated] = {}
        for start in range(0, len(order), ROWS):
            chosen = order[start : start + ROWS]
            results |= zip(chosen, generate(self.model, [prompts[i] for i in chosen], stop, sampling), strict=True)
        return [results[i] for i in range(len(prompts))]

    def best_of(
        self, samples: int, prompts: Prompts, stop: StopRules, sampling: Sampling
    ) -> tuple[list[Generated], list[float | None]]:
        """Draw `samples` continuations of each prompt; return the best of each and its mean round-trip distance.

        The first is drawn with the seed of `sampling`, so more samples are never worse. The distance is None for a
        single sample, which is not measured, and for a continuation without a sentence.
        """
        if samples == 1:
            return self.continue_concepts(prompts, stop, sampling), [None] * len(prompts)
        seeds = [sampling.seed, *(derive_seed(sampling.seed, number) for number in range(1, samples))]
        drawn = [self.continue_concepts(prompts, stop, replace(sampling, seed=seed)) for seed in seeds]
        measured = [zip(results, self._round_trip_distances(results), strict=True) for results in drawn]
        best = [min(of_one, key=lambda pair: pair[1]) for of_one in zip(*measured, strict=True)]
        return [result for result, _ in best], [d if d < math.inf else None for _, d in best]

    def round_trip(self, vectors: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        """encode(decode(vectors)), in the language of texts."""
        return self.codec.encode(self.codec.decode(vectors, lang=self.lang), lang=self.lang)

    def _round_trip_distances(self, results: Sequence[Generated]) -> list[float]:
        """Mean |encode(decode(x)) - x| over each continuation; infinite if it has no concept."""
        vectors = torch.cat([result.vectors for result in results]).cpu()
        distances = (self.round_trip(vectors) - vectors).norm(dim=1)
        parts = torch.split(distances, [len(result.vectors) for result in results])
        return [float(part.mean()) if len(part) else math.inf for part in parts]

    def to_text(
        self, results: Sequence[Generated], beam: int | None, bank: Bank | None, lang: str | None = None
    ) -> list[Generation]:
        """Decode all concepts of all results at once, and look up the nearest sentence of each if there is a bank.

        beam: beams of the codec's decoder; None takes the bank's sentences instead
        """
        vectors = torch.cat([result.vectors for result in results]).cpu()
        real, cosines = bank.nearest(vectors) if bank else ([], torch.zeros(0, 1))
        closest = [sentences[0] for sentences in real]
        decoded = closest if beam is None else self.codec.decode(vectors, lang=lang or self.lang, beam=beam)
        generations, start = [], 0
        for result in results:
            part = slice(start, start + len(result.vectors))
            nearest = closest[part] if bank else None
            similarity = cosines[part, 0].tolist() if bank else None
            generations.append(Generation(" ".join(decoded[part]), decoded[part], nearest, similarity, result.reason))
            start = part.stop
        return generations


@in_one_line()
def load(folder: str | Path, device: str | None = None, codec: str | Path | None = None) -> LCM:
    """Load the model of a run's folder, or of an exported one, with the codec that it was trained on.

    device: where both run; by default a GPU if there is one
    codec:  another one with the same encoder, such as "sonar-finetuned", or the same one elsewhere
    Raises UserError where the folder holds no model, and for a codec other than the training data's.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, config = load_model(expanded(folder))
    if config.codec is None:
        raise UserError(
            f"{folder}/config.yaml: has no codec section, so its concepts mean nothing; train on lcm prepare's data"
        )
    return LCM(model.to(device), load_codec(codec or config.codec.name, device=device), config)
