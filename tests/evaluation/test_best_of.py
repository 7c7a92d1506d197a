"""Controls of summaries: what a perfect choice among several draws scores, and what the model would extract."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import FakeCodec, write_dataset
from test_evaluate import ANSWER, STORY, TRAIN, knowing

from lcm.evaluation.best_of import draw
from lcm.evaluation.command import EvaluateOptions, evaluate
from lcm.evaluation.examples import Example
from lcm.evaluation.report import headline
from lcm.evaluation.summaries import Lengths, Writer, _extracted
from lcm.models import Sampling
from lcm.scores import CONVENTIONS

TEXTS = [["The cat sat.", "A dog."], ["The cat.", "The dog ran."], ["A cat sat down.", "No."]]
"""Summaries of two documents, draw by draw."""
REFERENCES = ["The cat sat.", "The dog ran."]


@dataclass(frozen=True)
class Told(Writer):
    """Writes the next texts of a list, and remembers the seeds."""

    told: list[list[str]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def write(self, examples, prompts, task, most):
        self.seeds.append(self.sampling.seed)
        return [{"model": [text]} for text in self.told[len(self.seeds) - 1]]


def pairs_of(references):
    return [
        Example(str(i), ["Read.", "[MODEL]:", text, "End of text."], 2, torch.zeros(4, 2))
        for i, text in enumerate(references)
    ]


def drawn(texts, references=REFERENCES):
    writer = Told(SimpleNamespace(lang="eng_Latn"), None, Sampling(seed=7), told=texts[1:])
    pairs = pairs_of(references)
    first = [[text] for text in texts[0]]
    return draw(writer, pairs, Lengths(1, 2), first, len(texts), CONVENTIONS["lcm"]), writer


def test_the_best_of_each_document_is_chosen():
    best, _ = drawn(TEXTS)
    assert best.oracle == [["The cat sat."], ["The dog ran."]]
    record = best.record(100, 0)
    assert record["oracle"]["value"] == 1
    assert record["mean"]["value"] == pytest.approx(float(best.scores.mean()))
    assert record["first"]["value"] == pytest.approx(float(best.scores[0].mean()))
    assert (record["draws"], record["by"]) == (3, "rougeL")


def test_draws_that_are_all_the_same_gain_nothing():
    best, _ = drawn([TEXTS[0]] * 4)
    record = best.record(100, 0)
    assert record["first"] == record["mean"] == record["oracle"]
    assert best.oracle == [["The cat sat."], ["A dog."]]


def test_more_draws_are_never_worse():
    values = [drawn(TEXTS[:k])[0].record(10, 0)["oracle"]["value"] for k in (1, 2, 3)]
    assert values == sorted(values)


def test_each_draw_has_a_seed_of_its_own_and_the_first_is_not_written_again():
    _, writer = drawn(TEXTS)
    assert len(writer.seeds) == len(set(writer.seeds)) == 2
    assert 7 not in writer.seeds


def test_a_pair_that_cannot_be_scored_is_in_no_mean():
    best, _ = drawn(TEXTS, ["The cat sat.", "..."])
    assert np.isnan(best.scores[:, 1]).all()
    assert best.oracle[1] == ["A dog."]
    assert best.record(10, 0)["oracle"]["value"] == 1


def test_a_model_extracts_the_nearest_sentences_of_the_document():
    """Lengths do not count; a concept may take a sentence that another has taken."""
    vectors = torch.tensor([[1.0, 0], [0, 1], [5, 5], [9, 9], [8, 8]])
    example = Example("a", ["East.", "North.", "Between.", "[MODEL]:", "x"], 4, vectors)
    concepts = torch.tensor([[0.1, 9.0], [9, 0.1], [0.1, 0.1], [2, 0.1]])
    assert _extracted(example, concepts) == ["North.", "East.", "Between.", "East."]
    assert _extracted(example, concepts[:0]) == []


def test_evaluations_say_what_a_perfect_choice_gains(tmp_path):
    write_dataset(
        tmp_path, FakeCodec(), {"train": TRAIN, "test": [(STORY[:3], ANSWER), (["Another.", "Text."], ANSWER)]}
    )
    found = evaluate(knowing(), EvaluateOptions(data=(str(tmp_path),), best_of=3))
    assert found.results["best_of"]["draws"] == 3
    assert found.results["summaries"]["oracle"]["rougeL"]["value"] == 1
    assert "Best of 3: ROUGE-L of the first draw 100.0, of all on average 100.0, of the best" in headline(found.results)
    rows = [row for row in found.rows if row["kind"] == "summary"]
    assert all(row["oracle"] == ANSWER for row in rows)
    assert all(set(row["source"]) <= set(row["prompt"]) for row in rows)
    assert "best_of" not in evaluate(knowing(), EvaluateOptions(data=(str(tmp_path),))).results
