"""Promises that every model family keeps in training: what may see what, and what a loss depends on."""

from dataclasses import replace

import pytest
import torch
from families import (
    DIFFUSING,
    FAMILIES,
    GENERATIVE,
    QUANTS,
    build,
    close,
    decide,
    last_layer,
    same_noise,
    sampling,
    some_draws,
)
from synthetic import DIM, pack, with_room
from torch.nn.functional import pad

from lcm.batch import PAD, Batch
from lcm.models.diffusion import Noising

every_family = pytest.mark.parametrize("family", FAMILIES)
generative = pytest.mark.parametrize("family", GENERATIVE)


def slots_of(values, batch, predicts_first):
    """One number a target, spread over the slots."""
    spread = torch.full(batch.doc.shape, torch.nan)
    return spread.masked_scatter(batch.targets(predicts_first), values.float())


def changed(model, batch, touched):
    """(row, slot) of the losses that differ between the two batches."""
    losses = [slots_of(model.loss(b).per_target, batch, model.predicts_first) for b in (batch, touched)]
    differ = ~torch.isclose(*losses, rtol=0, atol=0, equal_nan=True)
    return [tuple(place) for place in differ.nonzero().tolist()]


def touch(batch, row, slot):
    emb = batch.emb.clone()
    emb[row, slot] = 2 - 3 * emb[row, slot]
    return replace(batch, emb=emb)


@every_family
def test_every_target_has_one_loss_and_one_of_each_meter(family):
    model, batch = build(family), pack([[3, 2], [4]], slots=6)
    losses = model.loss(batch)
    assert model.predicts_first == (family != "base")
    count = 9 if model.predicts_first else 6
    assert losses.per_target.shape == (count,)
    assert {values.shape for values in losses.meters.values()} == {(count,)}
    assert not any(values.requires_grad for values in losses.meters.values())
    assert model.predict(batch, sampling(family)).shape == (2, 6, DIM)


@every_family
def test_a_concept_changes_its_own_loss_and_those_after_it_in_its_document(family):
    """Rows 000112 and 3333. Base has no loss at the first concepts."""
    model, batch = build(family), pack([[3, 2, 1], [4]], slots=6)
    after = {0: [0, 1, 2], 1: [1, 2], 2: [2], 3: [3, 4], 4: [4], 5: [5]}
    for slot, expected in after.items():
        found = changed(model, batch, touch(batch, 0, slot))
        assert found == [(0, s) for s in expected if model.predicts_first or batch.pos[0, s] > 0], f"slot {slot}"
    assert changed(model, batch, touch(batch, 1, 2)) == [(1, 2), (1, 3)]
    assert changed(model, batch, touch(batch, 1, 5)) == [], "padding"


@every_family
def test_an_answer_sees_its_whole_question_and_the_answer_so_far(family):
    """A question of two concepts, an answer of three; only the answer has losses."""
    model, batch = build(family), pack([[5, 2]], slots=7)
    batch.is_target[0, [0, 1, 5]] = False
    after = {0: [2, 3, 4], 1: [2, 3, 4], 2: [2, 3, 4], 3: [3, 4], 4: [4], 5: [6], 6: [6]}
    for slot, expected in after.items():
        assert changed(model, batch, touch(batch, 0, slot)) == [(0, s) for s in expected], f"slot {slot}"


def predictions(model, batch, family):
    """Compare the network's first output for Quant-LCM, where another context may lead to the same units."""
    if family not in QUANTS:
        return model.predict(batch, sampling(family))
    said = []
    hook = last_layer(model).register_forward_hook(lambda layer, x, out: said.append(out))
    predicted = model.predict(batch, sampling(family, guidance=1.0))
    hook.remove()
    assert predicted.shape == batch.emb.shape
    filled = (batch.doc != PAD)[..., None]
    return torch.zeros(*batch.doc.shape, said[0].shape[1]).masked_scatter(filled, said[0])


@every_family
def test_prediction_ignores_the_future_and_other_documents(family):
    model, batch = build(family), pack([[3, 2]], slots=6)
    before = predictions(model, batch, family)
    for slot, expected in {0: [1, 2], 1: [2], 2: [], 3: [4], 4: [], 5: []}.items():
        found = (predictions(model, touch(batch, 0, slot), family) != before).any(-1)[0]
        assert found.nonzero().flatten().tolist() == expected, f"slot {slot}"


@every_family
def test_what_cannot_be_predicted_is_zero(family):
    model, batch = build(family), pack([[3, 2]], slots=6)
    zero = (model.predict(batch, sampling(family)) == 0).all(-1)[0]
    first = not model.predicts_first
    assert zero.tolist() == [first, False, False, first, False, True]


@generative
def test_a_dropped_context_is_not_seen_but_the_concept_goes_on_as_context(family, monkeypatch):
    model, batch = build(family).train(), pack([[4, 2]], slots=6)
    decide(monkeypatch, some_draws(batch, dropped=[(0, 2), (0, 5)]))
    after = {0: [0, 1, 3], 1: [1, 3], 2: [2, 3], 3: [3], 4: [4], 5: [5]}
    for slot, expected in after.items():
        assert changed(model, batch, touch(batch, 0, slot)) == [(0, s) for s in expected], f"slot {slot}"


@pytest.mark.parametrize("family", DIFFUSING)
def test_noise_changes_the_output_of_its_own_concept_alone(family, monkeypatch):
    model, batch = build(family), pack([[5, 1]], slots=6)
    draws = some_draws(batch)
    draws.eps[0, 3] += 1
    decide(monkeypatch, draws)
    touched = model.loss(batch).per_target
    decide(monkeypatch, some_draws(batch))
    assert (model.loss(batch).per_target != touched).nonzero().flatten().tolist() == [3]


