"""The memory estimates of `lcm plan` match measurements: of ranks on CPUs, and of a GPU in docs/benchmarks.md."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import config as tiny_model
from family_runs import config_of
from peak import STEPS, peaks
from synthetic import tiny_config, write_data
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lcm.config import load_config
from lcm.plan.memory import STRATEGIES, usage
from lcm.plan.simulation import LiveMemory, SimulatedStep, simulate
from lcm.training.engine import SHARDED

ROOT = Path(__file__).parents[2]
WIDTHS = {
    "base": {"layers": 8},
    "two_tower": {"context_layers": 3, "denoiser_layers": 4},
    "one_tower": {"layers": 6},
}
GB = 10**9


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Enough documents to fill four steps."""
    return write_data(tmp_path_factory.mktemp("data"), documents=3000, validation=0)


def run_of(data, folder, family, *changes, processes=1, dropout=0.0):
    every = (f"trainer.max_steps={STEPS}", "trainer.checkpoint_every=99", "trainer.validate_every=99")
    size = (f"trainer.devices={processes}", "data.slots=64", "data.rows=12")
    model = {"width": 384, "heads": 4, "dropout": dropout, **WIDTHS[family]}
    if family == "one_tower":
        model["max_positions"] = 64
    return config_of(family, data, folder / "run", None, *every, *size, *changes, **model)


def slow(*case, marks=()):
    return pytest.param(*case, marks=[pytest.mark.slow, *marks])


RECOMPUTED, BF16 = "trainer.checkpoint_activations=true", "trainer.precision=bf16"
ZERO = pytest.mark.needs("deepspeed")


@pytest.mark.parametrize(
    ("family", "strategy", "changes"),
    [
        ("base", "single", ()),
        slow("base", "single", ("trainer.accumulate=2", "data.rows=6")),
        slow("two_tower", "single", (RECOMPUTED,)),
        slow("one_tower", "single", ()),
        slow("base", "ddp", ()),
        slow("two_tower", "fsdp", (RECOMPUTED,)),
        *(slow("two_tower", f"deepspeed_{stage}", (RECOMPUTED,), marks=[ZERO]) for stage in (1, 2, 3)),
    ],
)
def test_estimates_match_the_memory_of_a_rank(data, tmp_path, family, strategy, changes):
    """Within 5%. The estimate counts every slot as full; packing leaves 1% of them empty."""
    processes = 1 if strategy == "single" else 2
    name = "auto" if strategy == "single" else strategy
    config = run_of(data, tmp_path, family, *changes, f"trainer.strategy={name}", processes=processes)
    step = simulate(config, "cpu", sharded=strategy in SHARDED)
    estimate = usage(step, strategy, processes, accumulate=config.trainer.accumulate, device="cpu").total
    for measured in peaks(config, tmp_path, processes):
        assert estimate == pytest.approx(measured, rel=0.05)
        difference = f"measured {measured / 2**20:.0f} MiB, estimated {estimate / measured - 1:+.1%}"
        print(f"{family} {strategy} {changes}: {difference}")


def on_a_gpu():
    """The runs of docs/benchmarks.md as (config, blocks are recomputed, rows, GB)."""
    names = {"Base-LCM": "base", "Two-Tower": "two_tower", "One-Tower": "one_tower"}
    text = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    row = r"^\| (Base-LCM|Two-Tower|One-Tower) \| (as it is|blocks recomputed) \| (\d+) \|(?: [\d,.%]+ \|){3} (\d+) \|"
    found = re.findall(row, text, flags=re.MULTILINE)
    return [(names[family], how == "blocks recomputed", int(rows), int(gb)) for family, how, rows, gb in found]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "recomputed", "rows", "gb"), on_a_gpu())
def test_estimates_match_the_memory_of_a_gpu(family, recomputed, rows, gb):
    """benchmarks/gpu.py clears the gradients before the forward pass, so they do not count in it."""
    changes = [f"data.rows={rows}", f"trainer.checkpoint_activations={str(recomputed).lower()}"]
    step = simulate(load_config(ROOT / f"configs/{family}_1.6b.yaml", changes))
    estimate = 12 * step.parameters + step.buffers + max(step.forward, step.backward_all_grads)
    assert estimate / GB == pytest.approx(gb, rel=0.03)


def test_there_are_five_measured_runs_on_a_gpu():
    assert len(on_a_gpu()) == 5


# ---- by hand ----

STEP = SimulatedStep(
    parameters=1000, buffers=10, units=(300, 400, 300), forward=50_000, backward=50_000, backward_all_grads=52_000
)  # fmt: skip


