"""Generation reads what it needs, in the order that is quickest, and the concepts are the same."""

import torch
from families import build, generate, sampling

from lcm.few_rows import can_pack
from lcm.transformer import Cache, Transformer


def transformer():
    torch.manual_seed(0)
    return Transformer(32, 4, 2, 0.0).eval()


def test_nothing_beyond_the_longest_row_is_read():
    model, x = transformer(), torch.randn(2, 4, 32)
    with torch.no_grad():
        _, cache = model.extend(x, model.empty_cache(2, 9), torch.tensor([2, 4]))
        wanted, _ = model.extend(x[:, :1], Cache([layer.grown(9) for layer in cache.layers], cache.lengths))
        for layer in cache.layers:
            layer.keys[:, :, 5:] = layer.values[:, :, 5:] = torch.nan
        found, _ = model.extend(x[:, :1], cache)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_generated_concepts_do_not_depend_on_how_weights_lie(monkeypatch):
    model = build("two_tower")
    prompts = [torch.randn(3, model.dim), torch.randn(5, model.dim)]
    assert can_pack(), "torch's builds for Linux have oneDNN"
    quick = generate(model, prompts, 4, sampling("two_tower"))
    monkeypatch.setattr("lcm.few_rows.can_pack", lambda: False)
    torch.testing.assert_close(quick, generate(model, prompts, 4, sampling("two_tower")), rtol=1e-4, atol=1e-5)
