"""The scores, each against a plain second implementation or a closed form."""

import math

import pytest
import torch

from lcm.evaluation import scoring
from lcm.evaluation.scoring import contrastive_accuracy, l2, par


def some_documents(lengths, dim=8, seed=0):
    torch.manual_seed(seed)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return torch.randn(len(document), dim), document


def test_l2_is_the_length_of_the_difference():
    assert l2(torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])).tolist() == [5.0, 0.0]


def plain_contrastive_accuracy(predicted, candidates, document, place):
    """One candidate at a time, as the paper says it."""
    shares = []
    for guess, own in zip(predicted, place.tolist(), strict=True):
        farther = []
        for other in range(len(candidates)):
            if abs(other - own) <= 1 and document[other] == document[own]:
                continue
            farther.append(bool((guess - candidates[other]).norm() > (guess - candidates[own]).norm()))
        shares.append(sum(farther) / len(farther))
    return shares


@pytest.mark.parametrize("block", [1, 4, 1024])
def test_contrastive_accuracy_is_the_papers_definition_in_blocks_of_any_size(block, monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", block)
    candidates, document = some_documents([4, 1, 2, 6])
    place = torch.tensor([1, 2, 3, 6, 8, 12])
    predicted = candidates[place] + 1.5 * torch.randn(len(place), 8)
    found = contrastive_accuracy(predicted, candidates, document, place)
    expected = plain_contrastive_accuracy(predicted, candidates, document, place)
    assert 0 < min(expected) < 1
    assert found.tolist() == pytest.approx(expected)


def test_a_perfect_prediction_is_nearer_than_everything_but_a_copy():
    candidates, document = some_documents([3, 3, 4])
    place = torch.tensor([1, 4])
    assert contrastive_accuracy(candidates[place], candidates, document, place).tolist() == [1.0, 1.0]
    candidates[8] = candidates[1]
    assert contrastive_accuracy(candidates[place], candidates, document, place).tolist() == pytest.approx([6 / 7, 1.0])


def test_only_neighbours_in_the_same_document_are_left_out():
    """Four candidates on a line; the prediction lies on the other document's concept, next to it in memory."""
    candidates = torch.tensor([[0.0], [10.0], [1.0], [20.0]])
    document = torch.tensor([0, 0, 1, 1])
    # x_n = 10 stands at place 1: place 0 is its neighbour, so only the 1 and the 20 of the other document count.
    share = contrastive_accuracy(torch.tensor([[11.0]]), candidates, document, torch.tensor([1]))
    assert share.tolist() == [1.0]
    share = contrastive_accuracy(torch.tensor([[1.5]]), candidates, document, torch.tensor([1]))
    assert share.tolist() == [0.5]


def test_no_candidate_means_no_score():
    candidates, document = some_documents([3])
    assert contrastive_accuracy(candidates[1:2], candidates, document, torch.tensor([1])).isnan().all()


def test_par_is_the_ratio_of_the_closest_pasts():
    sequence = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    predicted = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    # For n = 2 the truth is at 45° from both before it; the first guess too, the second lies on one of them.
    found = par(predicted, sequence, torch.tensor([2, 2]))
    assert found.tolist() == pytest.approx([1.0, math.sqrt(2)])


def test_par_knows_only_the_past_and_refuses_a_tiny_denominator():
    sequence = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    guess = torch.tensor([[0.0, 1.0]])
    assert par(guess, sequence, torch.tensor([1])).tolist() == pytest.approx([0.0])  # x_2, which equals it, is future
    assert par(guess, sequence, torch.tensor([0])).isnan().all()
    assert par(guess, torch.tensor([[1.0, 0.0], [0.05, 1.0]]), torch.tensor([1])).isnan().all()
