"""The denoiser: its embedding of time, its modulation by hand, what it may see, and the ways to ask it that agree."""

import math

import pytest
import torch
from families import close, randomize
from torch.nn.functional import silu

from lcm.models.denoiser import Denoiser, DenoiserBlock, Memory
from lcm.models.layers import TimestepEmbedding, timestep_sinusoids

D, WIDTH, HEADS = 6, 16, 2


def build(layers=2, random=True):
    torch.manual_seed(0)
    denoiser = Denoiser(D, WIDTH, HEADS, layers, dropout=0.0).eval()
    return randomize(denoiser) if random else denoiser


def before(slots):
    """The context of one document of so many slots: the zero vector, and the slots before each."""
    return torch.ones(slots, slots + 1, dtype=torch.bool).tril()[None, None]


def remembered(denoiser, context, mask, index=None):
    return Memory(denoiser.project_kv(context), mask, index)


def all_at(number):
    """Four concepts at one timestep of a table."""
    return torch.full((4,), number)


def test_the_sinusoids_of_a_timestep():
    """Cosines, then sines, of 128 frequencies from 1 down to 1/10000."""
    one, last, none = timestep_sinusoids(torch.tensor([1, 99, 0]))
    for index, value in {0: 0.540302, 1: 0.597375, 128: 0.841471, 129: 0.801962, 255: 0.000107461}.items():
        assert one[index].item() == pytest.approx(value, abs=1e-6), index
    for index, value in {0: 0.0398209, 1: -0.522986, 128: -0.999207}.items():
        assert last[index].item() == pytest.approx(value, abs=1e-6), index
    assert none.tolist() == [1.0] * 128 + [0.0] * 128


def test_time_is_embedded_by_two_linear_layers():
    torch.manual_seed(0)
    time, t = TimestepEmbedding(WIDTH, std=0.02), torch.tensor([3, 50])
    assert time.hidden.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not time.hidden.bias.any()
    assert not time.out.bias.any()
    randomize(time)
    hidden = timestep_sinusoids(t) @ time.hidden.weight.T + time.hidden.bias
    close(time(t), (hidden * hidden.sigmoid()) @ time.out.weight.T + time.out.bias)


def test_cross_attention_starts_from_glorot_s_weights():
    """Uniform in ±gain · √(6 / (ins + outs)), the gain √½ for queries, keys and values, and 1 for the output."""
    torch.manual_seed(0)
    width = 64
    cross = DenoiserBlock(width, HEADS, dropout=0.0).cross
    for linear, gain in ((cross.q, math.sqrt(0.5)), (cross.kv, math.sqrt(0.5)), (cross.out, 1.0)):
        bound = gain * math.sqrt(6 / sum(linear.weight.shape))
        assert linear.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert linear.weight.abs().max().item() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert not linear.bias.any()


def test_at_the_start_neither_time_nor_context_matter():
    """All gates are closed: what comes in goes through the first layer, the norm, and the last."""
    denoiser, x, t = build(random=False), torch.randn(4, D), torch.tensor([0, 99])
    tables = denoiser.modulations(t)
    assert [table.shape for table in tables] == [(2, 9 * WIDTH)] * 2
    found = denoiser(x, tables, all_at(1), remembered(denoiser, torch.randn(1, 4, WIDTH), before(4), torch.arange(4)))
    assert torch.equal(found, denoiser.post(denoiser.norm(denoiser.pre(x))))


def test_each_sub_layer_is_shifted_scaled_and_gated_by_the_timestep():
    """One layer by hand, three timesteps; without context, cross-attention is the value of the zero vector."""
    denoiser, x, t = build(1), torch.randn(3, D), torch.tensor([7, 30, 99])
    block = denoiser.layers[0]
    numbers = block.modulator(silu(denoiser.time(t))).view(3, 3, 3, WIDTH)  # concept, part, (shift, scale, gate)
    zero = block.cross.out(block.cross.kv.bias[WIDTH:])
    parts = [
        (block.self_norm, lambda y: block.self_out(block.self_value(y))),
        (block.cross_norm, lambda y: zero),
        (block.feed_forward_norm, block.feed_forward),
    ]
    state = denoiser.pre(x)
    for number, (norm, part) in enumerate(parts):
        shift, scale, gate = numbers[:, number].unbind(1)
        state = state + gate * part(norm(state) * (1 + scale) + shift)
    nothing = Memory(denoiser.project_kv(torch.zeros(3, 0, WIDTH)), None)
    found = denoiser(x, denoiser.modulations(t), torch.arange(3), nothing)
    close(found, denoiser.post(denoiser.norm(state)))


