"""Scores on stories whose truth is known: which sentences may follow, how often each comes, what is remembered.

The model continues stories after three sentences, draws many next sentences at some points, and writes gists. A score
has the controls truth (drawn from the truth itself), random (sentences of the test set) and previous (the sentence
before, again and again).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any

import numpy as np
from torch import Tensor

from lcm.batch import derive_seed
from lcm.errors import UserError
from lcm.evaluation.examples import Example
from lcm.evaluation.metrics import bootstrap
from lcm.inference import LCM
from lcm.models import Sampling
from lcm.tales import END, Event, Level, follow, parse
from lcm.tales.judging import Judged, Spread, judge, marked, spread

PROMPT, PROMPTS = 3, 200
"""Sentences of a prompt; stories that are continued."""
POINTS, DRAWS = 20, 100
"""Beginnings after which many next sentences are drawn, and how many."""
SHOWN = 10
"""Continuations of which each wrong word is marked."""
Interval = dict[str, float]


@dataclass(frozen=True)
class Tale:
    """A story of the test set, read back from its sentences."""

    example: Example
    sentences: list[str]
    story: Level


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

    def answered(self, pairs: Sequence[Example], most: int) -> list[tuple[list[str], bool]]:
        """The model's answers to the documents of pairs."""
        return self._written([pair.vectors[: pair.source_length] for pair in pairs], most, self.sampling.seed)

    def _written(self, prompts: Sequence[Tensor], most: int, seed: int) -> list[tuple[list[str], bool]]:
        # Stories may say nearly the same twice in a row; only "End of text." ends them.
        stop = replace(self.lcm.stop_rules(most, min_sentences=0), repetition_threshold=None)
        results = self.lcm.continue_concepts(prompts, stop, replace(self.sampling, seed=seed))
        texts = self.lcm.to_text(results, beam=1, bank=None)
        return [(text.sentences, text.stop_reason == "end") for text in texts]


def read_tales(examples: Iterable[Example]) -> list[Tale]:
    """The documents that are stories of a level, long enough to be continued."""
    found = []
    for example in examples:
        story = follow([parse(sentence) for sentence in example.document])
        if story and len(example.document) > PROMPT:
            found.append(Tale(example, example.document, story))
    return found


