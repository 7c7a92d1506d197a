"""Base-LCM: what it may see, what its loss is, that it can learn, that generation agrees with training."""

import pytest
import torch
from synthetic import DIM, pack, with_room
from torch import nn

from lcm.batch import Batch, derive_seed
from lcm.config import BaseLCMConfig
from lcm.errors import UserError
from lcm.models import build_model
from lcm.models.interface import Sampling

GREEDY = Sampling()


def build(**changes):
    torch.manual_seed(0)
    settings = {"kind": "base", "dim": DIM, "width": 16, "heads": 2, "layers": 2, "dropout": 0.0, **changes}
    model = build_model(BaseLCMConfig(**settings))
    model.normalizer.set(torch.linspace(-1, 1, DIM), torch.linspace(0.5, 2, DIM))
    return model.eval()


def one_document(vectors):
    length = len(vectors)
    pos = torch.arange(length)[None]
    everything = torch.ones(1, length, dtype=torch.bool)
    return Batch(vectors[None], torch.zeros_like(pos), pos, everything, torch.zeros(1).long(), torch.tensor(length))


def test_the_large_model_has_exactly_as_many_parameters_as_the_reference():
    with torch.device("meta"):
        model = build_model(BaseLCMConfig(kind="base"))
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert sizes == {
        "normalizer": 0,
        "pre": 2_099_200,
        "transformer": 32 * 51_405_824 + 2_048,
        "post": 2_098_176,
    }
    assert sum(sizes.values()) == 1_649_185_792


def test_prediction_ignores_the_future_and_other_documents():
    """Touch one concept at a time: only later predictions of its own document change."""
    model, batch = build(), pack([[3, 2]], slots=6)
    before = model.predict(batch, GREEDY)
    changes = {0: [1, 2], 1: [2], 2: [], 3: [4], 4: [], 5: []}
    for slot, expected in changes.items():
        touched = pack([[3, 2]], slots=6)
        touched.emb[0, slot] += 1
        changed = (model.predict(touched, GREEDY) != before).any(-1)[0]
        assert changed.nonzero().flatten().tolist() == expected, f"slot {slot}"


def test_what_cannot_be_predicted_is_zero():
    model, batch = build(), pack([[3, 2]], slots=6)
    zero = (model.predict(batch, GREEDY) == 0).all(-1)[0]
    assert zero.tolist() == [True, False, False, True, False, True]


def test_packed_documents_give_what_each_gives_alone():
    model, batch = build(), pack([[4, 3, 5], [6, 2]], slots=13)
    packed = model.loss(batch)
    alone = []
    for r, lengths in enumerate([[4, 3, 5], [6, 2]]):
        start = 0
        for length in lengths:
            alone.append(model.loss(one_document(batch.emb[r, start : start + length])))
            start += length
    for name, found in [("loss", packed.per_target), ("l2", packed.meters["l2"])]:
        expected = torch.cat([one.per_target if name == "loss" else one.meters[name] for one in alone])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing():
    """Neither empty slots nor empty rows, whatever they hold."""
    model, batch = build(), pack([[4, 3]], slots=7)
    padded = with_room(batch, slots=5, rows=1)
    torch.testing.assert_close(model.loss(padded).per_target, model.loss(batch).per_target, atol=1e-5, rtol=1e-5)
    predicted = model.predict(padded, GREEDY)[:1, :7]
    torch.testing.assert_close(predicted, model.predict(batch, GREEDY), atol=1e-5, rtol=1e-5)


def test_the_loss_of_a_model_that_predicts_the_median_is_the_squared_distance_to_it():
    """With the last layer zeroed the prediction is z = 0: the loss is Σ z², the l2 meter ‖x − median‖."""
    model, batch = build(), pack([[3, 2]], slots=6)
    nn.init.zeros_(model.post.weight)
    nn.init.zeros_(model.post.bias)
    losses = model.loss(batch)
    targets = batch.emb[0, [1, 2, 4]]
    z = (targets - model.normalizer.location) / model.normalizer.scale
    torch.testing.assert_close(losses.per_target, z.square().sum(-1))
    torch.testing.assert_close(losses.meters["l2"], (targets - model.normalizer.location).norm(dim=-1))
    torch.testing.assert_close(model.predict(batch, GREEDY)[0, 1], model.normalizer.location)


