"""A denoiser laid out for sampling says what the denoiser says: packed or not, in any company, in any precision."""

import pytest
import torch
from families import close, randomize

from lcm.models.denoiser import Denoiser, FastDenoiser, Memory, Norm, folded_scale
from lcm.models.layers import RMSNorm
from lcm.models.transformer import FastLinear, can_pack

D, WIDTH, HEADS = 6, 16, 2
TIMESTEPS = [90, 40, 7]


def build(layers=2):
    torch.manual_seed(0)
    denoiser = randomize(Denoiser(D, WIDTH, HEADS, layers, dropout=0.0)).eval()
    for block in denoiser.layers:  # a weight of one would hide where it is left out
        for norm in (block.self_norm, block.cross_norm, block.feed_forward_norm, denoiser.norm):
            torch.nn.init.normal_(norm.weight)
    return denoiser


def of_rows(denoiser, context, lengths):
    """Memory of rows with so many slots of context each."""
    seen = torch.arange(context.shape[1] + 1) <= torch.tensor(lengths)[:, None]
    return Memory(denoiser.project_kv(context), seen[:, None, None])


@pytest.fixture(params=[True, False], ids=["packed", "not packed"])
def packing(request, monkeypatch):
    """With oneDNN's order of weights, and as where torch has none."""
    assert can_pack(), "torch's builds for Linux have oneDNN"
    if not request.param:
        monkeypatch.setattr("lcm.models.transformer.can_pack", lambda: False)
    return request.param


def test_a_fast_linear_is_the_linear_layer(packing):
    """For any number of rows, also of a part of a larger tensor."""
    linear = torch.nn.Linear(24, 40)
    product = FastLinear.of(linear.weight, linear.bias)
    assert product.weight.is_mkldnn == packing
    for rows in (1, 3, 8, 70):
        x = torch.randn(2 * rows, 48)[::2, 24:]
        with torch.no_grad():
            close(product(x), linear(x))


def test_norm_times_its_folded_scale_is_rms_norm():
    """Vectors of any length: for those near zero, eps dominates."""
    norm = RMSNorm(16, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    for length in (0.0, 1e-3, 1.0, 1e3):
        x = length * torch.randn(5, 16)
        with torch.no_grad():
            close(Norm.of(norm)(x) * folded_scale(norm), norm(x))


@pytest.mark.parametrize("number", range(len(TIMESTEPS)))
def test_the_fast_denoiser_is_the_denoiser(packing, number):
    """At every timestep of a schedule, with and without context."""
    denoiser, x, context, lengths = build(), torch.randn(3, D), torch.randn(3, 4, WIDTH), [4, 0, 2]
    tables = denoiser.modulations(torch.tensor(TIMESTEPS))
    step = FastDenoiser.of(denoiser)
    by, memory = step.modulations(TIMESTEPS)[number], of_rows(denoiser, context, lengths)
    nothing = of_rows(denoiser, context, [0, 0, 0])
    both = step(x, by, memory, twice=True)
    with torch.no_grad():
        which = torch.full((3,), number)
        close(both[:3], denoiser(x, tables, which, memory))
        close(both[3:], denoiser(x, tables, which, nothing))
    close(step(x, by, memory), both[:3])
    assert not torch.allclose(both[:3], both[3:], atol=1e-3)


def test_concepts_at_some_slots_are_denoised_as_each_alone():
    """Some slots of two rows, as in teacher-forced prediction."""
    denoiser, x, context = build(), torch.randn(3, D), torch.randn(2, 4, WIDTH)
    mask = torch.ones(4, 5, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    memory, step = Memory(denoiser.project_kv(context), mask, torch.tensor([2, 4, 7])), FastDenoiser.of(denoiser)
    with torch.no_grad():
        expected = denoiser(x, denoiser.modulations(torch.tensor(TIMESTEPS)), torch.ones(3, dtype=torch.long), memory)
    close(step(x, step.modulations(TIMESTEPS)[1], memory, twice=True)[:3], expected)


def test_inputs_are_not_modified():
    denoiser, x, context = build(), torch.randn(2, D), torch.randn(2, 4, WIDTH)
    step, memory = FastDenoiser.of(denoiser), of_rows(denoiser, context, [4, 4])
    by = step.modulations(TIMESTEPS)[0]
    given = [t.clone() for t in (x, *by[0], *by[1], *(t for kept in memory.layers for t in (kept.keys, kept.values)))]
    step(x, by, memory, twice=True)
    after = (x, *by[0], *by[1], *(t for kept in memory.layers for t in (kept.keys, kept.values)))
    assert all(torch.equal(a, b) for a, b in zip(given, after, strict=True))


def test_a_row_s_result_does_not_depend_on_its_neighbours(packing):
    """Touch a concept and a row of context: the other rows stay what they are, to the last bit."""
    denoiser, x, context = build(), torch.randn(3, D), torch.randn(3, 4, WIDTH)
    step = FastDenoiser.of(denoiser)
    by = step.modulations(TIMESTEPS)[1]
    expected = step(x, by, of_rows(denoiser, context, [4, 1, 2]), twice=True)
    x[1] += 1
    context[1] += 1
    changed = (step(x, by, of_rows(denoiser, context, [4, 1, 2]), twice=True) != expected).any(1)
    assert changed.tolist() == [False, True, False] * 2


def test_modulations_are_computed_once_a_schedule():
    step = FastDenoiser.of(build())
    first = step.modulations([9, 5])
    assert step.modulations([9, 5]) is first
    assert [len(step.modulations([9, 5, 2])), len(first)] == [3, 2]


def test_under_autocast_weights_are_half_precision_and_outputs_fp32():
    """Weights are rounded once, when they are laid out; outside of autocast they stay what they are then."""
    denoiser, x, context = build(), torch.randn(2, D), torch.randn(2, 4, WIDTH)
    memory = of_rows(denoiser, context, [4, 2])
    exact = FastDenoiser.of(denoiser)
    expected = exact(x, exact.modulations(TIMESTEPS)[1], memory, twice=True)
    with torch.autocast("cpu", torch.bfloat16):
        half = FastDenoiser.of(denoiser)
        found = half(x, half.modulations(TIMESTEPS)[1], memory, twice=True)
        late = exact(x, exact.modulations(TIMESTEPS)[1], memory, twice=True)
    assert {product.weight.dtype for product in (half.pre, half.post, half.blocks[0].self_attn)} == {torch.bfloat16}
    assert found.dtype == late.dtype == torch.float32
    for rounded in (found, late, half(x, half.modulations(TIMESTEPS)[1], memory, twice=True)):
        assert (rounded - expected).abs().max() < 0.05 * expected.abs().max()
