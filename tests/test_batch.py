"""The batch: what may be seen from where, and which slots count."""

from dataclasses import fields, replace

import pytest
import torch

from lcm.batch import PAD, Batch, document_mask


def a_batch() -> Batch:
    """Three documents and an empty slot; then a pair with two of prompt and a document of a single concept."""
    doc = torch.tensor([[0, 0, 1, 1, 1, PAD], [0, 0, 0, 0, 1, PAD]])
    pos = torch.tensor([[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 0]])
    is_target = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0]], dtype=torch.bool)
    emb = torch.arange(1, 13.0).view(2, 6, 1).expand(2, 6, 3).half() * (doc != PAD)[..., None]
    return Batch(emb, doc, pos, is_target, row=torch.tensor([3, 4]), step_targets=torch.tensor(8))


def test_a_slot_sees_its_own_document_up_to_itself_and_nothing_else():
    batch = a_batch()
    mask = document_mask(batch.doc)
    for row in range(2):
        for query in range(6):
            for key in range(6):
                seen = batch.doc[row, query] == batch.doc[row, key] and key <= query
                assert mask[row, query, key] == seen


def test_no_row_of_the_mask_is_empty():
    """Padding attends to padding; a softmax over nothing would be a NaN."""
    assert document_mask(torch.full((1, 4), PAD)).any(-1).all()
    assert document_mask(a_batch().doc).any(-1).all()


def test_targets_never_cross_a_document():
    """Changing the state of one slot changes what one slot is predicted from: the next of the same document."""
    batch = a_batch()
    state = torch.randn(2, 6, 5)
    before = batch.before(state)
    for row in range(2):
        for slot in range(6):
            touched = state.clone()
            touched[row, slot] += 1
            changed = (batch.before(touched) != before).any(-1).nonzero().tolist()
            follows = slot < 5 and batch.doc[row, slot + 1] == batch.doc[row, slot] != PAD
            assert changed == ([[row, slot + 1]] if follows else [])


def test_the_first_concept_is_predicted_from_nothing():
    batch = a_batch()
    before = batch.before(torch.ones(2, 6, 5))
    assert (before[batch.pos == 0] == 0).all()
    assert (before[batch.pos > 0] == 1).all()


@pytest.mark.parametrize(
    ("predicts_first", "expected"),
    [(True, [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0]]), (False, [[0, 1, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0]])],
)
def test_targets_are_a_fact_of_the_data_and_of_what_the_model_can_predict(predicts_first, expected):
    assert a_batch().targets(predicts_first).int().tolist() == expected


def test_every_field_is_moved_and_pinned(monkeypatch):
    def on_meta(batch: Batch) -> list[bool]:
        return [getattr(batch, f.name).is_meta for f in fields(Batch)]

    assert all(on_meta(a_batch().to("meta")))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.to("meta"))
    assert all(on_meta(a_batch().pin_memory()))


def test_a_batch_is_frozen():
    with pytest.raises(AttributeError):
        a_batch().emb = torch.zeros(1)
    assert replace(a_batch(), row=torch.tensor([8, 9])).row.tolist() == [8, 9]