@generative
def test_a_target_depends_on_its_own_step_alone(family, monkeypatch):
    model, batch = build(family), pack([[5, 1]], slots=6)
    draws = some_draws(batch)
    draws.t[0, 3] += 1
    decide(monkeypatch, draws)
    touched = model.loss(batch).per_target
    decide(monkeypatch, some_draws(batch))
    assert (model.loss(batch).per_target != touched).nonzero().flatten().tolist() == [3]


@generative
def test_without_context_a_target_is_predicted_as_a_first_concept(family, monkeypatch):
    """A document of one concept, at the same position, has nothing before it."""
    model, batch = build(family).train(), pack([[4, 3]], slots=7)
    decide(monkeypatch, some_draws(batch, dropped=[(0, s) for s in range(7)]))
    dropped = model.loss(batch).per_target
    decide(monkeypatch, some_draws(batch))
    alone = model.loss(replace(batch, doc=torch.arange(7)[None])).per_target
    close(dropped, alone)
    assert not torch.allclose(dropped, model.loss(batch).per_target)


@every_family
def test_packed_documents_give_what_each_gives_alone(family, monkeypatch):
    model, batch = build(family), pack([[4, 3, 5], [6, 2]], slots=13)
    draws, alone = some_draws(batch), []
    for r, lengths in enumerate([[4, 3, 5], [6, 2]]):
        start = 0
        for length in lengths:
            cut = slice(r, r + 1), slice(start, start + length)
            decide(monkeypatch, Noising(*(values[cut] for values in draws)))
            parts = [values[cut] for values in (batch.emb, batch.doc, batch.pos, batch.is_target)]
            alone.append(model.loss(Batch(*parts, batch.row[:1], batch.step_targets)))
            start += length
    decide(monkeypatch, draws)
    packed = model.loss(batch)
    close(packed.per_target, torch.cat([one.per_target for one in alone]))
    for name, values in packed.meters.items():
        close(values, torch.cat([one.meters[name] for one in alone]))


@every_family
def test_padding_changes_nothing(family, monkeypatch):
    """Neither empty slots nor empty rows, whatever they hold."""
    model, batch = build(family), pack([[4, 3]], slots=7)
    decide(monkeypatch, some_draws(batch))
    expected = model.loss(batch).per_target
    room, padded = (0, 5, 0, 1), with_room(batch, slots=5, rows=1)
    t, eps, dropped = some_draws(batch)
    decide(monkeypatch, Noising(pad(t, room), pad(eps, (0, 0, *room), value=7.0), pad(dropped, room)))
    close(model.loss(padded).per_target, expected)
    monkeypatch.undo()
    same_noise(monkeypatch)
    predicted = model.predict(padded, sampling(family))
    close(predicted[:1, :7], model.predict(batch, sampling(family)))
    assert not predicted[1].any()
    assert not predicted[:, 7:].any()


@every_family
def test_rows_may_be_split_over_batches_and_reordered(family):
    """A row's draws depend on its number alone, not on its place or company; and not on the global seed."""
    model, batch = build(family).train(), pack([[4, 2], [6], [3, 3]], slots=6)
    whole = model.loss(batch).per_target
    torch.manual_seed(99)
    fields = ("emb", "doc", "pos", "is_target", "row")
    for rows in ([2, 0, 1], [1]):
        part = replace(batch, **{name: getattr(batch, name)[rows] for name in fields})
        expected = slots_of(whole, batch, model.predicts_first)[rows]
        close(model.loss(part).per_target, expected[~expected.isnan()])


@generative
def test_another_row_number_draws_other_steps(family):
    model, batch = build(family), pack([[6]], slots=6)
    again = [model.loss(replace(batch, row=torch.tensor([row]))).per_target for row in (0, 1, 0)]
    assert torch.equal(again[0], again[2])
    assert not torch.equal(again[0], again[1])


@generative
def test_each_target_may_lose_its_context_in_training_and_none_in_evaluation(family):
    """Training and evaluation disagree only where a context was dropped, of short documents and first answers too."""
    model, batch = build(family), pack([[1, 2, 3, 4] for _ in range(300)], slots=10)
    batch.is_target[:, 6] = False  # of the last document, the first concept is the question
    evaluated, trained = model.loss(batch).per_target, model.train().loss(batch).per_target
    differ = slots_of(trained != evaluated, batch, True)
    rates = differ.float().mean(0)
    first = [0, 1, 3]
    assert rates[first].tolist() == [0, 0, 0], "the first concepts have no context"
    for slot in (2, 4, 5, 7, 8, 9):
        assert rates[slot].item() == pytest.approx(0.15, abs=0.07), f"slot {slot}"
    assert rates[[2, 4, 5, 7, 8, 9]].mean().item() == pytest.approx(0.15, abs=0.025)
    together = (differ[:, 4] * differ[:, 5]).mean().item()
    assert together == pytest.approx(0.15**2, abs=0.03), "slots are dropped independently"
    assert torch.equal(model.eval().loss(batch).per_target, evaluated)


@generative
def test_no_context_is_dropped_where_the_setting_is_zero(family):
    never = build(family, **({"context_drop": 0.0} if family in QUANTS else {"diffusion": {"context_drop": 0.0}}))
    batch = pack([[6], [6]], slots=6)
    assert torch.equal(never.train().loss(batch).per_target, never.eval().loss(batch).per_target)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_batch_without_a_document_has_no_loss_and_zero_gradients(family, recompute):
    model = build(family).train()
    for stack in model.stacks():
        stack.recompute = recompute
    loss = model.loss(pack([[], []], 6)).per_target
    assert loss.shape == (0,)
    loss.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
