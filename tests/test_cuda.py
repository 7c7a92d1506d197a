"""Every model family computes on a GPU what it computes on the CPU: losses, gradients and concepts."""

import os
import subprocess
import sys

import pytest
import torch
from families import DIFFUSING, FAMILIES, build, close, generate, sampling
from on_cuda import CUDA, SEARCHED, exact_products, needs_cuda
from synthetic import DIM, pack
from torch.nn.attention import SDPBackend, sdpa_kernel

from lcm.inference.loop import StopRules
from lcm.inference.loop import generate as generate_until

pytestmark = needs_cuda
assert exact_products()

ROWS, SLOTS = [[3, 1, 4], [8], [2, 2], []], 10
every_family = pytest.mark.parametrize("family", FAMILIES)


def losses_of(family, device, precision=None):
    """The loss of each target and, by name, the gradients of their sum; in training mode, to drop contexts."""
    model, batch = build(family).train().to(device), pack(ROWS, SLOTS).to(device)
    with torch.autocast(torch.device(device).type, precision or torch.bfloat16, enabled=precision is not None):
        losses = model.loss(batch)
    losses.per_target.sum().backward()
    meters = {name: values.cpu() for name, values in losses.meters.items()}
    return losses.per_target.detach().cpu(), meters, {n: p.grad.cpu() for n, p in model.named_parameters()}


def close_gradients(found, expected, tolerance):
    """To a fraction of the largest number of each, or, where all of it is rounding, of a hundredth of the largest."""
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        atol = tolerance * max(gradient.abs().max().item(), 0.01 * largest)
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@every_family
def test_losses_meters_and_gradients_are_the_cpus(family):
    (found, meters, gradients), (expected, other_meters, other_gradients) = (
        losses_of(family, d) for d in (CUDA, "cpu")
    )
    close(found, expected, 1e-4)
    for name, values in other_meters.items():
        close(meters[name], values, 1e-4)
    close_gradients(gradients, other_gradients, 1e-4)


@every_family
def test_losses_under_bf16_autocast_are_within_two_percent(family):
    """Two percent of the mean loss. Losses are fp32 all the same, and all gradients are finite."""
    found, _, gradients = losses_of(family, CUDA, torch.bfloat16)
    expected = losses_of(family, CUDA)[0]
    assert found.dtype == torch.float32
    assert found.mean().item() == pytest.approx(expected.mean().item(), rel=0.02)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@every_family
def test_predictions_are_the_cpus(family):
    """The noise comes from the CPU's generators, so these are the same concepts, not only as good ones."""
    batch = pack(ROWS, SLOTS)
    expected = build(family).predict(batch, sampling(family, seed=3))
    found = build(family).to(CUDA).predict(batch.to(CUDA), sampling(family, seed=3))
    close(found.cpu(), expected, 1e-4)


def prompts(device):
    torch.manual_seed(4)
    return [torch.randn(n, DIM).to(device) for n in (3, 1, 6)]


@every_family
def test_generation_makes_the_cpus_concepts(family):
    """Prompts of three lengths; enough new concepts for the caches to grow."""
    expected = generate(build(family), prompts("cpu"), 5, sampling(family, seed=3))
    found = generate(build(family).to(CUDA), prompts(CUDA), 5, sampling(family, seed=3))
    close(found.cpu(), expected, 1e-3)


@pytest.mark.parametrize("family", DIFFUSING)
def test_dpm_makes_the_cpus_concepts(family):
    settings = sampling(family, seed=3, sampler="dpm")
    expected = generate(build(family), prompts("cpu"), 2, settings)
    close(generate(build(family).to(CUDA), prompts(CUDA), 2, settings).cpu(), expected, 1e-3)


@every_family
def test_rows_that_are_over_leave_the_batch_on_both(family):
    """The second concept of the second prompt is made the end of text."""
    settings, stop = (
        sampling(family, seed=3),
        StopRules(max_sentences=4, end_threshold=0.999, repetition_threshold=None),
    )
    end = generate(build(family), prompts("cpu"), 2, settings)[1, 1]
    results = []
    for device in ("cpu", CUDA):
        model = build(family)
        model.end_of_text.copy_(end)
        results.append(generate_until(model.to(device), prompts(device), stop, settings))
    expected, found = results
    assert expected[1].reason == "end"
    assert [result.reason for result in found] == [result.reason for result in expected]
    for one, two in zip(found, expected, strict=True):
        close(one.vectors.cpu(), two.vectors, 1e-3)


def test_compiled_losses_and_gradients_are_the_eager_ones():
    """Compiled like trainer.compile; in another process, because the tests' shape checks cannot be compiled."""
    script = """
import torch
from families import build
from synthetic import pack
from tiny_training import config_with
from lcm.training.module import LCMModule
batch = pack([[3, 1, 4], [8], [2, 2]], 10).to("cuda")
for family in ("base", "two_tower", "one_tower"):
    results = []
    for compile in ("false", "true"):
        module = LCMModule(config_with(f"trainer.compile={compile}"), build(family).train().to("cuda"))
        loss = module.model.loss(batch).per_target
        loss.sum().backward()
        results.append([loss.detach(), [p.grad for p in module.parameters()]])
    compiled = [m for m in module.modules() if m._compiled_call_impl is not None]
    assert compiled, family
    largest = max(float(g.abs().max()) for g in results[0][1])
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-4 * largest)
    print(family, len(compiled))
"""
    environment = {**os.environ, "PYTHONPATH": SEARCHED}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[::2] == ["base", "two_tower", "one_tower"]


@every_family
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_attention_is_the_same_by_every_kernel_that_takes_a_mask(family, precision):
    """Flash attention takes none; one_tower and quant have one attention that is written out, which is no kernel."""
    half = precision != torch.float32
    found = []
    for kernel in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(kernel):
            found.append(losses_of(family, CUDA, precision if half else None))
    close(found[0][0], found[1][0], 0.03 if half else 1e-5)
    if not half:
        close_gradients(found[0][2], found[1][2], 1e-4)
