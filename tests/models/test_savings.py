"""Every saving computes what the plain form does: the same losses, gradients and samples, to 1e-5 of the largest."""

import sys
from pathlib import Path

import pytest
import torch
from synthetic import DIM, pack
from torch.nn.utils.rnn import pad_sequence

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from naive import in_parts, naive_of
from naive_diffusion import Noising

from lcm.batch import Draws, generators
from lcm.config import BaseLCMConfig, DiffusionConfig, OneTowerConfig, QuantConfig, TwoTowerConfig
from lcm.models import build_model
from lcm.models.denoiser import FastDenoiser, Memory
from lcm.models.diffusion import DiffusionSampling
from lcm.models.interface import Sampling, prompt_number

SIZE = {"dim": DIM, "width": 16, "heads": 2, "dropout": 0.0}
NOISE = DiffusionConfig(context_drop=0.3)
ROTARY = {"layers": 2, "step_width": 8, "positions": "rotary"}
STEPS = {"layers": 2, "step_width": 8, "max_positions": 16}
CODES = {"codebooks": 3, "units": 5, "context_drop": 0.3}
CONFIGS = {
    "base": BaseLCMConfig(kind="base", layers=2, **SIZE),
    "two_tower": TwoTowerConfig(kind="two_tower", context_layers=2, denoiser_layers=2, diffusion=NOISE, **SIZE),
    "one_tower": OneTowerConfig(kind="one_tower", diffusion=NOISE, **STEPS, **SIZE),
    "rotary": OneTowerConfig(kind="one_tower", diffusion=NOISE, **ROTARY, **SIZE),
    "quant_c": QuantConfig(kind="quant_c", **CODES, **STEPS, **SIZE),
    "quant_d": QuantConfig(kind="quant_d", **CODES, **STEPS, **SIZE),
}
ROWS, SLOTS = [[3, 1, 4], [8], [2, 2]], 10
PROMPTS, NEW = (3, 1, 6), 3


def build(name):
    """No parameter is zero: not a modulator, not a bias."""
    torch.manual_seed(1)
    model = build_model(CONFIGS[name])
    model.normalizer.set(torch.linspace(-1, 1, DIM), torch.linspace(0.5, 2, DIM))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if name.startswith("quant"):
        model.quantizer.set(torch.randn(3, 5, DIM))
    return model.eval()


def assert_equal(ours, naive):
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-5 * float(naive.detach().abs().max()))


def apart(batch, *of_slots):
    """Tensors of slots with one document a row, padded to the longest."""
    documents = [batch.doc[row] == n for row in range(len(batch.doc)) for n in range(int(batch.doc[row].max()) + 1)]
    rows = [row for row in range(len(batch.doc)) for _ in range(int(batch.doc[row].max()) + 1)]
    return [
        pad_sequence([x[row][here] for row, here in zip(rows, documents, strict=True)], batch_first=True)
        for x in of_slots
    ]


