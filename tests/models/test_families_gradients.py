"""Promises that every model family keeps of its gradients, memory and precision."""

from dataclasses import replace

import pytest
import torch
from families import FAMILIES, QUANTS, build, close, config, fresh, sampling
from synthetic import pack

from lcm.batch import PAD
from lcm.models import build_model

every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_after_the_first_step_every_parameter_has_a_gradient(family):
    """After one step from the start, every parameter has a gradient above 1e-6 of the largest.

    Except the biases of keys that no rotation turns: they add the same number to all scores of a softmax.
    """
    learned = family in ("one_tower", *QUANTS)
    model = fresh(family, **({"max_positions": 6} if learned else {})).train()
    batch = pack([[6, 2]] * 8, slots=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.loss(batch).per_target.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    model.loss(batch).per_target.sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    least = 1e-6 * max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        if name.endswith("cross.kv.bias"):
            keys, gradient = gradient.chunk(2)
            assert keys.abs().max().item() < least, name
        elif learned and name.endswith("qkv.bias"):
            queries, keys, gradient = gradient.chunk(3)
            assert queries.abs().max().item() > least, name
            assert keys.abs().max().item() < least, name
        assert gradient.abs().max().item() > least, name


@every_family
def test_a_batch_without_targets_gives_zero_gradients(family):
    model, batch = build(family).train(), pack([[], []], slots=8)
    loss = model.loss(batch)
    assert loss.per_target.shape == (0,)
    loss.per_target.sum().backward()
    assert all(not p.grad.any() and p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_family
def test_recomputing_activations_changes_neither_loss_nor_gradients(family):
    """With dropout, which is replayed."""
    found = []
    for recompute in (False, True):
        model, batch = build(family, dropout=0.3).train(), pack([[4, 2], [5]], slots=6)
        parts = model.stacks()
        assert parts
        for part in parts:
            part.recompute = recompute
        calls = []
        for part in parts:
            part.blocks[0].feed_forward.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(3)
        losses = model.loss(batch).per_target
        losses.sum().backward()
        found.append((losses, {name: p.grad for name, p in model.named_parameters()}, len(calls)))
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        close(found[1][1][name], gradient)
    assert found[1][2] == 2 * found[0][2]
    assert not torch.equal(found[0][0], build(family).train().loss(batch).per_target)


@every_family
def test_a_model_built_on_meta_and_loaded_is_the_same(family):
    model, batch = build(family), pack([[4, 2], [5]], slots=6)
    with torch.device("meta"):
        empty = build_model(config(family))
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(model.state_dict())
    assert torch.equal(filled.eval().loss(batch).per_target, model.loss(batch).per_target)
    assert torch.equal(filled.predict(batch, sampling(family)), model.predict(batch, sampling(family)))


@every_family
def test_shifting_data_and_normalizer_shifts_predictions(family):
    model, batch = build(family), pack([[4, 3]], slots=8)
    before, loss = model.predict(batch, sampling(family)), model.loss(batch).per_target
    model.normalizer.location += 5
    shifted = replace(batch, emb=batch.emb + 5)
    after = model.predict(shifted, sampling(family))
    predicted = (batch.doc != PAD) & ((batch.pos > 0) | model.predicts_first)
    close(after[predicted], before[predicted] + 5, 1e-4)
    close(model.loss(shifted).per_target, loss, 1e-4)


@every_family
def test_half_precision_data_is_normalized_in_fp32_and_losses_are_fp32(family):
    model, batch = build(family), pack([[4, 3]], slots=8)
    half = replace(batch, emb=batch.emb.half())
    single = replace(batch, emb=batch.emb.half().float())
    assert torch.equal(model.loss(half).per_target, model.loss(single).per_target)
    expected = model.loss(single).per_target
    with torch.autocast("cpu", torch.bfloat16):
        found = model.loss(half).per_target
    assert found.dtype == torch.float32
    close(found, expected, 0.05)
