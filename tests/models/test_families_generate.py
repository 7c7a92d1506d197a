"""Promises that every model family keeps when it generates: caches, batches, seeds, settings, learning by heart."""

from dataclasses import fields, replace

import pytest
import torch
from families import (
    CODEBOOKS,
    DIFFUSING,
    FAMILIES,
    GENERATIVE,
    QUANTS,
    UNITS,
    build,
    close,
    fresh,
    generate,
    one_document,
    rows_asked,
    same_noise,
    sampling,
)
from synthetic import DIM, pack

from lcm.batch import Draws
from lcm.errors import UserError
from lcm.models.interface import Sampling, resolve_sampling

COPIED = ("emb", "doc", "pos", "is_target")
every_family = pytest.mark.parametrize("family", FAMILIES)
generative = pytest.mark.parametrize("family", GENERATIVE)


@pytest.fixture
def prompts():
    torch.manual_seed(3)
    return [torch.randn(length, DIM) for length in (3, 1, 5)]


@every_family
def test_the_cache_gives_what_reading_the_longer_prompt_gives(family, prompts):
    """Ragged prompts in one batch. The noise is that of the prompt: it is carried over."""
    model, settings = build(family), sampling(family)
    context, texts = model.prefill(prompts), prompts
    for _ in range(4):
        concepts = model.next(context, settings)
        longer = model.prefill(texts)
        assert longer.lengths.tolist() == context.lengths.tolist()
        longer.prompt = context.prompt
        close(concepts, model.next(longer, settings))
        texts = [torch.cat([text, concept[None]]) for text, concept in zip(texts, concepts, strict=True)]
        context = model.extend(context, concepts)


@every_family
@pytest.mark.parametrize("length", [0, 1, 4])
def test_the_next_concept_is_what_is_predicted_after_the_same_context(family, length, monkeypatch):
    """With the same noise, `predict`, which reads whole rows, and `next`, which reads caches, agree at every slot."""
    model = build(family)
    if not length and not model.predicts_first:
        return
    torch.manual_seed(4)
    document, settings = torch.randn(length + 2, DIM), sampling(family)
    same_noise(monkeypatch)
    predicted = model.predict(one_document(document), settings)[0]
    context = model.prefill([document[:length]])
    for slot in (length, length + 1):
        close(model.next(context, settings)[0], predicted[slot])
        context = model.extend(context, document[slot : slot + 1])


@every_family
def test_a_batch_draws_what_its_rows_draw_alone(family, prompts):
    model, settings = build(family), sampling(family, seed=1)
    together = generate(model, prompts, 3, settings)
    assert together.shape == (3, 3, DIM)
    for row, prompt in enumerate(prompts):
        close(generate(model, [prompt], 3, settings)[0], together[row])


@every_family
def test_selected_rows_continue_unchanged(family, prompts):
    """Drop, repeat and reorder in the middle; noise stays with its prompt."""
    model, settings, rows = build(family), sampling(family, seed=1), torch.tensor([2, 0, 0])
    expected = generate(model, prompts, 3, settings)
    context = model.prefill(prompts)
    context = model.extend(context, model.next(context, settings)).select(rows)
    assert context.lengths.tolist() == [6, 4, 4]
    for step in (1, 2):
        concepts = model.next(context, settings)
        close(concepts, expected[rows, step])
        context = model.extend(context, concepts)


@every_family
def test_a_copy_by_select_can_be_extended_differently(family, prompts):
    model, settings = build(family), sampling(family, guidance=1.0) if family != "base" else Sampling()
    context = model.prefill(prompts)
    copy = context.select(torch.arange(3))
    other = model.extend(copy, 3 * torch.ones(3, DIM))
    first = model.extend(context, torch.zeros(3, DIM))
    expected = model.extend(model.prefill(prompts), 3 * torch.ones(3, DIM))
    close(model.next(other, settings), model.next(expected, settings))
    assert not torch.equal(model.next(first, settings), model.next(other, settings))
    with pytest.raises(AssertionError, match="extended before"):
        model.extend(context, torch.zeros(3, DIM))


