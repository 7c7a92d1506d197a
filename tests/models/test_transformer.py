"""The blocks against plain formulas, the mask against perturbation, the cache against the uncached pass."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import softmax

from lcm.batch import PAD
from lcm.models.layers import Attention, Dropout, RMSNorm, Rotation, SwiGLU, feed_forward_width
from lcm.models.transformer import Block, Transformer

WIDTH, HEADS, SLOTS = 16, 2, 7


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return Transformer(WIDTH, HEADS, layers=3, dropout=0.0).eval()


def one_document(rows=1, slots=SLOTS):
    return torch.zeros(rows, slots, dtype=torch.long), torch.arange(slots).expand(rows, slots)


def test_rms_norm_is_its_formula_in_fp32():
    norm = RMSNorm(3)
    norm.weight.data = torch.tensor([1.0, 2.0, -1.0])
    x = torch.tensor([[3.0, 4.0, 0.0]])
    rms = math.sqrt(25 / 3 + 1e-5)
    assert norm(x).tolist() == [pytest.approx([3 / rms, 8 / rms, 0.0], rel=1e-6)]
    assert not norm(torch.zeros(1, 3)).any()
    tiny = torch.full((1, 3), 1e-3)
    assert norm(tiny)[0, 0].item() == pytest.approx(1e-3 / math.sqrt(1e-6 + 1e-5), rel=1e-5)
    assert norm(x.bfloat16()).dtype == torch.float32


def test_swiglu_is_its_formula():
    torch.manual_seed(0)
    network = SwiGLU(4)
    x = torch.randn(1, 1, 4)
    weight, bias = network.gate_and_inner.weight, network.gate_and_inner.bias
    hidden = feed_forward_width(4)
    gate, inner = (weight[:hidden] @ x[0, 0] + bias[:hidden]), (weight[hidden:] @ x[0, 0] + bias[hidden:])
    expected = network.out.weight @ (gate / (1 + torch.exp(-gate)) * inner) + network.out.bias
    torch.testing.assert_close(network(x)[0, 0], expected)


@pytest.mark.parametrize(("width", "hidden"), [(2048, 5632), (4096, 11008), (4, 256), (320, 1024)])
def test_feed_forward_width(width, hidden):
    assert feed_forward_width(width) == hidden


def test_rotation_turns_interleaved_pairs_by_their_angle():
    """In complex numbers, pair i of position p is multiplied by exp(i · p · 10000^(-2i/K))."""
    torch.manual_seed(0)
    x = torch.randn(1, 1, 3, 6)
    pos = torch.tensor([[0, 5, 90]])
    turned = Rotation.of(pos, 6)(x)
    for slot, p in enumerate(pos[0].tolist()):
        for i in range(3):
            before = complex(x[0, 0, slot, 2 * i], x[0, 0, slot, 2 * i + 1])
            angle = p * 10_000 ** (-2 * i / 6)
            after = before * complex(math.cos(angle), math.sin(angle))
            assert turned[0, 0, slot, 2 * i : 2 * i + 2].tolist() == pytest.approx([after.real, after.imag], abs=1e-5)


def test_attention_is_its_formula():
    """One head at a time, in plain loops."""
    torch.manual_seed(0)
    attention = Attention(WIDTH, HEADS)
    nn.init.normal_(attention.qkv.bias)
    x, head = torch.randn(1, 4, WIDTH), WIDTH // HEADS
    pos = torch.arange(4)[None]
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    q, k, v = (attention.qkv.weight @ x[0].T).T.add(attention.qkv.bias).split(WIDTH, dim=-1)
    heads = []
    for h in range(HEADS):
        part = slice(h * head, (h + 1) * head)
        turn = Rotation.of(pos, head)
        q_h, k_h = turn(q[None, None, :, part])[0, 0], turn(k[None, None, :, part])[0, 0]
        scores = (q_h @ k_h.T / math.sqrt(head)).masked_fill(~mask, -math.inf)
        heads.append(softmax(scores, dim=-1) @ v[:, part])
    expected = torch.cat(heads, dim=-1) @ attention.out.weight.T + attention.out.bias
    actual = attention(x, Rotation.of(pos, head), mask[None, None])[0]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_attention_depends_on_distances_alone(transformer):
    """Rotary positions: a document that starts at position 100 reads the same."""
    doc, pos = one_document()
    x = torch.randn(1, SLOTS, WIDTH)
    torch.testing.assert_close(transformer(x, doc, pos), transformer(x, doc, pos + 100), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(transformer(x, doc, pos), transformer(x, doc, 2 * pos), atol=1e-3)


def test_a_block_adds_both_networks_to_what_it_reads():
    """With both outputs zeroed it is the identity, and dropout falls on both outputs."""
    doc, pos = one_document()
    rotation, mask = Rotation.of(pos, WIDTH // HEADS), torch.ones(1, 1, SLOTS, SLOTS, dtype=torch.bool).tril()
    x = torch.randn(1, SLOTS, WIDTH)
    block = Block(WIDTH, HEADS, dropout=0.5)
    for silent, other in [("attention", "feed_forward"), ("feed_forward", "attention")]:
        for name, value in [(silent, 0.0), (other, 1.0)]:
            nn.init.zeros_(getattr(block, name).out.weight)
            nn.init.constant_(getattr(block, name).out.bias, value)
        added = (block.train()(x, rotation, mask) - x).round(decimals=4)
        assert set(added.flatten().tolist()) == {0.0, 2.0}, f"dropout on the output of {other} alone"
        torch.testing.assert_close(block.eval()(x, rotation, mask), x + 1)
    assert len(doc) == 1


def test_a_state_sees_its_document_up_to_its_slot(transformer):
    """Touch one slot at a time, and list which states change."""
    doc = torch.tensor([[0, 0, 0, 1, 1, 1, PAD]])
    pos = torch.tensor([[0, 1, 2, 0, 1, 2, 0]])
    x = torch.randn(1, SLOTS, WIDTH)
    before = transformer(x, doc, pos)
    sees = {0: [0, 1, 2], 1: [1, 2], 2: [2], 3: [3, 4, 5], 4: [4, 5], 5: [5], 6: []}
    for slot, expected in sees.items():
        touched = x.clone()
        touched[0, slot] += 1
        changed = (transformer(touched, doc, pos) != before).any(-1)[0]
        assert changed.nonzero().flatten().tolist() == expected


def test_masked_rows_equal_attention_document_by_document(transformer):
    """Masked rows are for GPUs and compilers; states of empty slots may be anything finite."""
    torch.manual_seed(0)
    doc = torch.tensor([[0, 0, 0, 1, 1, 1, PAD], [0, 1, 1, 2, 2, 2, 2], [PAD] * 7])
    pos = torch.tensor([[0, 1, 2, 0, 1, 2, 0], [0, 0, 1, 0, 1, 2, 3], [0] * 7])
    x = torch.randn(3, SLOTS, WIDTH)
    apart = transformer(x, doc, pos)
    transformer.dense_mask = True
    rows = transformer(x, doc, pos)
    torch.testing.assert_close(apart[doc != PAD], rows[doc != PAD], atol=1e-5, rtol=0)
    assert not apart[doc == PAD].any()
    assert rows.isfinite().all()


def test_dropout_on_a_cpu_is_torch_s():
    """Equal rate and scale, and equal masks from equal seeds."""
    dropout, x = Dropout(0.3), torch.ones(401, 999)
    torch.manual_seed(3)
    found = dropout(x)
    lost = found == 0
    assert lost.float().mean().item() == pytest.approx(0.3, abs=4e-3)
    assert lost.float().mean(0).std().item() == pytest.approx(math.sqrt(0.3 * 0.7 / 401), rel=0.1)
    assert found[~lost].unique().tolist() == [pytest.approx(1 / 0.7, rel=1e-4)]
    torch.manual_seed(3)
    assert torch.equal(dropout(x), found)
    assert not torch.equal(dropout(x), found)
    assert torch.equal(Dropout(0.0)(x), dropout.eval()(x))
    assert torch.equal(dropout(x), x)
    wet = x.clone().requires_grad_()
    torch.manual_seed(3)
    dropout.train()(wet).sum().backward()
    assert torch.equal(wet.grad, found)
    assert dropout(torch.ones(3, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_very_high_dropout_leaves_finite_numbers():
    assert Dropout(1 - 1e-9)(torch.ones(64, 64)).isfinite().all()


def test_cached_states_equal_uncached_ones_for_ragged_rows(transformer):
    """Prompts of 3, 1 and 5 slots in one call, then 4 slots one by one: rows never see each other's padding."""
    lengths, steps = [3, 1, 5], 4
    torch.manual_seed(1)
    documents = [torch.randn(length + steps, WIDTH) for length in lengths]
    prompts = nn.utils.rnn.pad_sequence([d[:n] for d, n in zip(documents, lengths, strict=True)], batch_first=True)
    with torch.no_grad():
        states, cache = transformer.extend(prompts, transformer.empty_cache(3, 2), torch.tensor(lengths))
        found = [[*states[row, :n]] for row, n in enumerate(lengths)]
        for step in range(steps):
            x = torch.stack([d[n + step] for d, n in zip(documents, lengths, strict=True)])
            states, cache = transformer.extend(x[:, None], cache)
            for row in range(3):
                found[row].append(states[row, 0])
        for row, document in enumerate(documents):
            expected = transformer(document[None], *one_document(slots=len(document)))[0]
            torch.testing.assert_close(torch.stack(found[row]), expected, atol=1e-5, rtol=1e-5)
    assert cache.lengths.tolist() == [7, 5, 9]