def test_the_loss_is_the_distance_between_prediction_and_data():
    """Two paths: `loss` gathers targets before its last layer, `predict` shows every slot."""
    model, batch = build(), pack([[4, 3], [5]], slots=8)
    error = model.normalizer(model.predict(batch, GREEDY)) - model.normalizer(batch.emb)
    losses, targets = model.loss(batch), batch.targets(predicts_first=False)
    torch.testing.assert_close(losses.per_target, error[targets].square().sum(-1), atol=1e-4, rtol=1e-4)
    raw = (model.predict(batch, GREEDY) - batch.emb)[targets].norm(dim=-1)
    torch.testing.assert_close(losses.meters["l2"], raw, atol=1e-4, rtol=1e-4)


def test_shifting_data_and_normalizer_shifts_predictions():
    model, batch = build(), pack([[4, 3]], slots=8)
    before, loss = model.predict(batch, GREEDY), model.loss(batch).per_target
    model.normalizer.location += 5
    shifted = pack([[4, 3]], slots=8)
    shifted.emb.add_(5)
    predictable = (batch.pos > 0)[..., None]
    torch.testing.assert_close(model.predict(shifted, GREEDY), before + 5 * predictable, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.loss(shifted).per_target, loss, atol=1e-4, rtol=1e-4)


def test_half_precision_data_is_normalized_in_fp32():
    """fp16 vectors near the median: the difference must not be rounded to fp16 before it is scaled."""
    model, batch = build(), pack([[4, 3]], slots=8)
    half = Batch(batch.emb.half(), batch.doc, batch.pos, batch.is_target, batch.row, batch.step_targets)
    single = Batch(batch.emb.half().float(), batch.doc, batch.pos, batch.is_target, batch.row, batch.step_targets)
    assert torch.equal(model.loss(half).per_target, model.loss(single).per_target)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.loss(half).per_target.dtype == torch.float32


def test_every_parameter_receives_gradient_and_buffers_none():
    model, batch = build(dropout=0.1).train(), pack([[4, 3], [5]], slots=8)
    model.loss(batch).per_target.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert {name for name, _ in model.named_buffers()} == {
        "end_of_text", "normalizer.location", "normalizer.scale"
    }  # fmt: skip


def test_a_batch_without_targets_gives_zero_gradients():
    model, batch = build().train(), pack([[], []], slots=8)
    loss = model.loss(batch)
    assert loss.per_target.shape == (0,)
    loss.per_target.sum().backward()
    assert all(not p.grad.any() and p.grad.isfinite().all() for p in model.parameters())


def generate(model, prompts, count, sampling=GREEDY):
    context, out = model.prefill(prompts), []
    for _ in range(count):
        out.append(model.next(context, sampling))
        context = model.extend(context, out[-1])
    return torch.stack(out, dim=1)


@pytest.fixture
def prompts():
    torch.manual_seed(3)
    return [torch.randn(length, DIM) for length in (3, 1, 5)]


def test_generation_with_the_cache_equals_teacher_forcing_its_own_output(prompts):
    """Ragged prompts in one batch against one uncached pass for each concept."""
    model = build()
    generated = generate(model, prompts, 4)
    for prompt, found in zip(prompts, generated, strict=True):
        text = prompt
        for concept in found:
            longer = torch.cat([text, torch.zeros(1, DIM)])
            expected = model.predict(one_document(longer), GREEDY)[0, -1]
            torch.testing.assert_close(concept, expected, atol=1e-5, rtol=1e-5)
            text = torch.cat([text, concept[None]])