@generative
def test_a_prompt_may_be_empty_alone_and_beside_others(family, prompts):
    model, settings = build(family), sampling(family)
    alone = generate(model, [torch.zeros(0, DIM)], 2, settings)
    together = generate(model, [prompts[0], torch.zeros(0, DIM)], 2, settings)
    close(together[1:], alone)
    close(together[:1], generate(model, prompts[:1], 2, settings))
    assert not torch.equal(alone[0, 0], alone[0, 1])


@every_family
def test_next_changes_nothing(family, prompts):
    model, settings = build(family), sampling(family)
    context = model.prefill(prompts)
    torch.manual_seed(1)
    first = model.next(context, settings)
    torch.manual_seed(2)
    assert torch.equal(model.next(context, settings), first)
    assert context.lengths.tolist() == [3, 1, 5]


@generative
def test_noise_differs_by_seed_prompt_and_position(family, prompts, monkeypatch):
    """Two seeds, four prompts (two of one length), two positions: sixteen draws, and the same ones when asked again."""
    drawn = []
    for name in ("gaussian", "uniform"):
        draw = getattr(Draws, name)
        monkeypatch.setattr(Draws, name, lambda self, *args, draw=draw: drawn.append(draw(self, *args)) or drawn[-1])
    model, rounds = build(family), []
    for _ in range(2):
        context = model.prefill([*prompts, torch.randn(3, DIM, generator=torch.Generator().manual_seed(0))])
        for _ in range(2):
            for seed in (1, 2):
                model.next(context, sampling(family, seed=seed))
            context = model.extend(context, torch.zeros(4, DIM))
        rounds.append(torch.cat(drawn))
        drawn.clear()
    assert torch.equal(*rounds)
    assert len({tuple(numbers) for numbers in rounds[0].tolist()}) == len(rounds[0]) == 16


@generative
def test_predictions_draw_by_seed_row_number_and_slot(family):
    """Two rows of the same concepts, which differ by their numbers alone; and one concept four times in a row."""
    hot = {"temperature": 100.0, "top_k": UNITS} if family in QUANTS else {}
    model, batch = build(family), pack([[1, 1, 1, 1]] * 2, slots=4)
    batch.emb[:] = 1
    batch.doc[:] = torch.arange(4)
    found = [
        model.predict(replace(batch, row=torch.tensor(row)), sampling(family, seed=seed, **hot))
        for row, seed in (([7, 8], 0), ([8, 7], 0), ([7, 8], 1))
    ]
    close(found[1], found[0].flip(0))
    for other in (found[1], found[2]):
        assert ((found[0] - other).abs().amax(-1) > 1e-3).any()
    assert len({tuple(vector) for vector in found[0].round(decimals=3).flatten(0, 1).tolist()}) > 4


@every_family
def test_settings_that_mean_nothing_to_a_family_are_refused_by_name(family, prompts):
    model = build(family)
    context = model.prefill(prompts)
    every = {
        "temperature": 0.5, "top_k": 2, "guidance": 2.0, "rescale": 0.5, "steps": 3, "sampler": "dpm",
        "initial_noise": 0.5, "epsilon_scaling": 1.1, "eta": 0.5,
    }  # fmt: skip
    known = {field.name for field in fields(model.defaults)}
    assert known <= every.keys()
    before = model.next(context, sampling(family))
    for name, value in every.items():
        if name in known:
            found = model.next(context, sampling(family, **{name: value}))
            assert found.isfinite().all()
            if family not in QUANTS:
                assert not torch.equal(found, before), name
            continue
        for call in (lambda s: model.next(context, s), lambda s: model.predict(one_document(prompts[0]), s)):
            with pytest.raises(UserError, match=f"--{name.replace('_', '-')}=.*means nothing to this kind of model"):
                call(Sampling(**{name: value}))


def test_the_defaults_are_the_papers(prompts):
    diffusing = Sampling(
        guidance=3.0, rescale=0.7, steps=40, sampler="ddim", initial_noise=0.6, epsilon_scaling=1.00045, eta=0.0
    )
    expected = dict.fromkeys(DIFFUSING, diffusing)
    expected["quant_d"] = Sampling(temperature=1.0, top_k=3, guidance=1.0)
    expected["quant_c"] = Sampling(temperature=0.005, top_k=5, guidance=1.5)
    for family, settings in expected.items():
        model = build(family)
        context = model.prefill(prompts)
        assert torch.equal(model.next(context, Sampling()), model.next(context, settings)), family
        assert resolve_sampling(Sampling(), model.defaults) == resolve_sampling(settings, model.defaults)
        assert resolve_sampling(Sampling(guidance=0.0), model.defaults).guidance == 0