def test_recomputed_blocks_give_the_same_gradients_with_dropout():
    torch.manual_seed(0)
    model = Transformer(WIDTH, HEADS, layers=2, dropout=0.5)
    x, calls = torch.randn(1, SLOTS, WIDTH), []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    gradients = []
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        torch.manual_seed(5)
        model(x, *one_document()).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], atol=0, rtol=0)
    assert len(calls) == 3, "forward once without, and twice with recomputation"


def test_initial_weights_follow_the_reference():
    """q, k, v: Xavier with gain 1/√2; out: Xavier; feed-forward: uniform ±1/√(inputs), biases too."""
    torch.manual_seed(0)
    width = 256
    block = Block(width, 4, 0.0)
    for weight in block.attention.qkv.weight.split(width):
        bound = math.sqrt(6 / (2 * width)) / math.sqrt(2)
        assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert block.attention.out.weight.abs().max().item() == pytest.approx(math.sqrt(6 / (2 * width)), rel=1e-3)
    assert not block.attention.qkv.bias.any()
    assert not block.attention.out.bias.any()
    for linear in (block.feed_forward.gate_and_inner, block.feed_forward.out):
        bound = 1 / math.sqrt(linear.in_features)
        assert linear.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
        assert linear.bias.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)


def test_the_residual_stream_stays_fp32_under_autocast(transformer):
    """Though what enters is the bf16 product of the layer before; with the cache too."""
    seen = []
    transformer.blocks[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    transformer.blocks[1].attention.qkv.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    x = torch.randn(1, SLOTS, WIDTH).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        state = transformer(x, *one_document())
        cached, cache = transformer.extend(x, transformer.empty_cache(1, 2))
    assert seen == [torch.float32, torch.bfloat16] * 2
    assert state.dtype == cached.dtype == torch.float32
    assert cache.layers[0].keys.dtype == torch.bfloat16, "half the memory"
    torch.testing.assert_close(cached, state, atol=0.05, rtol=0.05)
