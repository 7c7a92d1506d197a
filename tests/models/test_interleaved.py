"""Noisy concepts beside clean ones: against one long sequence with a mask, and the ways in that agree."""

import pytest
import torch
from families import close, randomize
from torch.nn.functional import pad

from lcm.batch import PAD
from lcm.config import OneTowerConfig
from lcm.errors import UserError
from lcm.models.interleaved import Interleaved, NoisySlots
from lcm.models.transformer import Block

D, WIDTH, HEADS, STEP = 6, 16, 2, 4
KINDS = pytest.mark.parametrize("positions", [8, 0], ids=["learned", "rotary"])


def build(positions=0, **changes):
    torch.manual_seed(0)
    settings = {"dim": D, "width": WIDTH, "heads": HEADS, "layers": 3, "dropout": 0.0, "step_width": STEP, **changes}
    where = {"positions": "learned", "max_positions": positions} if positions else {"positions": "rotary"}
    return randomize(Interleaved(OneTowerConfig(kind="one_tower", **where, **settings)).eval())


def row(lengths, slots):
    """(doc, pos) of one row."""
    doc = torch.tensor([number for number, length in enumerate(lengths) for _ in range(length)])
    pos = torch.cat([torch.arange(length) for length in lengths])
    room = (0, slots - len(doc))
    return pad(doc, room, value=PAD)[None], pad(pos, room)[None]


def nothing_dropped(doc):
    return torch.zeros_like(doc, dtype=torch.bool)


VISIBLE = torch.tensor(
    [
        [1, 0, 0, 0, 0, 0],  # noisy 0
        [0, 1, 0, 0, 0, 0],  # clean 0
        [0, 1, 1, 0, 0, 0],  # noisy 1
        [0, 1, 0, 1, 0, 0],  # clean 1
        [0, 1, 0, 1, 1, 0],  # noisy 2
        [0, 1, 0, 1, 0, 1],  # clean 2
    ]
)


@KINDS
def test_it_is_one_transformer_over_the_paper_s_sequence_and_its_mask(positions):
    """Noisy and clean in turn, both copies of a concept at the same position, through the plain blocks."""
    model, clean, noisy = build(positions), torch.randn(1, 3, WIDTH), torch.randn(3, WIDTH)
    doc, pos = row([3], 3)
    found = model(clean, noisy, doc, pos, torch.arange(3), nothing_dropped(doc))
    sequence = torch.stack([noisy, clean[0]], dim=1).flatten(0, 1)[None]
    rotation = model.rotation(pos.repeat_interleave(2, dim=1))
    for block in model.layers:
        sequence = Block.forward(block, sequence, rotation, VISIBLE.bool()[None, None])
    close(found, model.norm(sequence)[0, ::2])


@KINDS
def test_the_table_of_what_sees_what(positions):
    """Touch one clean or noisy concept, and list the noisy ones that change."""
    model, clean, noisy = build(positions), torch.randn(1, 3, WIDTH), torch.randn(3, WIDTH)
    doc, pos = row([3], 3)

    def run(clean, noisy):
        return model(clean, noisy, doc, pos, torch.arange(3), nothing_dropped(doc))

    expected = run(clean, noisy)
    for slot in range(3):
        for number, column in ((0, VISIBLE[::2, 2 * slot]), (1, VISIBLE[::2, 2 * slot + 1])):
            touched = [noisy.clone(), clean.clone()]
            touched[number].view(3, WIDTH)[slot] += 1
            changed = (run(touched[1], touched[0]) != expected).any(1)
            assert changed.tolist() == column.bool().tolist(), (slot, number)


def test_clean_concepts_are_a_causal_model_of_their_own_document():
    """Keys and values of the last layer depend on clean concepts up to their own."""
    model, clean = build(), torch.randn(1, 6, WIDTH)
    doc, pos = row([3, 2], 6)
    layers = model.clean_kv(doc, pos, clean)
    for slot, expected in {0: [0, 1, 2], 1: [1, 2], 2: [2], 3: [3, 4], 4: [4], 5: [5]}.items():
        touched = clean.clone()
        touched[0, slot] += 1
        for found, before in zip(model.clean_kv(doc, pos, touched)[1:], layers[1:], strict=True):
            changed = (found.keys != before.keys).any(-1).any(1)[0] | (found.values != before.values).any(-1).any(1)[0]
            assert changed.nonzero().flatten().tolist() == expected, slot


