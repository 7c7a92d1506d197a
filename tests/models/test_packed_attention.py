"""Documents of one length side by side: every slot once, nothing padded, what a mask over rows gives."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lcm.batch import PAD, document_mask
from lcm.models.layers import Documents, attend

DOC = torch.tensor([[0, 0, 0, 1, 1, PAD, PAD], [0, 1, 1, 1, 2, 2, PAD], [PAD] * 7])
"""Documents of 3 and 2, of 1, 3 and 2 slots, and a row without any."""


def test_documents_are_sorted_by_length_and_keep_their_order():
    documents = Documents.of(DOC)
    assert documents.groups == [(1, 1), (2, 2), (2, 3)]
    assert documents.index.tolist() == [7, 3, 4, 11, 12, 0, 1, 2, 8, 9, 10]


def test_numbers_of_documents_may_have_gaps_and_their_slots_others_between():
    documents = Documents.of(torch.tensor([[40, 3, 40, 3], [3, PAD, 9, 9]]))
    assert documents.groups == [(1, 1), (3, 2)]
    assert documents.index.tolist() == [4, 1, 3, 0, 2, 6, 7]


def test_pack_is_the_inverse_of_unpack():
    documents, x = Documents.of(DOC), torch.randn(1, 2, 11, 4)
    parts = documents.unpack(x)
    assert [tuple(part.shape) for part in parts] == [(1, 2, 1, 4), (2, 2, 2, 4), (2, 2, 3, 4)]
    assert torch.equal(parts[2][1], x[0, :, 8:])
    assert torch.equal(documents.pack(parts), x)


def test_attention_is_that_of_rows_with_a_mask():
    """Values and gradients."""
    torch.manual_seed(0)
    rows = torch.randn(3, 3, 2, 7, 4, requires_grad=True)
    documents = Documents.of(DOC)
    one_row = rows.transpose(2, 3).flatten(1, 2)[:, documents.index].transpose(1, 2)
    found = attend(*one_row[:, None], documents)[0].transpose(0, 1)
    masked = attend(*rows, document_mask(DOC).unsqueeze(1)).transpose(1, 2).flatten(0, 1)[documents.index]
    plain = scaled_dot_product_attention(*rows[:, :1, :, 3:5], is_causal=True)[0].transpose(0, 1)
    torch.testing.assert_close(found, masked, atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1:3], plain, atol=1e-6, rtol=0)
    weight = torch.randn_like(found)
    gradients = [torch.autograd.grad((x * weight).sum(), rows, retain_graph=True)[0] for x in (found, masked)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_batch_of_empty_slots_has_no_document_to_attend_in(rows):
    documents = Documents.of(torch.full((rows, 5), PAD))
    nothing = torch.randn(1, 2, 0, 4, requires_grad=True)
    found = attend(nothing, nothing, nothing, documents)
    assert found.shape == (1, 2, 0, 4)
    assert torch.autograd.grad(found.sum(), nothing)[0].shape == nothing.shape