def drawn_for(model, name, batch):
    """The draws of our loss for each slot."""
    if name == "base":
        return ()
    if name.startswith("quant"):
        drawn = [
            (torch.randint(3, (SLOTS,), generator=g), torch.rand(SLOTS, generator=g) < 0.3)
            for g in generators(0, batch.row[:, None])
        ]
        return tuple(torch.stack(parts) for parts in zip(*drawn, strict=True))
    return model.diffusion.draw_noising(batch.row, SLOTS, drops=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_rows_train_as_padded_documents_do(name):
    """Loss of each target, gradient of each parameter; prompts are no targets, some contexts are dropped."""
    model, batch = build(name).train(), pack(ROWS, SLOTS)
    batch.is_target[1, :3] = False
    naive = naive_of(model)
    emb, is_target, *drawn = apart(batch, batch.emb, batch.is_target, *drawn_for(model, name, batch))
    if drawn:
        assert drawn[-1][is_target].any(), "some are"
    ours = model.loss(batch).per_target
    theirs = naive.loss(emb, is_target, *([Noising(*drawn)] if len(drawn) == 3 else drawn))
    assert_equal(ours, theirs)

    ours.sum().backward()
    theirs.sum().backward()
    gradients = in_parts({n: p.grad for n, p in model.named_parameters()})
    plain = {n: p.grad for n, p in naive.named_parameters() if n in gradients}
    assert gradients.keys() == plain.keys()
    largest = max(float(g.abs().max()) for g in plain.values())
    for parameter, gradient in gradients.items():
        atol = 1e-5 * float(plain[parameter].abs().max()) + 1e-7 * largest  # a key's bias has no gradient but rounding
        torch.testing.assert_close(
            gradient, plain[parameter], rtol=0, atol=atol, msg=lambda m, p=parameter: f"{p}: {m}"
        )


def noisy(count, seed=2):
    """Concepts to denoise, and a timestep for each, some of them equal."""
    torch.manual_seed(seed)
    return torch.randn(count, DIM), torch.randint(0, 100, (3,))[torch.randint(0, 3, (count,))]


def test_a_table_of_modulations_is_a_modulation_for_every_slot():
    denoiser, (_, t) = build("two_tower").denoiser, noisy(7)
    naive = naive_of(build("two_tower")).denoiser
    steps, which = torch.unique(t, return_inverse=True)
    step = torch.nn.functional.silu(naive.time(t[None]))
    for table, block in zip(denoiser.modulations(steps), naive.blocks, strict=True):
        assert_equal(table[which], block.modulator(step)[0])


def test_self_attention_of_one_slot_needs_neither_queries_nor_keys():
    """Whatever they are: here they are large."""
    model = build("two_tower")
    block, naive = (m.denoiser.blocks[1] for m in (model, naive_of(model)))
    for linear in (naive.self_attention.q, naive.self_attention.k):
        torch.nn.init.normal_(linear.weight, std=5)
    x = torch.randn(2, 6, 16)
    plain = naive.self_attention(x, x, torch.eye(6, dtype=torch.bool))
    assert_equal(block.self_out(block.self_value(x)), plain)
    assert_equal(FastDenoiser.of(model.denoiser).blocks[1].self_attn(x.flatten(0, 1)), plain.flatten(0, 1))


@pytest.mark.parametrize("lengths", [(3, 5), (5, 5)], ids=["ragged", "even"])
@pytest.mark.parametrize("twice", [False, True])
def test_cached_keys_and_values_equal_fresh_ones(lengths, twice):
    """Two rows of context; without it, the same concepts attend to the zero vector alone."""
    denoiser, naive = (m.denoiser for m in (build("two_tower"), naive_of(build("two_tower"))))
    context, (x, _) = torch.randn(2, 5, 16), noisy(2)
    seen = (torch.arange(6) <= torch.tensor(lengths)[:, None])[:, None, None]
    memory, step = Memory(denoiser.project_kv(context), None if seen.all() else seen), FastDenoiser.of(denoiser)
    _, by = step.modulations([60, 40])
    ours, t = step(x, by, memory, twice=twice), torch.tensor([[40]])
    assert len(ours) == (4 if twice else 2)
    nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    for row in range(2):
        concept = x[None, row : row + 1]
        assert_equal(ours[row], naive(concept, t, context[row : row + 1], seen[row : row + 1])[0, 0])
        if twice:
            assert_equal(ours[2 + row], naive(concept, t, context[:1, :0], nothing)[0, 0])
    plain = denoiser(x, denoiser.modulations(torch.tensor([60, 40])), torch.tensor([1, 1]), Memory(memory.layers, seen))
    assert_equal(ours[:2], plain)


def test_zero_modulators_leave_the_outer_layers_alone():
    """Exactly, whatever the timestep and the context (paper §2.3.4: AdaLN-zero)."""
    denoiser, (x, t) = build("two_tower").denoiser, noisy(6)
    for block in denoiser.blocks:
        torch.nn.init.zeros_(block.modulator.weight)
        torch.nn.init.zeros_(block.modulator.bias)
    mask = torch.ones(2, 1, 3, 4, dtype=torch.bool)
    memory = Memory(denoiser.project_kv(torch.randn(2, 3, 16)), mask, torch.arange(6))
    steps, which = torch.unique(t, return_inverse=True)
    out = denoiser(x, denoiser.modulations(steps), which, memory)
    assert torch.equal(out, denoiser.post(denoiser.norm(denoiser.pre(x))))


def start_of(model, name, concepts, seed):
    """The noise or draw of a row's next concept: a function of the prompt's last concept and of the length."""
    prompt, so_far = concepts
    number = prompt_number(model.normalizer(prompt[-1:]))
    draws = Draws(seed, torch.stack([number, torch.tensor([len(so_far)])], dim=1))
    return draws.uniform(0, 3) if name.startswith("quant") else draws.gaussian(0, DIM)


@pytest.mark.parametrize("name", CONFIGS)
def test_generation_equals_the_plain_form(name):
    """Prompts of three lengths side by side, against one at a time; whole loops with guidance, several concepts."""
    model, sampling = build(name), Sampling(seed=5) if name == "base" else Sampling(seed=5, guidance=3.0)
    naive = naive_of(model)
    torch.manual_seed(4)
    prompts = [torch.randn(n, DIM) for n in PROMPTS]
    context, made = model.prefill(prompts), []
    for _ in range(NEW):
        made.append(model.next(context, sampling))
        context = model.extend(context, made[-1])
    ours = torch.stack(made, dim=1)
    for prompt, row in zip(prompts, ours, strict=True):
        so_far = prompt
        for new in row:
            assert_equal(new, plain_next(model, naive, name, prompt, so_far))
            so_far = torch.cat([so_far, new[None]])


def plain_next(model, naive, name, prompt, so_far):
    if name == "base":
        return naive.generate(so_far[None], 1)[0, 0]
    start = start_of(model, name, (prompt, so_far), seed=5)
    if name == "two_tower":
        return naive.generate(so_far[None], [start], DiffusionSampling())[0, 0]
    if name.startswith("quant"):
        return naive.next(
            so_far[None], start, type(model.defaults)(model.defaults.temperature, model.defaults.top_k, 3.0)
        )[0]
    return naive.next(so_far[None], start, DiffusionSampling())[0]


def test_the_plain_form_generates_several_concepts_alike():
    """Two-Tower's is the one that keeps its contextualizer's keys and values."""
    model = build("two_tower")
    torch.manual_seed(4)
    prompts = torch.randn(2, 4, DIM)
    context, made = model.prefill(list(prompts)), []
    for _ in range(NEW):
        made.append(model.next(context, Sampling(seed=5)))
        context = model.extend(context, made[-1])
    number = prompt_number(model.normalizer(prompts[:, -1]))
    keys = [torch.stack([number, torch.full_like(number, 4 + i)], dim=1) for i in range(NEW)]
    noise = [Draws(5, key).gaussian(0, DIM) for key in keys]
    assert_equal(torch.stack(made, dim=1), naive_of(model).generate(prompts, noise, DiffusionSampling()))