@pytest.mark.parametrize("family", DIFFUSING)
@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
def test_the_denoiser_is_called_once_a_step(family, sampler, prompts):
    """Both branches of guidance in one call, none at pure noise; without guidance there is one branch."""
    model = build(family)
    context, document = model.prefill(prompts), one_document(prompts[2])
    guided, plain = Sampling(steps=4, sampler=sampler), Sampling(steps=4, sampler=sampler, guidance=1.0)
    assert rows_asked(lambda: model.next(context, guided)) == [3, 6, 6, 6]
    assert rows_asked(lambda: model.next(context, plain)) == [3, 3, 3, 3]
    assert rows_asked(lambda: model.predict(document, guided)) == [5, 10, 10, 10]
    assert rows_asked(lambda: model.prefill(prompts)) == []
    assert len(rows_asked(lambda: model.next(context, Sampling()))) == 40


@pytest.mark.parametrize("family", QUANTS)
def test_the_network_is_called_once_a_codebook(family, prompts):
    model = build(family)
    context = model.prefill(prompts)
    assert rows_asked(lambda: model.next(context, Sampling(guidance=1.0))) == [3] * CODEBOOKS
    assert rows_asked(lambda: model.next(context, Sampling(guidance=2.0))) == [6] * CODEBOOKS


@pytest.mark.parametrize("family", DIFFUSING)
def test_more_steps_than_the_model_was_trained_with_are_refused(family, prompts):
    model = build(family, diffusion={"steps": 10})
    context = model.prefill(prompts)
    with pytest.raises(UserError, match=r"steps=11: the model was trained with 10"):
        model.next(context, Sampling(steps=11))
    assert model.next(context, Sampling(steps=10)).isfinite().all()


@every_family
def test_half_precision_generation_stays_near_and_gives_fp32(family, prompts):
    model, settings = build(family), sampling(family, guidance=1.0) if family != "base" else Sampling()
    expected = generate(model, prompts, 2, settings)
    with torch.autocast("cpu", torch.bfloat16):
        found = generate(model, prompts, 2, settings)
        predicted = model.predict(one_document(prompts[0]), settings)
    assert found.dtype == predicted.dtype == torch.float32
    assert predicted.isfinite().all()
    if family in QUANTS:  # a rounded score may choose another unit
        assert found.isfinite().all()
    else:
        close(found, expected, 0.1)


def memorized(family):
    """A model, and five distinct concepts that it was trained on; of Quant-LCM, such as its codebooks can say."""
    model = fresh(family).train()
    torch.manual_seed(1)
    z = torch.randn(5, DIM)
    document = model.normalizer.inverse(model.quantizer(z) if family in QUANTS else z)
    steps, rows = 150 if family in DIFFUSING else 90, 16
    one = one_document(document)
    copies = {name: torch.cat([getattr(one, name)] * rows) for name in COPIED}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, 2 * (1 - step / steps))
        optimizer.zero_grad()
        model.loss(replace(one, **copies, row=torch.arange(rows) + rows * step)).per_target.mean().backward()
        optimizer.step()
    return model.eval(), document


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "one_tower_rotary"])
def test_a_tiny_model_memorizes_a_document_and_recites_it(family):
    """From its first concept and from its first two, with the family's defaults; where concepts can be said exactly,
    exactly."""
    model, document = memorized(family)
    tolerance = {"base": 0.02, "two_tower": 0.2, "one_tower": 0.2, "quant_c": 1e-5, "quant_d": 1e-5}[family]
    settings = [Sampling(), Sampling(sampler="dpm", steps=10)] if family in DIFFUSING else [Sampling()]
    for each in settings:
        for start, recited in zip((1, 2), generate(model, [document[:1], document[:2]], 3, each), strict=True):
            true = document[start : start + 3]
            assert torch.cdist(recited, document).argmin(1).tolist() == [start, start + 1, start + 2]
            assert ((recited - true).norm(dim=1) / true.norm(dim=1)).max().item() < tolerance
