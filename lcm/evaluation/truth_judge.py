"""A model that writes stories, with settings of sampling and of intervals; and the stories of a test set, read back."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lcm.batch import derive_seed
from lcm.evaluation.examples import Example
from lcm.inference import LCM
from lcm.models import Sampling
from lcm.scores import bootstrap
from lcm.tales import Level, follow, parse

PROMPT = 3
"""Sentences of a prompt."""
Interval = dict[str, float]


@dataclass(frozen=True)
class Tale:
    """A story of the test set, read back from its sentences."""

    example: Example
    sentences: list[str]
    story: Level
    language: str


@dataclass(frozen=True)
class TruthJudge:
    """A model with its sampling settings, and the numbers that intervals need."""

    lcm: LCM
    sampling: Sampling
    bootstrap: int
    seed: int

    def interval(self, good: Iterable[float | int], of: Iterable[float | int] | None = None) -> Interval:
        """Sum of `good` over sum of `of` (by default 1 each), with a 95% bootstrap interval over prompts."""
        totals = np.array(list(good), dtype=np.float64)
        counts = np.ones(len(totals)) if of is None else np.array(list(of), dtype=np.float64)
        return asdict(bootstrap(totals, counts, self.bootstrap, self.seed))

    def continued(
        self, tales: Sequence[Tale], cuts: Sequence[int], most: int, seed: int
    ) -> list[tuple[list[str], bool]]:
        """The sentences that follow the first `cuts[i]` of each story, at most `most`; True if the model stopped."""
        return self._written([t.example.vectors[:cut] for t, cut in zip(tales, cuts, strict=True)], most, seed)

    @torch.no_grad()
    def drawn(self, tales: Sequence[Tale], cuts: Sequence[int], draws: int) -> list[list[str | None]]:
        """For each story, `draws` sentences that follow its first `cuts[i]`; None where the model ends the story.

        The beginnings are read once, and each draw has a seed of its own.
        """
        lcm, sampling = self.lcm, self.lcm.sampling(self.sampling)
        prompts = [tale.example.vectors[:cut] for tale, cut in zip(tales, cuts, strict=True)]
        context = lcm.model.prefill(lcm.shorten(prompts, lcm.stop_rules(1, min_sentences=0), "continue"))
        seeds = [derive_seed(sampling.seed, 1, number) for number in range(draws)]
        vectors = torch.stack([lcm.model.next(context, replace(sampling, seed=seed)) for seed in seeds], dim=1)
        ends = cosine_similarity(vectors, lcm.model.end_of_text, dim=2) >= lcm.record.stop_threshold
        texts = iter(lcm.codec.decode(vectors[~ends].cpu(), lang=lcm.record.lang, beam=1))
        return [[None if end else next(texts) for end in of_one] for of_one in ends.tolist()]

    def answered(self, pairs: Sequence[Example], most: int) -> list[tuple[list[str], bool]]:
        """The model's answers to the documents of pairs."""
        prompts = [pair.vectors[: pair.source_length] for pair in pairs]
        return self._written(prompts, most, self.sampling.seed, "answer")

    def _written(
        self, prompts: Sequence[Tensor], most: int, seed: int, task: Literal["continue", "answer"] = "continue"
    ) -> list[tuple[list[str], bool]]:
        # Stories may say nearly the same twice in a row; only "End of text." ends them.
        stop = replace(self.lcm.stop_rules(most, min_sentences=0), repetition_threshold=None)
        prompts = self.lcm.shorten(prompts, stop, task)
        results = self.lcm.continue_concepts(prompts, stop, replace(self.sampling, seed=seed))
        texts = self.lcm.to_text(results, beam=1, bank=None)
        return [(text.sentences, text.stop_reason == "end") for text in texts]


def read_tales(examples: Iterable[Example], slots: int) -> list[Tale]:
    """The documents that are stories of a level, long enough to be continued, and that fit the model's slots.

    Level after level in turn, so that the first ones are of all levels.
    """
    found: dict[str, list[Tale]] = defaultdict(list)
    for example in examples:
        story = read_story(example.document)
        if story and PROMPT < len(example.document) <= slots - 2:
            found[story.name].append(Tale(example, example.document, story, story.events[0].language))
    rounds = zip_longest(*found.values())
    return [tale for each in rounds for tale in each if tale]


def has_story(example: Example) -> bool:
    """True for a story long enough to be continued, and for a pair with one on either side."""
    if example.source_length:
        return any(map(read_story, (example.document, example.answer)))
    return len(example.document) > PROMPT and read_story(example.document) is not None


def read_story(sentences: Sequence[str]) -> Level | None:
    """The story of these sentences; None unless it is a whole one."""
    story = follow([parse(sentence) for sentence in sentences])
    return story if story and any(choice.kind is None for choice in story.choices()) else None
