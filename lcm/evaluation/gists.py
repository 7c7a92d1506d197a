"""Scores of gists of stories, and of stories written from a gist (`lcm evaluate --truth`)."""

from collections.abc import Iterable, Sequence
from typing import Any

from lcm.evaluation.examples import Example
from lcm.evaluation.truth_judge import TruthJudge, read_story
from lcm.tales import Event, Level, parse
from lcm.tales.judging import judge as judge_tale


def judge_gists(judge: TruthJudge, pairs: Sequence[Example], most: int) -> dict[str, dict[str, Any]]:
    """Scores of `gist` (a story was read, its gist written) and of `expansion` (the other way round).

    Each is of at most `most` pairs. Those that do not fit the model's slots are left out.
    """
    fit = [pair for pair in pairs if len(pair.vectors) < judge.lcm.config.data.slots]
    gists = [(pair, story) for pair in fit if (story := read_story(pair.document))]
    expansions = [(pair, story) for pair in fit if (story := read_story(pair.answer))]
    found = {}
    if gists:
        found["gist"] = _gist_scores(judge, gists[:most])
    if expansions:
        found["expansion"] = _expansion_scores(judge, expansions[:most])
    return found


def _gist_scores(judge: TruthJudge, gists: Sequence[tuple[Example, Level]]) -> dict[str, Any]:
    """Share of gists that are right word for word, and facts of each that are right, wrong, and missing."""
    pairs = [pair for pair, _ in gists]
    written = judge.answered(pairs, max(len(pair.answer) for pair in pairs) + 1)
    exact, right, wrong, wanted = [], [], [], []
    for (pair, story), (sentences, _) in zip(gists, written, strict=True):
        true = _facts(story.gist() if len(pair.answer) == 1 else story.long_gist())
        languages = [event.language for event in story.events[:1]]
        said = _facts(event for sentence in sentences if (event := parse(sentence, languages=languages)))
        exact.append(float(sentences == pair.answer))
        right.append(len(true & said))
        wrong.append(len(said - true))
        wanted.append(len(true))
    return {
        "word_for_word": judge.interval(exact),
        "facts_right": judge.interval(right, wanted),
        "facts_wrong": judge.interval(wrong, wanted),
        "count": len(gists),
    }


def _facts(events: Iterable[Event]) -> set[tuple[str, str, str]]:
    return {(event.kind, slot, name) for event in events for slot, name in (("", ""), *event.arguments.items())}


def _expansion_scores(judge: TruthJudge, expansions: Sequence[tuple[Example, Level]]) -> dict[str, Any]:
    """Sentences of the written stories that are possible, and stories whose gist is the one that was read."""
    pairs = [pair for pair, _ in expansions]
    longest = max(type(story).longest for _, story in expansions)
    most = min(longest + 1, judge.lcm.config.data.slots - max(pair.source_length for pair in pairs))
    good, lengths, same = [], [], []
    for (pair, story), (sentences, ended) in zip(expansions, judge.answered(pairs, most), strict=True):
        judged = judge_tale([], sentences, ended, (type(story),))
        good.append(sum(verdict.consistent for verdict in judged.verdicts))
        lengths.append(max(1, len(judged.verdicts)))
        asked = [parse(sentence) for sentence in pair.document]
        whole = judged.ends_well and all(verdict.consistent for verdict in judged.verdicts)
        same.append(float(whole and judged.story.long_gist() == asked))
    return {"consistent": judge.interval(good, lengths), "gist": judge.interval(same), "count": len(pairs)}
