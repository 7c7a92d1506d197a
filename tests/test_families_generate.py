"""Promises that every model family keeps when it generates: caches, batches, seeds, settings, learning by heart."""

import pytest
import torch
from families import (
    CODEBOOKS,
    DIFFUSING,
    FAMILIES,
    GENERATIVE,
    QUANTS,
    build,
    close,
    fresh,
    generate,
    last_layer,
    one_document,
    same_noise,
    sampling,
)
from synthetic import DIM

from lcm.errors import UserError
from lcm.models.concept_model import Sampling, settle

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
def test_selected_rows_go_on_as_they_would_have(family, prompts):
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


@generative
def test_next_changes_nothing_and_depends_on_the_seed_the_prompt_and_the_position(family, prompts):
    """Two seeds, four prompts (two of one length), two positions: sixteen different concepts."""
    hot = {"temperature": 100.0, "top_k": 10_000} if family in QUANTS else {}
    model, found = build(family, **({"units": 512} if family in QUANTS else {})), []
    context = model.prefill([*prompts, torch.randn(3, DIM)])
    for _ in range(2):
        for seed in (1, 2):
            torch.manual_seed(len(found))
            concepts = model.next(context, sampling(family, seed=seed, **hot))
            assert torch.equal(concepts, model.next(context, sampling(family, seed=seed, **hot)))
            found.append(concepts)
        lengths = context.lengths.tolist()
        context = model.extend(context, torch.zeros(4, DIM))
        assert context.lengths.tolist() == [length + 1 for length in lengths]
    assert len({tuple(vector.round(decimals=3).tolist()) for vector in torch.cat(found)}) == 16


@every_family
def test_settings_that_mean_nothing_to_a_family_are_refused_by_name(family, prompts):
    model = build(family)
    context = model.prefill(prompts)
    known = {
        "base": {"temperature"},
        **dict.fromkeys(
            DIFFUSING, {"guidance", "rescale", "steps", "sampler", "initial_noise", "epsilon_scaling", "eta"}
        ),
        **dict.fromkeys(QUANTS, {"temperature", "top_k", "guidance"}),
    }[family]
    every = {
        "temperature": 0.5, "top_k": 2, "guidance": 2.0, "rescale": 0.5, "steps": 3, "sampler": "dpm",
        "initial_noise": 0.5, "epsilon_scaling": 1.1, "eta": 0.5,
    }  # fmt: skip
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
        assert settle(Sampling(), model.defaults) == settle(settings, model.defaults)


def rows_asked(model, run):
    """How many concepts each call of the network was asked for."""
    asked = []
    hook = last_layer(model).register_forward_hook(lambda layer, x, out: asked.append(len(out)))
    run()
    hook.remove()
    return asked


@pytest.mark.parametrize("family", DIFFUSING)
@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
def test_the_denoiser_is_called_once_a_step(family, sampler, prompts):
    """Both branches of guidance in one call, none at pure noise; without guidance there is one branch."""
    model = build(family)
    context, document = model.prefill(prompts), one_document(prompts[2])
    guided, plain = Sampling(steps=4, sampler=sampler), Sampling(steps=4, sampler=sampler, guidance=1.0)
    assert rows_asked(model, lambda: model.next(context, guided)) == [3, 6, 6, 6]
    assert rows_asked(model, lambda: model.next(context, plain)) == [3, 3, 3, 3]
    assert rows_asked(model, lambda: model.predict(document, guided)) == [5, 10, 10, 10]
    assert rows_asked(model, lambda: model.prefill(prompts)) == []
    assert len(rows_asked(model, lambda: model.next(context, Sampling()))) == 40


@pytest.mark.parametrize("family", QUANTS)
def test_the_network_is_called_once_a_codebook(family, prompts):
    model = build(family)
    context = model.prefill(prompts)
    assert rows_asked(model, lambda: model.next(context, Sampling(guidance=1.0))) == [3] * CODEBOOKS
    assert rows_asked(model, lambda: model.next(context, Sampling(guidance=2.0))) == [6] * CODEBOOKS


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


def document_of(model, family):
    """Five distinct concepts; of Quant-LCM, such as its codebooks can say exactly."""
    torch.manual_seed(1)
    z = torch.randn(5, DIM)
    if family in QUANTS:
        z = model.quantizer(z)
    return model.normalizer.inverse(z)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("two_tower", Sampling()),
        ("two_tower", Sampling(sampler="dpm", steps=10)),
        ("one_tower", Sampling()),
        ("quant_c", Sampling()),
        ("quant_d", Sampling(top_k=1)),
    ],
)
def test_a_tiny_model_memorises_a_document_and_recites_it(family, settings):
    """From its first concept, and with nothing to start from, the first one, too."""
    model = fresh(family).train()
    document = document_of(model, family)
    batch = one_document(document.repeat(1, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(400):
        optimizer.zero_grad()
        rows = torch.arange(8) + 8 * step
        many = type(batch)(
            batch.emb.expand(8, -1, -1), batch.doc.expand(8, -1), batch.pos.expand(8, -1),
            batch.is_target.expand(8, -1), rows, batch.step_targets,
        )  # fmt: skip
        model.loss(many).per_target.mean().backward()
        optimizer.step()
    recited = generate(model.eval(), [document[:1], document[:2]], 3, settings)
    for start, found in ((1, recited[0]), (2, recited[1])):
        true = document[start : start + 3]
        distance = ((found - true).norm(dim=1) / true.norm(dim=1)).mean().item()
        print(family, start, distance)
        assert torch.cdist(found, document).argmin(1).tolist() == list(range(start, start + 3))
        assert distance < 0.1