@pytest.mark.parametrize("processes", [2, 4])
def test_weights_gradients_and_moments_are_copied_or_sharded(processes):
    w = 4000
    by_hand = {
        "ddp": (w + 10, w, 2 * w),
        "fsdp": (w / processes + 10, w / processes, 2 * w / processes),
        "deepspeed_1": (w + w / processes + 10, w, 2 * w / processes),
        "deepspeed_2": (w + w / processes + 10, w / processes, 2 * w / processes),
        "deepspeed_3": (2 * w / processes + 10, w / processes, 2 * w / processes),
    }
    for name in STRATEGIES:
        used = usage(STEP, name, processes, device="cpu")
        assert (used.weights, used.gradients, used.optimizer) == by_hand[name], name


def test_offloading_leaves_no_moments_on_the_gpu():
    here, there = (usage(STEP, "deepspeed_2", 2, offload=offload) for offload in (False, True))
    assert (here.optimizer, there.optimizer) == (4000, 0)
    assert here.total - there.total == 4000 + 2000, "nor the copy of the weights that AdamW updates"


def test_live_storages_count_once_and_weights_do_not():
    linear, x = nn.Linear(100, 10), torch.zeros(50, 100)
    with LiveMemory(linear) as live:
        out = linear(x).relu()
        assert live.peak == 2 * 4 * 50 * 10, "before and after relu, which keeps the latter alone"
        torch.autograd.backward(out.view(-1).sum())
    by_hand = {"out": 50 * 10, "its gradient": 50 * 10, "weight's": 100 * 10, "bias's": 10, "the sum, and its": 2}
    assert live.peak == 4 * sum(by_hand.values())


def test_ddp_rebuilds_its_buckets_in_the_second_step(tmp_path):
    """The old ones still hold the gradients then, because Lightning clears them after the forward pass."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        linear, x = nn.Linear(1000, 1000), torch.zeros(1, 1000)
        copies = DistributedDataParallel(linear, gradient_as_bucket_view=True)
        with LiveMemory(linear) as live:
            for step in range(3):
                live.peak = live._now
                before = live._now
                loss = copies(x).sum()
                made = live.peak - before
                linear.zero_grad()
                loss.backward()
                assert (made >= 4 * 1001 * 1000) == (step == 1), step
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("family", ["base", "two_tower", "one_tower", "quant_c", "quant_d"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_family_is_simulated_and_grows_with_its_rows(family, device):
    config = tiny_config(Path("unused"), Path("unused"), "data.rows=4", "data.slots=16")
    config = config.model_copy(update={"model": tiny_model(family, dropout=0.1, width=64, heads=2)})
    twice = config.model_copy(update={"data": config.data.model_copy(update={"rows": 8})})
    recomputed = config.model_copy(
        update={"trainer": config.trainer.model_copy(update={"checkpoint_activations": True})}
    )
    few, more, less = (simulate(c, device) for c in (config, twice, recomputed))
    assert few.parameters == sum(few.units)
    assert 1.8 * few.forward < more.forward <= 2.05 * few.forward
    assert less.forward < 0.7 * few.forward


def test_recomputed_blocks_of_a_sharded_model_cast_their_own_weights():
    """Otherwise autocast keeps a copy of every weight until the pass is over."""
    config = tiny_config(Path("unused"), Path("unused"), "data.rows=2", "data.slots=16", RECOMPUTED, BF16)
    config = config.model_copy(update={"model": tiny_model("base", width=256, heads=2, layers=8)})
    whole, sliced = simulate(config), simulate(config, sharded=True)
    assert whole.forward - sliced.forward > 0.8 * 2 * whole.parameters


def test_rows_beyond_the_noise_limit_are_extrapolated(monkeypatch):
    config = tiny_config(Path("unused"), Path("unused"), "data.rows=12", "data.slots=32")
    whole = simulate(config)
    monkeypatch.setattr("lcm.plan.simulation.MAX_NOISE", 8 * 32 * config.model.dim)
    assert simulate(config) == whole


def test_fsdp_takes_the_larger_of_both_passes():
    block, rest, shard, reduced = 1600, 1200, 2000, 50_000 + 2000 // 2
    used = usage(STEP, "fsdp", 2)
    assert (used.activations, used.engine) == (reduced - shard, rest + 3 * block), "the backward pass"
    used = usage(replace(STEP, forward=60_000), "fsdp", 2)
    assert (used.activations, used.engine) == (60_000, rest + 2 * block), "the forward pass"


def test_dropout_keeps_a_byte_a_number_on_a_gpu():
    config = tiny_config(Path("unused"), Path("unused"), "data.rows=4", "data.slots=16")
    without, dropped = (
        simulate(config.model_copy(update={"model": tiny_model("base", width=64, heads=2, dropout=p)})).forward
        for p in (0.0, 0.1)
    )
    layers = tiny_model("base").layers
    assert dropped - without == 2 * layers * 4 * 16 * 64
