"""Scores on stories whose truth is known: which sentences may follow, how often each comes, what is remembered.

The model continues stories after three sentences, draws many next sentences at some points, and writes gists. A score
has the controls truth (drawn from the truth itself), random (sentences of the test set) and previous (the sentence
before, again and again).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from random import Random
from typing import Any

from lcm.errors import UserError
from lcm.evaluation.examples import Example
from lcm.evaluation.gists import judge_gists
from lcm.evaluation.truth_judge import PROMPT, Tale, TruthJudge, read_tales
from lcm.tales import END, Event, follow, parse
from lcm.tales.judging import Judged, Spread, marked, spread
from lcm.tales.judging import judge as judge_tale

PROMPTS = 200
"""Stories that are continued; gists, and expansions, that are written."""
POINTS, DRAWS = 20, 100
"""Beginnings after which many next sentences are drawn, and how many."""
SHOWN = 10
"""Continuations of which each wrong word is marked."""


def judge_truth(
    judge: TruthJudge, documents: Sequence[Example], pairs: Sequence[Example]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`truth` of results.json, by system, and rows for examples.jsonl.

    Raises UserError if there is no story among the documents and pairs.
    """
    tales = read_tales(documents, judge.lcm.config.data.slots)[:PROMPTS]
    results: dict[str, dict[str, Any]] = defaultdict(dict)
    rows: list[dict[str, Any]] = []
    if tales:
        whole = _whole(judge, tales)
        for name, judged in whole.items():
            results[name] |= _scores(judge, judged)
        for name, spreads in _spreads(judge, tales).items():
            results[name] |= _spread_scores(judge, spreads)
        pairs_of = zip(tales, whole["model"], strict=True)
        rows = [_row(tale, judged, explained=i < SHOWN) for i, (tale, judged) in enumerate(pairs_of)]
    for kind, written in judge_gists(judge, pairs, PROMPTS).items():
        results["model"][kind] = written
    if not results:
        raise UserError(
            "--truth: no story in --data that fits the model's data.slots; expected documents or pairs of "
            "data_prep/make_tales.py, prepared"
        )
    return dict(results), rows


def _whole(judge: TruthJudge, tales: Sequence[Tale]) -> dict[str, list[Judged]]:
    """Continuations after PROMPT sentences, by system."""
    written = continuations(judge, tales)
    random = Random(judge.seed)
    corpus = [sentence for tale in tales for sentence in tale.sentences]
    systems: dict[str, list[Judged]] = {"model": [], "truth": [], "random": [], "previous": []}
    for i, tale in enumerate(tales):
        prompt, rest = tale.sentences[:PROMPT], tale.sentences[PROMPT:]
        texts_of = {
            "model": written[i],
            "truth": (_drawn(prompt, tale.language, random), True),
            "random": (random.choices(corpus, k=len(rest)), True),
            "previous": (prompt[-1:] * len(rest), True),
        }
        for name, (sentences, ended) in texts_of.items():
            systems[name].append(judge_tale(prompt, sentences, ended))
    return systems


def continuations(judge: TruthJudge, tales: Sequence[Tale]) -> list[tuple[list[str], bool]]:
    """The model's continuation of each story after PROMPT sentences; True where it stopped by itself."""
    written: dict[int, tuple[list[str], bool]] = {}
    for level in {type(tale.story) for tale in tales}:
        own = [i for i, tale in enumerate(tales) if type(tale.story) is level]
        most = min(level.longest - PROMPT + 1, judge.lcm.config.data.slots - PROMPT - 1)
        texts = judge.continued([tales[i] for i in own], [PROMPT] * len(own), most, judge.sampling.seed)
        written |= zip(own, texts, strict=True)
    return [written[i] for i in range(len(tales))]


def _drawn(prompt: Sequence[str], language: str, random: Random) -> list[str]:
    """A continuation that is drawn from the truth."""
    story = follow([parse(sentence) for sentence in prompt])
    assert story
    story.finish(random)
    return [event.sentence(language, random) for event in story.events[len(prompt) :]]


def _scores(judge: TruthJudge, judged: Sequence[Judged]) -> dict[str, Any]:
    """A continuation without a sentence counts as one wrong sentence."""
    lengths = [max(1, len(one.verdicts)) for one in judged]
    scores: dict[str, Any] = {}
    for what in ("grammatical", "consistent"):
        scores[what] = judge.interval([one.share(what) * n for one, n in zip(judged, lengths, strict=True)], lengths)
        firsts = [replace(one, verdicts=one.verdicts[:1]).share(what) for one in judged]
        scores[f"first_{what}"] = judge.interval(firsts)
    scores["ends"] = judge.interval([float(one.ends_well) for one in judged])
    by_level: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        by_level[one.story.name].append(one)
    scores["by_level"] = {
        name: judge.interval(
            [sum(verdict.consistent for verdict in one.verdicts) for one in ones],
            [max(1, len(one.verdicts)) for one in ones],
        )
        | {"count": len(ones)}
        for name, ones in by_level.items()
    }
    facts = _shares(judged, lambda v: [(str(fact.distance), fact.right) for fact in v.facts])
    recalled = [[fact.right for verdict in one.verdicts for fact in verdict.facts] for one in judged]
    scores["recall"] = judge.interval(map(sum, recalled), map(len, recalled))
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


def _spreads(judge: TruthJudge, tales: Sequence[Tale]) -> dict[str, list[Spread]]:
    """Next sentences drawn DRAWS times after POINTS beginnings of different lengths, by system."""
    chosen = tales[:POINTS]
    cuts = [1 + i % (len(tale.sentences) - 1) for i, tale in enumerate(chosen)]
    drawn = [
        [END if sentence is None else parse(sentence, languages=[tale.language]) for sentence in sentences]
        for tale, sentences in zip(chosen, judge.drawn(chosen, cuts, DRAWS), strict=True)
    ]
    random = Random(judge.seed)
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


def _spread_scores(judge: TruthJudge, spreads: Sequence[Spread]) -> dict[str, Any]:
    return {
        "calibration": judge.interval([one.distance for one in spreads]),
        "coverage": judge.interval([one.coverage for one in spreads]),
        "points": [asdict(one) for one in spreads],
    }


def _row(tale: Tale, judged: Judged, explained: bool) -> dict[str, Any]:
    """A line of examples.jsonl. explained: each sentence with its wrong words marked, and what would have been right"""
    sentences = [verdict.sentence for verdict in judged.verdicts]
    scores: dict[str, float] = {what: judged.share(what) for what in ("grammatical", "consistent")}
    row = {
        "kind": "tale",
        "id": tale.example.id,
        "prompt": tale.sentences[:PROMPT],
        "reference": tale.sentences[PROMPT:],
        "model": sentences,
        "scores": {**scores, "sentences": max(1, len(sentences))},
        "ends_well": judged.ends_well,
    }
    if explained:
        told = judge_tale(tale.sentences[:PROMPT], sentences, False, explain=tale.language)
        row["verdicts"] = [
            {
                "consistent": verdict.consistent,
                "grammatical": verdict.event is not None,
                "words": marked(verdict.sentence, verdict.sentence if verdict.consistent else verdict.instead),
                "instead": verdict.instead,
            }
            for verdict in told.verdicts
        ]
    return row
