"""Weights laid out for few rows give the same numbers, and the same generated concepts."""

import pytest
import torch
from families import build, generate, sampling
from torch import nn

from lcm.few_rows import FewRows, can_pack, for_few_rows
from lcm.transformer import Cache, Transformer


def transformer():
    torch.manual_seed(0)
    return Transformer(32, 4, 2, 0.0).eval()


def read(model, x, cache):
    """The state after each concept, read one by one."""
    states = []
    for slot in range(x.shape[1]):
        state, cache = model.extend(x[:, slot : slot + 1], cache)
        states.append(state)
    return torch.cat(states, 1), cache


def test_a_copy_for_few_rows_gives_what_the_module_gives_and_leaves_it_alone():
    model, x = transformer(), torch.randn(3, 5, 32)
    copy = for_few_rows(model)
    assert can_pack(), "torch's builds for Linux have oneDNN"
    assert all(isinstance(block.attention.qkv, FewRows) for block in copy.blocks)
    assert all(isinstance(block.attention.qkv, nn.Linear) for block in model.blocks)
    assert copy.norm.weight is model.norm.weight, "parameters are shared"
    with torch.no_grad():
        plain, quick = (read(part, x, model.empty_cache(3, 2))[0] for part in (model, copy))
    torch.testing.assert_close(quick, plain, rtol=1e-5, atol=1e-6)


def test_where_nothing_can_be_laid_out_the_module_itself_is_used(monkeypatch):
    monkeypatch.setattr("lcm.few_rows.can_pack", lambda: False)
    model = transformer()
    assert for_few_rows(model) is model


def test_nothing_beyond_the_longest_row_is_read():
    model, x = transformer(), torch.randn(2, 4, 32)
    with torch.no_grad():
        _, cache = model.extend(x, model.empty_cache(2, 9), torch.tensor([2, 4]))
        wanted, _ = model.extend(x[:, :1], Cache([layer.grown(9) for layer in cache.layers], cache.lengths))
        for layer in cache.layers:
            layer.keys[:, :, 5:] = layer.values[:, :, 5:] = torch.nan
        found, _ = model.extend(x[:, :1], cache)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["base", "two_tower"])
def test_generated_concepts_do_not_depend_on_how_weights_lie(family, monkeypatch):
    model = build(family)
    prompts = [torch.randn(3, model.dim), torch.randn(5, model.dim)]
    quick = generate(model, prompts, 4, sampling(family))
    monkeypatch.setattr("lcm.few_rows.can_pack", lambda: False)
    torch.testing.assert_close(quick, generate(model, prompts, 4, sampling(family)), rtol=1e-4, atol=1e-5)