def test_next_changes_nothing(prompts):
    model = build()
    context = model.prefill(prompts)
    assert torch.equal(model.next(context, GREEDY), model.next(context, GREEDY))
    assert context.lengths.tolist() == [3, 1, 5]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.7, seed=1)], ids=["greedy", "noise"])
def test_selected_rows_continue_unchanged(prompts, sampling):
    """Drop, repeat and reorder in the middle; noise stays with its prompt."""
    model, rows = build(), torch.tensor([2, 0, 0])
    expected = generate(model, prompts, 3, sampling)
    context = model.prefill(prompts)
    context = model.extend(context, model.next(context, sampling)).select(rows)
    assert context.lengths.tolist() == [6, 4, 4]
    for step in (1, 2):
        concepts = model.next(context, sampling)
        torch.testing.assert_close(concepts, expected[rows, step], atol=1e-5, rtol=1e-5)
        context = model.extend(context, concepts)


def test_a_copy_by_select_can_be_extended_differently(prompts):
    model = build()
    context = model.prefill(prompts)
    copy = context.select(torch.arange(3))
    other = model.extend(copy, torch.ones(3, DIM))
    first = model.extend(context, torch.zeros(3, DIM))
    expected = model.extend(model.prefill(prompts), torch.ones(3, DIM))
    torch.testing.assert_close(model.next(other, GREEDY), model.next(expected, GREEDY))
    assert not torch.equal(model.next(first, GREEDY), model.next(other, GREEDY))
    with pytest.raises(AssertionError, match="extended before"):
        model.extend(context, torch.zeros(3, DIM))


def test_a_batch_draws_what_its_rows_draw_alone(prompts):
    model, sampling = build(), Sampling(temperature=0.5, seed=1)
    together = generate(model, prompts, 2, sampling)
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(generate(model, [prompt], 2, sampling)[0], together[row], atol=1e-5, rtol=1e-5)


def test_noise_differs_by_seed_prompt_and_position(prompts):
    """Two seeds, four prompts (two of one length), two positions: sixteen different vectors."""
    model, noise = build(), []
    context = model.prefill([*prompts, torch.randn(3, DIM)])
    for _ in range(2):
        clean = model.next(context, GREEDY)
        noise += [model.next(context, Sampling(temperature=0.5, seed=seed)) - clean for seed in (1, 2)]
        context = model.extend(context, clean)
    assert len({tuple(vector.round(decimals=3).tolist()) for vector in torch.cat(noise)}) == 16


def test_noise_has_the_temperature_as_its_spread_in_normalized_space():
    model, batch = build(), pack([[40] * 10 for _ in range(5)], slots=400)
    clean = model.normalizer(model.predict(batch, GREEDY))
    noise = (model.normalizer(model.predict(batch, Sampling(temperature=0.5))) - clean)[batch.pos > 0]
    assert noise.std().item() == pytest.approx(0.5, rel=0.03)
    assert noise.mean().abs().item() < 0.02


def test_an_empty_prompt_is_a_mistake():
    model = build()
    for prompts in ([], [torch.randn(2, DIM), torch.zeros(0, DIM)]):
        with pytest.raises(UserError, match="empty prompt"):
            model.prefill(prompts)


def test_a_tiny_model_memorizes_a_document_and_recites_it():
    """The whole path: loss, gradients, the shift, denormalization, generation."""
    model = build().train()
    torch.manual_seed(1)
    document = torch.randn(6, DIM) * 0.01 + 3
    model.normalizer.set(document.median(dim=0).values, document.std(dim=0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(one_document(document)).per_target.sum().backward()
        optimizer.step()
    recited = generate(model.eval(), [document[:1]], 5)[0]
    torch.testing.assert_close(recited, document[1:], atol=1e-3, rtol=0)


def test_derived_seeds_are_fixed_and_differ():
    assert derive_seed(1, 2, 3) == derive_seed(1, 2, 3) == 12_997_252_459_554_536_576
    assert len({derive_seed(a, b) for a in range(20) for b in range(20)}) == 400