@KINDS
def test_packed_documents_give_what_each_gives_alone(positions):
    """States of two rows against those of each document by itself."""
    model, clean = build(positions), torch.randn(2, 6, WIDTH)
    rows = [row([3, 2], 6), row([6], 6)]
    doc, pos = (torch.cat(parts) for parts in zip(*rows, strict=True))
    index = torch.tensor([1, 4, 6, 11])
    noisy = torch.randn(4, WIDTH)
    found = model(clean, noisy, doc, pos, index, nothing_dropped(doc))
    for n, (r, start, slot) in enumerate([(0, 0, 1), (0, 3, 1), (1, 0, 0), (1, 0, 5)]):
        alone_doc, alone_pos = row([slot + 1], slot + 1)
        part = clean[r : r + 1, start : start + slot + 1]
        no = nothing_dropped(alone_doc)
        alone = model(part, noisy[n : n + 1], alone_doc, alone_pos, torch.tensor([slot]), no)
        close(found[n : n + 1], alone)


@KINDS
def test_masked_rows_equal_attention_document_by_document(positions):
    """The dense form, for a GPU and a compiler; values and gradients, with empty slots and dropped contexts."""
    model, clean, index = build(positions), torch.randn(3, 6, WIDTH), torch.tensor([1, 2, 5, 8, 12, 14])
    rows = [row([3, 3], 6), row([1, 3], 6), row([5], 6)]
    doc, pos = (torch.cat(parts) for parts in zip(*rows, strict=True))
    dropped, noisy = torch.rand(3, 6) < 0.4, torch.randn(6, WIDTH)
    assert dropped.flatten()[index].unique().tolist() == [False, True]
    found = []
    for dense_mask in (False, True):
        model.dense_mask = dense_mask
        model.zero_grad()
        state = model(clean, noisy, doc, pos, index, dropped)
        state.square().sum().backward()
        found.append([state, *(p.grad for p in model.blocks.parameters() if p.grad is not None)])
    for apart, together in zip(*found, strict=True):
        close(apart, together)


def test_a_concept_whose_context_is_dropped_sees_itself_alone():
    model, clean, noisy = build(8), torch.randn(1, 4, WIDTH), torch.randn(4, WIDTH)
    doc, pos = row([4], 4)
    dropped = torch.tensor([[False, False, True, False]])
    found = model(clean, noisy, doc, pos, torch.arange(4), dropped)
    whole = model(clean, noisy, doc, pos, torch.arange(4), nothing_dropped(doc))
    alone = model(clean, noisy, torch.arange(4)[None], pos, torch.arange(4), nothing_dropped(doc))
    close(found[2], alone[2])
    close(found[[0, 1, 3]], whole[[0, 1, 3]])
    assert not torch.allclose(found[2], whole[2], atol=1e-3)


@KINDS
@torch.no_grad()
def test_a_cache_of_clean_concepts_gives_the_states_of_whole_rows(positions):
    """`forward`, `read` with `make`, and a cache that grows, ragged."""
    model, clean = build(positions), torch.randn(2, 5, WIDTH)
    doc, pos = (torch.cat(parts) for parts in zip(row([5], 5), row([5], 5), strict=True))
    noisy = torch.randn(2, WIDTH)
    index = torch.tensor([4, 5 + 3])
    expected = model(clean, noisy, doc, pos, index, nothing_dropped(doc))
    causal = torch.ones(5, 5, dtype=torch.bool).tril(-1).expand(2, 1, -1, -1)
    read = model.noisy_states(noisy, model.clean_kv(doc, pos, clean), NoisySlots(causal, model.rotation(pos), index))
    close(read, expected)
    cache = model.extend(clean[:, :3], model.empty_cache(2, 3), torch.tensor([3, 2]))
    second = torch.stack([clean[0, 3], clean[1, 2]])[:, None]
    cache = model.extend(second, cache, torch.tensor([1, 1]))
    assert cache.lengths.tolist() == [4, 3]
    seen = torch.arange(cache.layers[0].keys.shape[2]) < cache.lengths[:, None]
    slots = NoisySlots(seen[:, None, None], model.rotation(cache.lengths[:, None]))
    close(model.noisy_states(noisy, list(cache.layers), slots), expected)
    both = model.noisy_states(torch.cat([noisy, noisy]), list(cache.layers), slots, without=2)
    close(both[:2], expected)
    nothing = NoisySlots(torch.zeros_like(seen)[:, None, None], slots.rotation)
    close(both[2:], model.noisy_states(noisy, list(cache.layers), nothing))


