"""Generation reads what it needs, in the order that is quickest, and the concepts are the same."""

import pytest
import torch
from families import DIFFUSING, FAMILIES, build, generate, sampling
from torch import nn

from lcm.models.layers import KVCache
from lcm.models.transformer import PackedLinear, Transformer, can_pack


def transformer():
    torch.manual_seed(0)
    return Transformer(32, 4, 2, 0.0).eval()


def test_nothing_beyond_the_longest_row_is_read():
    model, x = transformer(), torch.randn(2, 4, 32)
    with torch.no_grad():
        _, cache = model.extend(x, model.empty_cache(2, 9), torch.tensor([2, 4]))
        wanted, _ = model.extend(x[:, :1], KVCache([layer.grown(9) for layer in cache.layers], cache.lengths))
        for layer in cache.layers:
            layer.keys[:, :, 5:] = layer.values[:, :, 5:] = torch.nan
        found, _ = model.extend(x[:, :1], cache)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(("count", "changes"), [(4, {"guidance": 1.0}), (2, {})])
@pytest.mark.parametrize("family", FAMILIES)
def test_generated_concepts_do_not_depend_on_the_layout_of_weights(family, count, changes, monkeypatch):
    """Fewer with guidance, which in models without training makes three times as much of a difference a concept."""
    model = build(family)
    prompts = [torch.randn(3, model.dim), torch.randn(5, model.dim)]
    assert can_pack(), "torch's builds for Linux have oneDNN"
    options = sampling(family, **(changes if family in DIFFUSING else {}))
    written = generate(model, prompts, 4 - count, options) if count < 4 else prompts[0].new_empty(2, 0, model.dim)
    for done in range(4 - count + 1):  # also after the same concepts, so that all four are compared
        begun = [torch.cat([prompt, more[:done]]) for prompt, more in zip(prompts, written, strict=True)]
        quick = generate(model, begun, count, options)
        with monkeypatch.context() as patch:
            patch.setattr("lcm.models.transformer.can_pack", lambda: False)
            plain = generate(model, begun, count, options)
        torch.testing.assert_close(quick, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_context_packs_weights_and_leaves_the_model_unchanged(family):
    model = build(family)
    context = model.prefill([torch.randn(3, model.dim)])
    quick = context.contextualizer if family == "two_tower" else context.model
    assert {type(part) for part in quick.modules() if isinstance(part, nn.Linear)} == {PackedLinear}
    assert {type(part) for part in model.modules() if isinstance(part, nn.Linear)} == {nn.Linear}
    shared = dict(model.named_parameters())
    assert all(any(p is mine for mine in shared.values()) for p in quick.parameters()), "no second model"
