"""Text in, text out: a trained model with its codec and its options. `lcm.load` returns an `LCM`.

Shapes.  D concept width · n concepts of one prompt or continuation
"""

import math
import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from lcm.batch import derive_seed
from lcm.codec import Codec, Languages, load_codec
from lcm.codec.text import Splitter, check_language, splitter_settings
from lcm.config import Config
from lcm.data.manifest import MANIFEST, is_url
from lcm.errors import UserError, in_one_line
from lcm.files import expanded
from lcm.inference.loop import Generated, StopRules, generate
from lcm.inference.nearest import Bank
from lcm.inference.options import GenerateKeywords, GenerateOptions, Task
from lcm.inference.pieces import CONCEPTS, Long, Pieces, batches, check_long, fit, key_of, limit_of
from lcm.inference.texts import Generation, Text, encode, wishes_for
from lcm.models import ConceptModel, Prompts, Sampling, load_model, resolve_sampling


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
        read = [self.read(text, options.lang, options.output_lang) for text in texts]
        for number, text in enumerate(read, start=1):
            if not text.sentences:
                raise UserError(f"text {number} of {len(texts)} is empty; expected at least one sentence")
        found = self.continue_read(read, options)
        long = sum(bool(generation.dropped) for generation in found)
        if long:
            part = f"its {options.long} was read" if options.long else "see --long"
            print(f"{long} of {len(texts)} texts are longer than the model's slots: {part}", file=sys.stderr)
        return found

    def read(self, text: str, lang: str | None = None, output_lang: str | None = None) -> Text:
        """Split a text as in training. Raises UserError for a language in which the splitter finds no sentences.

        lang:        language of the text (default: the training data's)
        output_lang: language of the continuation (default: the text's)
        """
        lang = lang or self.lang
        check_language(self.splitter.settings, lang)
        return Text(self.splitter.split(text), lang, output_lang or lang)

    def continue_read(self, texts: Sequence[Text], options: GenerateOptions) -> list[Generation]:
        """Continue texts that have a sentence at least."""
        self.sampling(options.sampling)  # first, as the bank: either may raise
        bank = None if options.decode == "codec" else self.bank
        stop = self.stop_rules(options.max_sentences, options.min_sentences, options.length)
        keys = [key_of("\n".join(text.sentences)) for text in texts]
        answers = self._answers(options.task)
        prompts = encode(texts, self.codec, self.record, answers)
        pieces = self.pieces(prompts, stop, options.task, options.long, options.length, keys)
        if not texts:
            return []
        results, distances = self.best_of(options, pieces, stop)
        beam = None if options.decode == "nearest" else options.beam
        generations = self.to_text(pieces.joined(results), beam, bank, [text.output_lang for text in texts])
        facts = zip(generations, pieces.means(distances), pieces.dropped, pieces.counts, strict=True)
        return [replace(g, roundtrip=d, dropped=dropped, chunks=chunks) for g, d, dropped, chunks in facts]

    def stop_rules(
        self, max_sentences: int | None = None, min_sentences: int = 1, length: float | None = None
    ) -> StopRules:
        """Combine the codec's end-of-text threshold with a length that leaves room for a prompt.

        length: share of the document; where it is asked for, only the model's slots limit an answer
        """
        slots = self.config.data.slots
        most = (min(16, slots // 2) if length is None else slots // 2) if max_sentences is None else max_sentences
        if most > slots - 2:
            raise UserError(f"--max-sentences={most}: expected at most {slots - 2}: the model reads {slots} concepts")
        return StopRules(max_sentences=most, min_sentences=min_sentences, end_threshold=self.record.stop_threshold)

    def shorten(self, prompts: Prompts, stop: StopRules, task: Task | None) -> list[Float[Tensor, "_ D"]]:
        """Cut prompts that leave no room for `stop.max_sentences`, with one warning on stderr for all of them.

        A continuation needs the end of its prompt, so the oldest concepts are dropped. An answer needs the document's
        beginning and the suffix, so the concepts between them are dropped, as for long pairs in training.
        """
        pieces = self.pieces(prompts, stop, task)
        if long := sum(map(bool, pieces.dropped)):
            dropped = "concepts before the prompt's suffix" if self._answers(task) else "oldest concepts"
            room = self.config.data.slots - stop.max_sentences
            warning = f"{long} of {len(prompts)} prompts are longer than {room} concepts; their {dropped} were dropped"
            print(warning, file=sys.stderr)
        return pieces.prompts

    def pieces(
        self,
        prompts: Prompts,
        stop: StopRules,
        task: Task | None,
        long: Long | None = None,
        length: float | None = None,
        keys: Sequence[int] | None = None,
    ) -> Pieces:
        """Make prompts leave room for what may be written.

        long:   part that is read of those that are longer
        length: share of the document's sentences that an answer is asked to have: a sentence before each prompt
        keys:   seeds of their noise (default: that of their last concepts)
        Raises UserError for what the model, or a continuation, would not heed.
        """
        answers = self._answers(task)
        check_long(long, answers)
        wishes = wishes_for(length, self.record, answers)
        if wishes:
            wish = self.codec.encode(wishes, lang=self.record.lang)
            prompts = [torch.cat([wish.to(prompt), prompt]) for prompt in prompts]
        most = partial(limit_of, stop=stop, length=length)
        return fit(prompts, most, self.config.data.slots, (len(wishes), int(answers)), long, keys)

    def sampling(self, asked: Sampling) -> Sampling:
        """Complete settings by those of the model's folder. Raises UserError for one that the family does not have."""
        sampling = asked.completed(self.config.sampling)
        resolve_sampling(sampling, self.model.defaults)
        return sampling

    def _answers(self, task: Task | None) -> bool:
        return (task or self.record.default_task) == "answer"

    def continue_concepts(self, prompts: Prompts, stop: StopRules, sampling: Sampling) -> list[Generated]:
        """Continue prompts that leave room for `stop.max_sentences`."""
        most = [stop.max_sentences] * len(prompts)
        ones, none = [1] * len(prompts), [0] * len(prompts)
        return self.continue_pieces(Pieces(list(prompts), most, None, ones, none), stop, sampling)

    def continue_pieces(
        self, pieces: Pieces, stop: StopRules, sampling: Sampling, budget: int | None = None
    ) -> list[Generated]:
        """Run the generation loop in batches of prompts of similar length, each within a budget of concepts.

        A result does not depend on the batch, but for rounding: products of matrices of other sizes differ in their
        last bits, and may so choose another sentence where two are equally near.
        """
        sampling, prompts, limits, keys = self.sampling(sampling), pieces.prompts, pieces.limits, pieces.keys
        results: dict[int, Generated] = {}
        sizes = [len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)]
        for chosen in batches(sizes, budget or CONCEPTS):
            found = generate(
                self.model,
                [prompts[i] for i in chosen],
                stop,
                sampling,
                limits=[limits[i] for i in chosen],
                keys=None if keys is None else [keys[i] for i in chosen],
            )
            results |= zip(chosen, found, strict=True)
        return [results[i] for i in range(len(prompts))]

    def best_of(
        self, options: GenerateOptions, pieces: Pieces, stop: StopRules
    ) -> tuple[list[Generated], list[float | None]]:
        """Draw several continuations of each prompt; return the best of each, and its mean round-trip distance.

        The first is drawn with the seed of `sampling`, so more samples are never worse. The distance is None for a
        single sample, which is not measured, and for a continuation without a sentence.
        """
        sampling, budget = options.sampling, options.batch_concepts
        if options.samples == 1:
            return self.continue_pieces(pieces, stop, sampling, budget), [None] * len(pieces.prompts)
        seeds = [sampling.seed, *(derive_seed(sampling.seed, number) for number in range(1, options.samples))]
        drawn = [self.continue_pieces(pieces, stop, replace(sampling, seed=seed), budget) for seed in seeds]
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
        self, results: Sequence[Generated], beam: int | None, bank: Bank | None, lang: Languages | None = None
    ) -> list[Generation]:
        """Decode all concepts of all results at once, and look up the nearest sentence of each if there is a bank.

        beam: beams of the codec's decoder; None takes the bank's sentences instead
        lang: language of all results, or of each (default: the training data's)
        """
        vectors = torch.cat([result.vectors for result in results]).cpu()
        real, cosines = bank.nearest(vectors) if bank else ([], torch.zeros(0, 1))
        closest = [sentences[0] for sentences in real]
        if not isinstance(lang, str | None):
            lang = [code for code, result in zip(lang, results, strict=True) for _ in result.vectors]
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