def judge_truth(
    judge: TruthJudge, documents: Sequence[Example], pairs: Sequence[Example]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`truth` of results.json, by system, and rows for examples.jsonl.

    Raises UserError if there is no story among the documents and pairs.
    """
    tales = read_tales(documents)[:PROMPTS]
    results: dict[str, dict[str, Any]] = defaultdict(dict)
    rows: list[dict[str, Any]] = []
    if tales:
        whole = _whole(judge, tales)
        for name, judged in whole.items():
            results[name] |= _scores(judge, judged)
        for name, spreads in _spreads(judge, tales).items():
            results[name] |= _spread_scores(judge, spreads)
        rows = [_row(tale, judged) for tale, judged in zip(tales[:SHOWN], whole["model"], strict=False)]
    for kind, written in _gists(judge, pairs[:PROMPTS]).items():
        results["model"][kind] = written
    if not results:
        raise UserError("--truth: no story in --data; expected documents or pairs of data_prep/make_tales.py, prepared")
    return dict(results), rows


def _whole(judge_: TruthJudge, tales: Sequence[Tale]) -> dict[str, list[Judged]]:
    """Continuations after PROMPT sentences, by system."""
    written: dict[int, tuple[list[str], bool]] = {}
    for level in {type(tale.story) for tale in tales}:
        own = [i for i, tale in enumerate(tales) if type(tale.story) is level]
        most = min(level.longest - PROMPT + 1, judge_.lcm.config.data.slots - PROMPT - 1)
        texts = judge_.continued([tales[i] for i in own], [PROMPT] * len(own), most, judge_.sampling.seed)
        written |= zip(own, texts, strict=True)
    random = Random(judge_.seed)
    corpus = [sentence for tale in tales for sentence in tale.sentences]
    systems: dict[str, list[Judged]] = {"model": [], "truth": [], "random": [], "previous": []}
    for i, tale in enumerate(tales):
        prompt, rest = tale.sentences[:PROMPT], tale.sentences[PROMPT:]
        texts_of = {
            "model": written[i],
            "truth": (_drawn(prompt, judge_.lcm.record.lang, random), True),
            "random": (random.choices(corpus, k=len(rest)), True),
            "previous": (prompt[-1:] * len(rest), True),
        }
        for name, (sentences, ended) in texts_of.items():
            systems[name].append(judge(prompt, sentences, ended))
    return systems


def _drawn(prompt: Sequence[str], language: str, random: Random) -> list[str]:
    """A continuation that is drawn from the truth."""
    story = follow([parse(sentence) for sentence in prompt])
    assert story
    story.finish(random)
    return [event.sentence(language, random) for event in story.events[len(prompt) :]]


def _scores(judge_: TruthJudge, judged: Sequence[Judged]) -> dict[str, Any]:
    """A continuation without a sentence counts as one wrong sentence."""
    lengths = [max(1, len(one.verdicts)) for one in judged]
    scores: dict[str, Any] = {}
    for what in ("grammatical", "consistent"):
        scores[what] = judge_.interval([one.share(what) * n for one, n in zip(judged, lengths, strict=True)], lengths)
        firsts = [replace(one, verdicts=one.verdicts[:1]).share(what) for one in judged]
        scores[f"first_{what}"] = judge_.interval(firsts)
    scores["ends"] = judge_.interval([float(one.ends_well) for one in judged])
    by_level: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        by_level[one.story.name].append(one)
    scores["by_level"] = {
        name: judge_.interval([one.share("consistent") for one in ones]) | {"count": len(ones)}
        for name, ones in by_level.items()
    }
    facts = _shares(judged, lambda v: [(str(fact.distance), fact.right) for fact in v.facts])
    recalled = [[fact.right for verdict in one.verdicts for fact in verdict.facts] for one in judged]
    scores["recall"] = judge_.interval(map(sum, recalled), map(len, recalled))
    scores["by_distance"] = {d: _share(*facts[d]) for d in sorted(facts, key=int)}
    kinds = _shares(judged, lambda v: [(v.event.kind, v.consistent)] if v.event else [])
    scores["by_kind"] = {kind: _share(*kinds[kind]) for kind in sorted(kinds)}
    return scores


def _share(good: int, of: int) -> dict[str, float]:
    return {"value": good / of, "count": of}


def _shares(
    judged: Sequence[Judged], found: Callable[[Any], Iterable[tuple[str, bool]]]
) -> Mapping[str, tuple[int, int]]:
    """Number of right ones, and of all, by name."""
    counts: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for one in judged:
        for verdict in one.verdicts:
            for name, right in found(verdict):
                good, of = counts[name]
                counts[name] = (good + right, of + 1)
    return counts


def _spreads(judge_: TruthJudge, tales: Sequence[Tale]) -> dict[str, list[Spread]]:
    """Next sentences drawn DRAWS times after POINTS beginnings of different lengths, by system."""
    chosen = tales[:POINTS]
    cuts = [1 + i % (len(tale.sentences) - 1) for i, tale in enumerate(chosen)]
    drawn: list[list[Event | None]] = [[] for _ in chosen]
    for number in range(DRAWS):
        texts = judge_.continued(chosen, cuts, 1, derive_seed(judge_.sampling.seed, 1, number))
        for events, (sentences, _) in zip(drawn, texts, strict=True):
            events.append(parse(sentences[0]) if sentences else END)
    random = Random(judge_.seed)
    corpus = [sentence for tale in tales for sentence in tale.sentences]
    spreads: dict[str, list[Spread]] = {"model": [], "truth": [], "random": [], "previous": []}
    for tale, cut, told in zip(chosen, cuts, drawn, strict=True):
        story = follow([parse(sentence) for sentence in tale.sentences[:cut]])
        assert story
        by_system: dict[str, list[Event | None]] = {
            "model": told,
            "truth": [story.next(random) for _ in range(DRAWS)],
            "random": [parse(sentence) for sentence in random.choices(corpus, k=DRAWS)],
            "previous": [parse(tale.sentences[cut - 1])] * DRAWS,
        }
        for name, found in by_system.items():
            spreads[name].append(spread(story, found, tale.sentences[cut - 1]))
    return spreads


def _spread_scores(judge_: TruthJudge, spreads: Sequence[Spread]) -> dict[str, Any]:
    return {
        "calibration": judge_.interval([one.distance for one in spreads]),
        "coverage": judge_.interval([one.coverage for one in spreads]),
        "points": [asdict(one) for one in spreads],
    }


def _gists(judge_: TruthJudge, pairs: Sequence[Example]) -> dict[str, dict[str, Any]]:
    """Scores of `gist` (a story was read, its gist written) and of `expansion` (the other way round)."""
    stories = [follow([parse(sentence) for sentence in pair.document]) for pair in pairs]
    gists = [(pair, story) for pair, story in zip(pairs, stories, strict=True) if story]
    tales = [follow([parse(sentence) for sentence in pair.answer]) for pair in pairs]
    expansions = [(pair, story) for pair, story in zip(pairs, tales, strict=True) if story]
    found = {}
    if gists:
        found["gist"] = _gist_scores(judge_, gists)
    if expansions:
        found["expansion"] = _expansion_scores(judge_, expansions)
    return found


def _gist_scores(judge_: TruthJudge, gists: Sequence[tuple[Example, Level]]) -> dict[str, Any]:
    """Share of gists that are right word for word, and facts of each that are right, wrong, and missing."""
    pairs = [pair for pair, _ in gists]
    written = judge_.answered(pairs, max(len(pair.answer) for pair in pairs) + 1)
    exact, right, wrong, wanted = [], [], [], []
    for (pair, story), (sentences, _) in zip(gists, written, strict=True):
        true = _facts(story.gist() if len(pair.answer) == 1 else story.long_gist())
        said = _facts(event for sentence in sentences if (event := parse(sentence)))
        exact.append(float(sentences == pair.answer))
        right.append(len(true & said))
        wrong.append(len(said - true))
        wanted.append(len(true))
    return {
        "word_for_word": judge_.interval(exact),
        "facts_right": judge_.interval(right, wanted),
        "facts_wrong": judge_.interval(wrong, wanted),
        "count": len(gists),
    }


def _facts(events: Iterable[Event]) -> set[tuple[str, str, str]]:
    return {(event.kind, slot, name) for event in events for slot, name in (("", ""), *event.arguments.items())}


def _expansion_scores(judge_: TruthJudge, expansions: Sequence[tuple[Example, Level]]) -> dict[str, Any]:
    """Sentences of the written stories that are possible, and stories whose gist is the one that was read."""
    pairs = [pair for pair, _ in expansions]
    most = min(max(type(story).longest for _, story in expansions) + 1, judge_.lcm.config.data.slots // 2)
    good, lengths, same = [], [], []
    for (pair, story), (sentences, ended) in zip(expansions, judge_.answered(pairs, most), strict=True):
        judged = judge([], sentences, ended, (type(story),))
        good.append(sum(verdict.consistent for verdict in judged.verdicts))
        lengths.append(max(1, len(judged.verdicts)))
        asked = [parse(sentence) for sentence in pair.document]
        same.append(float(judged.ends_well and judged.story.long_gist() == asked))
    return {"consistent": judge_.interval(good, lengths), "gist": judge_.interval(same), "count": len(pairs)}


def _row(tale: Tale, judged: Judged) -> dict[str, Any]:
    """A line of examples.jsonl: each sentence with its wrong words marked, and what would have been right."""
    sentences = [verdict.sentence for verdict in judged.verdicts]
    explained = judge(tale.sentences[:PROMPT], sentences, False, explain=_language(tale))
    return {
        "kind": "tale",
        "id": tale.example.id,
        "prompt": tale.sentences[:PROMPT],
        "reference": tale.sentences[PROMPT:],
        "model": sentences,
        "verdicts": [
            {
                "consistent": verdict.consistent,
                "grammatical": verdict.event is not None,
                "words": marked(verdict.sentence, verdict.instead or verdict.sentence),
                "instead": verdict.instead,
            }
            for verdict in explained.verdicts
        ],
        "ends_well": judged.ends_well,
    }


def _language(tale: Tale) -> str:
    event = parse(tale.sentences[0])
    assert event
    return event.language
