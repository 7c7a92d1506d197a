"""Teacher-forced scores: which sentences are predicted, from what, and how they are scored."""

import numpy as np
import pytest
import torch
from fakes import FakeCodec, reciting

from lcm.codec.text import END_OF_TEXT, PROMPT_SUFFIX
from lcm.config import BaseLCMConfig
from lcm.data.packing import cut_documents
from lcm.evaluation.examples import Example
from lcm.evaluation.scoring import (
    POSITIONS,
    by_example,
    by_group,
    mean_of,
    measure,
    pieces_of,
    predict,
    predictions_of,
    stop_rates,
)
from lcm.models.base import BaseLCM
from lcm.models.interface import Sampling

STORY = ["The sea was calm.", "A boat went out.", "Then the wind rose.", "The boat came home."]


def example(codec, document, answer=None, id="x"):
    prompt = [*document, PROMPT_SUFFIX] if answer else []
    sentences = [*prompt, *(answer or document), END_OF_TEXT]
    return Example(id, sentences, len(prompt), codec.encode(sentences))


def scored(lcm, examples):
    pieces = pieces_of(examples, lcm.config.data.slots)
    return predictions_of(pieces, predict(lcm.model, pieces, Sampling()), lcm.record)


def test_every_sentence_but_the_first_is_predicted_and_only_the_answer_of_a_pair():
    lcm = reciting(STORY)
    predictions = scored(
        lcm, [example(lcm.codec, STORY[:3]), example(lcm.codec, STORY[:2], ["Sum one.", "Sum two here."])]
    )
    names = lcm.codec.decode(predictions.candidates[predictions.place])
    assert names == ["A boat went out.", "Then the wind rose.", "Sum one.", "Sum two here."]
    assert lcm.codec.decode(predictions.previous) == [
        "The sea was calm.",
        "A boat went out.",
        PROMPT_SUFFIX,
        "Sum one.",
    ]
    assert predictions.pos.tolist() == [1, 2, 3, 4]
    assert predictions.words.tolist() == [4, 4, 2, 3]
    assert predictions.example.tolist() == [0, 0, 1, 1]


def test_markers_are_neither_predicted_nor_candidates():
    lcm = reciting(STORY)
    predictions = scored(lcm, [example(lcm.codec, STORY[:3]), example(lcm.codec, STORY[:2], ["Sum."])])
    assert lcm.codec.decode(predictions.candidates) == [*STORY[:3], *STORY[:2], "Sum."]
    assert predictions.piece.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(predictions.at_ends) == 2


def random_example(rng, dim=4):
    answer = int(rng.integers(1, 9))
    prompt = int(rng.integers(2, 30)) if rng.random() < 0.5 else 0
    concepts = prompt + answer + 1 if prompt else int(rng.integers(2, 40))
    return Example(
        "x", [str(i) for i in range(concepts)], prompt, torch.arange(concepts)[:, None].float().expand(-1, dim)
    )


@pytest.mark.parametrize("slots", [4, 7, 16])
def test_documents_are_cut_as_in_training(slots):
    rng = np.random.default_rng(slots)
    examples = [random_example(rng) for _ in range(60)]
    index = np.array([[1000 * i, len(e.sentences), e.source_length] for i, e in enumerate(examples)])
    spans, owner = cut_documents(index, np.zeros(len(index), dtype=np.int64), slots)
    expected = []
    for piece in range(owner.max() + 1):
        parts = spans[owner == piece]
        concepts = [int(c) for p in parts for c in range(p["first"], p["first"] + p["count"])]
        targets = [i for p in parts for i in range(p["pos"], p["pos"] + p["count"]) if i - p["pos"] >= p["prompt"]]
        expected.append((concepts, [i for i in targets if i > 0]))
    found = []
    for piece in pieces_of(examples, slots):
        assert [str(int(v)) for v in piece.vectors[:, 0]] == list(piece.sentences)
        found.append(([int(v) for v in piece.vectors[:, 0]], list(range(piece.first, len(piece.sentences)))))
    assert found == expected


def test_a_batch_predicts_each_piece_as_alone():
    torch.manual_seed(0)
    codec = FakeCodec(8)
    model = BaseLCM(BaseLCMConfig(kind="base", dim=8, width=32, heads=2, layers=2)).eval()
    pieces = pieces_of([example(codec, STORY[:n]) for n in (4, 1, 3)], slots=16)
    together = predict(model, pieces, Sampling())
    for piece, rows in zip(pieces, together, strict=True):
        (alone,) = predict(model, [piece], Sampling())
        torch.testing.assert_close(rows, alone)
        assert len(rows) == len(piece.vectors)