def test_the_input_is_a_linear_layer_of_concept_and_step_and_the_position():
    """The step's columns of the matrix are multiplied once for all concepts."""
    model, x, embedded = build(8), torch.randn(3, D), torch.randn(3, STEP)
    pos = torch.tensor([0, 5, 7])
    whole = torch.cat([x, embedded], dim=1) @ model.pre.weight.T + model.pre.bias + model.positions.weight[pos]
    close(model.inputs(x, model.step_inputs(embedded), pos), whole)


def test_positions_are_either_learned_or_rotary():
    assert sum(p.numel() for p in build(8).positions.parameters()) == 8 * WIDTH
    learned, rotary = build(8), build(0)
    assert rotary.positions is None
    x = torch.randn(1, HEADS, 3, WIDTH // HEADS)
    pos = torch.tensor([[0, 1, 5]])
    assert torch.equal(learned.rotation(pos)(x), x)
    assert not torch.allclose(rotary.rotation(pos)(x)[:, :, 1:], x[:, :, 1:])


def test_a_document_longer_than_the_learned_positions_is_refused_with_the_way_out():
    model = build(8)
    x, step = torch.randn(2, D), torch.randn(2, WIDTH)
    model.check_positions(torch.tensor([0, 7]))
    assert model.inputs(x, step, torch.tensor([0, 7])).shape == (2, WIDTH)
    with pytest.raises(UserError, match=r"a document of 9 concepts: model.max_positions=8; .*positions=rotary"):
        model.check_positions(torch.tensor([0, 8]))
    build(0).check_positions(torch.tensor([0, 80_000]))
    assert build(0).inputs(x, step, torch.tensor([0, 80_000])).isfinite().all()


@pytest.mark.parametrize("part", ["attention", "feed_forward"])
def test_dropout_acts_on_the_output_of_each_part(part):
    """With the other part's last layer zeroed."""
    model, clean, noisy = build(dropout=0.5, layers=1), torch.randn(1, 3, WIDTH), torch.randn(3, WIDTH)
    doc, pos = row([3], 3)
    block = model.layers[0]
    silent = block.attention.out if part == "feed_forward" else block.feed_forward.out
    for parameter in silent.parameters():
        parameter.data.zero_()

    def run():
        return model(clean, noisy, doc, pos, torch.arange(3), nothing_dropped(doc))

    assert torch.equal(run(), run())
    model.train()
    assert not torch.equal(run(), run())


def test_dropout_acts_on_clean_concepts():
    """The first of two blocks drops out what clean concepts pass on: the last one's keys and values differ."""
    model, clean = build(dropout=0.5, layers=2).train(), torch.randn(1, 3, WIDTH)
    doc, pos = row([3], 3)
    first, second = (model.clean_kv(doc, pos, clean)[1].keys for _ in range(2))
    assert not torch.equal(first, second)


def test_with_learned_positions_the_bias_of_keys_changes_nothing():
    """Every score of a softmax grows by the same number: its gradient is zero, and that is no mistake."""
    model, clean, noisy = build(8), torch.randn(1, 4, WIDTH), torch.randn(4, WIDTH)
    doc, pos = row([4], 4)
    expected = model(clean, noisy, doc, pos, torch.arange(4), nothing_dropped(doc))
    for block in model.layers:
        block.attention.qkv.bias.data[WIDTH : 2 * WIDTH] += 1
    close(model(clean, noisy, doc, pos, torch.arange(4), nothing_dropped(doc)), expected, 1e-4)