def test_attention_to_the_context_by_hand():
    """Softmax over the zero vector and the slots before, of queries with keys, head by head."""
    torch.manual_seed(0)
    block = randomize(DenoiserBlock(WIDTH, HEADS, 0.0))
    cross, x, context = block.cross, torch.randn(4, WIDTH), torch.randn(1, 4, WIDTH)
    denoiser = build(1)
    denoiser.blocks[0] = block
    layers = denoiser.project_kv(context)
    found = cross(x, Memory(layers, before(4), torch.arange(4)), layers[0])
    seen = torch.cat([torch.zeros(1, WIDTH), context[0]]) @ cross.kv.weight.T + cross.kv.bias
    keys, values = (half.view(5, HEADS, -1) for half in seen.chunk(2, dim=1))
    queries, rows = cross.q(x).view(4, HEADS, -1), []
    for i in range(4):
        scores = torch.einsum("hk,lhk->hl", queries[i], keys[: i + 1]) / math.sqrt(WIDTH // HEADS)
        rows.append(torch.einsum("hl,lhk->hk", scores.softmax(1), values[: i + 1]).flatten())
    close(found, cross.out(torch.stack(rows)))


def test_a_concept_sees_the_slots_before_its_own_and_no_other_concept():
    """Touch one slot of the context, or one noisy concept, and list what changes; at random parameters."""
    denoiser, x, context = build(), torch.randn(4, D), torch.randn(1, 4, WIDTH)
    tables = denoiser.modulations(torch.tensor([40]))

    def run(x, context):
        return denoiser(x, tables, all_at(0), remembered(denoiser, context, before(4), torch.arange(4)))

    expected = run(x, context)
    for slot, after in {0: [1, 2, 3], 1: [2, 3], 2: [3], 3: []}.items():
        touched = context.clone()
        touched[0, slot] += 1
        assert (run(x, touched) != expected).any(1).nonzero().flatten().tolist() == after
        noisy = x.clone()
        noisy[slot] += 1
        assert (run(noisy, context) != expected).any(1).nonzero().flatten().tolist() == [slot]


def test_concepts_at_some_slots_are_denoised_as_each_alone():
    """Some slots of two rows, each at a timestep of its own, against one concept a row."""
    denoiser, x, context = build(), torch.randn(3, D), torch.randn(2, 4, WIDTH)
    tables, index, which = denoiser.modulations(torch.tensor([5, 60])), torch.tensor([2, 4, 7]), torch.tensor([1, 0, 1])
    mask = before(4).expand(2, -1, -1, -1)
    together = denoiser(x, tables, which, remembered(denoiser, context, mask, index))
    for n, (row, slot) in enumerate([(0, 2), (1, 0), (1, 3)]):
        memory = remembered(denoiser, context[row : row + 1], mask[:1, :, slot : slot + 1])
        close(together[n : n + 1], denoiser(x[n : n + 1], tables, which[n : n + 1], memory))


def test_the_zero_vector_s_key_and_value_are_the_biases():
    denoiser = build()
    layers = denoiser.project_kv(torch.zeros(2, 3, WIDTH))
    for layer in layers:
        assert layer.keys.shape == layer.values.shape == (2, HEADS, 4, WIDTH // HEADS)
        for entries in (layer.keys, layer.values):
            close(entries, entries[:, :, :1].expand_as(entries))


def test_the_bias_of_keys_changes_nothing():
    denoiser, x, context = build(), torch.randn(4, D), torch.randn(1, 4, WIDTH)
    tables = denoiser.modulations(torch.tensor([40]))
    expected = denoiser(x, tables, all_at(0), remembered(denoiser, context, before(4), torch.arange(4)))
    for block in denoiser.layers:
        block.cross.kv.bias.data[:WIDTH] += 1
    close(denoiser(x, tables, all_at(0), remembered(denoiser, context, before(4), torch.arange(4))), expected, 1e-4)


@pytest.mark.parametrize("part", ["self-attention", "cross-attention", "feed-forward"])
def test_dropout_acts_on_the_output_of_each_part(part):
    """With the gate of this part alone open."""
    torch.manual_seed(0)
    denoiser = Denoiser(D, WIDTH, HEADS, 1, dropout=0.5).train()
    gates = denoiser.layers[0].modulator.bias.data.view(3, 3, WIDTH)[:, 2]
    gates[["self-attention", "cross-attention", "feed-forward"].index(part)] = 1
    x, context = torch.randn(4, D), torch.randn(1, 4, WIDTH)

    def run():
        tables = denoiser.modulations(torch.tensor([40]))
        return denoiser(x, tables, all_at(0), remembered(denoiser, context, before(4), torch.arange(4)))

    assert not torch.equal(run(), run())
    denoiser.eval()
    assert torch.equal(run(), run())