def round_trip(lcm):
    return lambda vectors: lcm.codec.encode(lcm.codec.decode(vectors))


def test_a_model_that_knows_the_story_has_perfect_scores():
    lcm = reciting(STORY)
    predictions = scored(lcm, [example(lcm.codec, STORY)])
    scores = measure(predictions.predicted, predictions, round_trip(lcm), torch.ones(3, dtype=torch.bool))
    assert scores["l2"].tolist() == [0, 0, 0]
    assert scores["l2_roundtrip"].tolist() == [0, 0, 0]
    assert scores["contrastive_accuracy"].nan_to_num(1.0).tolist() == [1, 1, 1]
    assert scores["par"].nan_to_num(1.0).tolist() == pytest.approx([1, 1, 1])


def test_only_the_sample_makes_the_round_trip():
    lcm = reciting(STORY)
    predictions = scored(lcm, [example(lcm.codec, STORY)])
    sent = []
    measured = measure(
        predictions.previous, predictions, lambda v: sent.append(v) or v, torch.tensor([True, False, True])
    )
    assert measured["l2_roundtrip"].isnan().tolist() == [False, True, False]
    torch.testing.assert_close(measured["l2_roundtrip"][[0, 2]], measured["l2"][[0, 2]])
    assert len(sent[0]) == 2
    lost = measure(predictions.previous, predictions, torch.zeros_like, torch.tensor([True, False, True]))
    torch.testing.assert_close(lost["l2_gap"], lost["l2_roundtrip"] - lost["l2"], equal_nan=True)
    assert lost["l2_gap"].isnan().tolist() == [False, True, False]


def test_par_sees_the_past_of_its_own_document_only():
    lcm = reciting(STORY)
    predictions = scored(lcm, [example(lcm.codec, STORY), example(lcm.codec, ["Else.", *STORY[1:]])])
    together = measure(predictions.previous, predictions, round_trip(lcm), torch.zeros(6, dtype=torch.bool))["par"]
    for number, document in enumerate([STORY, ["Else.", *STORY[1:]]]):
        alone = scored(lcm, [example(lcm.codec, document)])
        expected = measure(alone.previous, alone, round_trip(lcm), torch.zeros(3, dtype=torch.bool))["par"]
        torch.testing.assert_close(together[predictions.example == number], expected, equal_nan=True)


def test_every_prediction_is_in_one_group():
    lcm = reciting(STORY)
    predictions = scored(lcm, [example(lcm.codec, [f"Sentence {i}." for i in range(n)]) for n in (3, 9, 14)])
    everything = torch.ones(len(predictions.place), dtype=torch.bool)
    systems = {"model": measure(predictions.predicted, predictions, round_trip(lcm), everything)}
    rows = by_group(systems, predictions.pos, POSITIONS)
    assert [(row["from"], row["to"], row["count"]) for row in rows] == [(1, 1, 3), (2, 3, 5), (4, 7, 8), (8, 13, 7)]
    whole = sum(row["count"] * row["model"]["l2"] for row in rows) / len(predictions.place)
    assert whole == pytest.approx(mean_of(systems["model"]["l2"], predictions.example, 10, 0).value)


def test_a_mean_leaves_out_undefined_scores():
    values = torch.tensor([1.0, torch.nan, 5.0, 6.0])
    assert mean_of(values, torch.tensor([0, 0, 2, 2]), 10, 0).value == 4.0
    assert np.isnan(mean_of(values[1:2], torch.tensor([0]), 10, 0).value)


def test_each_document_has_a_row_with_its_own_means():
    lcm = reciting(STORY)
    examples = [example(lcm.codec, STORY[:1], id="short"), example(lcm.codec, STORY[:2], ["Sum."], id="pair")]
    predictions = scored(lcm, examples)
    scores = measure(predictions.predicted, predictions, round_trip(lcm), torch.ones(1, dtype=torch.bool))
    (row,) = by_example(scores, predictions, examples)
    assert (row["kind"], row["id"], row["sentences"]) == ("pair", "pair", 1)
    assert row["l2"] == pytest.approx(float(scores["l2"][0]))


def test_stops_at_the_end_and_stops_too_early_are_counted_apart():
    lcm = reciting(STORY[:2])
    predictions = scored(lcm, [example(lcm.codec, STORY[:2]), example(lcm.codec, STORY[:3])])
    found = stop_rates(predictions, lcm.model.end_of_text, 0.95)
    # The ends of both documents; after the second sentence of the longer one, the reciter predicts the end.
    assert (found["ends"], found["sentences"]) == (2, 3)
    assert found["stopped_early"] == pytest.approx(1 / 3)
    assert found["found"] >= 0.5
