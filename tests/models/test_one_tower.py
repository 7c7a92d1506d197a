"""One-Tower: its size, its steps, and where its concepts stand."""

import pytest
import torch
from families import build, close, decide, one_document, sampling, some_draws
from synthetic import DIM, pack

from lcm.config import OneTowerConfig
from lcm.errors import UserError
from lcm.models import build_model
from lcm.models.interface import Sampling


def test_the_large_model_s_parameters_by_the_closed_form():
    """32 blocks of attention, SwiGLU and two norms; the concept beside its step goes in."""
    with torch.device("meta"):
        model = build_model(OneTowerConfig(kind="one_tower"))
    parts = {
        "normalizer": 0,
        "step_embedding": (256 * 256 + 256) + (256 * 256 + 256),
        "trunk": ((1024 + 256) * 2048 + 2048) + 2048 * 2048 + 32 * 51_405_824 + 2048,
        "diffusion": 0,
        "post": 2048 * 1024 + 1024,
    }
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()} == parts


def test_flops_count_the_blocks_once_for_each_stream():
    with torch.device("meta"):
        model = build_model(OneTowerConfig(kind="one_tower"))
    used = sum(p.numel() for p in model.parameters()) + 32 * 51_405_824
    assert model.training_flops(slots=128) == 6 * used + 12 * 2048 * 128 * 2 * 32


def steps_seen(model, run):
    seen = []
    hook = model.step_embedding.register_forward_hook(lambda layer, x, out: seen.append(x[0].tolist()))
    run()
    hook.remove()
    return seen


def test_step_zero_is_a_clean_concept_and_timestep_t_is_step_t_plus_one(monkeypatch):
    model, batch = build("one_tower"), pack([[3, 2]], slots=6)
    draws = some_draws(batch)
    decide(monkeypatch, draws)
    used = sorted({t + 1 for t in draws.t[0, :5].tolist()})
    assert sorted(steps_seen(model, lambda: model.loss(batch))) == sorted([[0], used])
    context = model.prefill([batch.emb[0, :3]])
    assert steps_seen(model, lambda: model.next(context, Sampling(steps=4))) == [[100, 75, 50, 25]]
    assert steps_seen(model, lambda: model.extend(context, batch.emb[0, 3:4])) == [[0]]


def test_a_concept_is_made_at_its_own_position(monkeypatch):
    """Learned positions: moving one position's vector changes what is made there, and what is made after it."""
    model, batch = build("one_tower"), pack([[4, 3]], slots=7)
    before = model.predict(batch, sampling("one_tower"))
    model.trunk.positions.weight.data[2] += 1
    changed = (model.predict(batch, sampling("one_tower")) != before).any(-1)[0]
    assert changed.tolist() == [False, False, True, True, False, False, True]


def test_with_rotary_positions_a_document_may_start_anywhere():
    """Only distances count, so learned positions alone know where a document starts."""
    for family, same in (("one_tower_rotary", True), ("one_tower", False)):
        model, batch = build(family), one_document(torch.randn(4, DIM))
        losses = model.loss(batch).per_target
        batch.pos.add_(5)
        assert torch.allclose(model.loss(batch).per_target, losses, rtol=1e-4, atol=1e-4) == same


def test_longer_documents_than_positions_are_refused_everywhere():
    """Quant-LCM reads its documents with the same code."""
    model = build("one_tower")
    long = one_document(torch.randn(17, DIM))
    for run in (
        lambda: model.loss(long),
        lambda: model.predict(long, sampling("one_tower")),
        lambda: model.prefill([long.emb[0]]),
        lambda: model.next(model.prefill([long.emb[0, :16]]), sampling("one_tower")),
    ):
        with pytest.raises(UserError, match=r"a document of 17 concepts: model.max_positions=16"):
            run()
    with pytest.raises(UserError, match=r"a document of 17 concepts: model.max_positions=16"):
        build("quant_d").loss(long)
    rotary = build("one_tower_rotary")
    assert rotary.next(rotary.prefill([long.emb[0]]), sampling("one_tower")).isfinite().all()


def test_generation_continues_beyond_the_room_of_the_prompt():
    """The cache grows with every concept; what was read stays."""
    model, settings = build("one_tower"), sampling("one_tower")
    torch.manual_seed(0)
    document = torch.randn(9, DIM)
    context = model.prefill([document[:1]])
    for concept in document[1:]:
        context = model.extend(context, concept[None])
    whole = model.prefill([document])
    whole.prompt = context.prompt
    close(model.next(context, settings), model.next(whole, settings))
