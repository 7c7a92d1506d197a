"""Training equals training on one rank, whatever the strategy and the number of ranks."""

import csv
from itertools import chain, product

import pytest
import torch
from family_runs import config_of
from ranks import ENGINES, EVERY_STRATEGY, Run, train_together
from synthetic import write_data

from lcm.errors import UserError
from lcm.models import load_model
from lcm.training.checkpoint import latest, open_checkpoint
from lcm.training.engine import choose

FAMILIES = ("base", "two_tower")
ROWS = 16
"""Rows per step, of all ranks together."""
STEPS = 20
QUICK = ("two_tower", 4)
"""Family and accumulation of the fast tests, on two ranks."""
LAUNCHES = {
    2: ((QUICK,), (("base", 1), ("base", 4), ("two_tower", 1))),
    4: ((("base", 1), QUICK),),
}
"""Families and accumulations that one launch trains, by number of ranks."""


def run_of(family, data, folder, processes, strategy, accumulate=1, sgd=False, *more):
    """Adam's eps is ten times the default: a key's bias has almost no gradient, whose rounding Adam would amplify."""
    changes = [
        f"data.rows={ROWS // processes // accumulate}",
        f"trainer.accumulate={accumulate}",
        f"trainer.devices={processes}",
        f"trainer.strategy={strategy}",
        f"trainer.max_steps={1 if sgd else STEPS}",
        "trainer.validation_rows=16",
        "trainer.validate_every=10",
        *(["optimizer.lr=1", "optimizer.warmup_steps=0", "optimizer.clip=0"] if sgd else ["optimizer.eps=1e-4"]),
        *more,
    ]
    return Run(config_of(family, data, folder, None, *changes, dropout=0.0), sgd)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """Runs on one rank, by family and optimizer."""
    folder = tmp_path_factory.mktemp("alone")
    for family in FAMILIES:
        for sgd in (False, True):
            run_of(family, data, folder / f"{family}-{sgd}", 1, "auto", sgd=sgd).here()
    return lambda family, sgd: folder / f"{family}-{sgd}"


@pytest.fixture(scope="module")
def together(data, tmp_path_factory):
    """Runs on several ranks; a launch trains many of them when the first one is needed."""
    launched = {}

    def name_of(strategy, family, accumulate, sgd):
        return f"{strategy}-{family}-{accumulate}-{sgd}"

    def run(processes, engine, *which):
        (together,) = (cases for cases in LAUNCHES[processes] if which[1:3] in cases)
        if (key := (processes, engine, together)) not in launched:
            folder = launched[key] = tmp_path_factory.mktemp(f"{engine}{processes}")
            runs = {}
            for strategy, (family, accumulate), sgd in product(ENGINES[engine], together, (False, True)):
                name = name_of(strategy, family, accumulate, sgd)
                runs[name] = run_of(family, data, folder / name, processes, strategy, accumulate, sgd)
            train_together(runs, folder / "logs", processes)
        return launched[key] / name_of(*which)

    return run


def losses(run, name):
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


by_case = pytest.mark.parametrize(
    ("processes", "family", "accumulate"),
    [
        pytest.param(processes, *case, marks=[] if (processes, case) == (2, QUICK) else [pytest.mark.slow])
        for processes, launches in LAUNCHES.items()
        for case in chain(*launches)
    ],
)


@by_case
@pytest.mark.parametrize(("engine", "strategy"), EVERY_STRATEGY)
def test_losses_equal_those_of_one_rank(processes, family, accumulate, engine, strategy, alone, together):
    run = together(processes, engine, strategy, family, accumulate, False)
    for name in ("train/loss", "train/gradient_norm", "val/loss"):
        found, wanted = losses(run, name), losses(alone(family, False), name)
        assert len(found) == (2 if name == "val/loss" else STEPS)
        assert found == pytest.approx(wanted, rel=1e-5), name
    one, other = load_model(run)[0].state_dict(), load_model(alone(family, False))[0].state_dict()
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@by_case
@pytest.mark.parametrize(("engine", "strategy"), EVERY_STRATEGY)
def test_gradients_equal_those_of_one_rank(processes, family, accumulate, engine, strategy, alone, together):
    """Plain SGD with a learning rate of 1 subtracts the gradient: Adam would hide a wrong factor."""
    run = together(processes, engine, strategy, family, accumulate, True)
    found, wanted = (open_checkpoint(latest(r))["state_dict"] for r in (run, alone(family, True)))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def with_setting(data, tmp_path_factory):
    """Runs on two ranks with a setting of the trainer; one launch for each engine."""
    launched = {}

    def run(engine, strategy, setting):
        if (engine, setting) not in launched:
            folder = launched[engine, setting] = tmp_path_factory.mktemp(engine)
            refused = ("deepspeed_3",) if setting == "compile" else ()
            runs = {
                name: run_of("two_tower", data, folder / name, 2, name, 1, False, f"trainer.{setting}=true")
                for name in ENGINES[engine]
                if name not in refused
            }
            train_together(runs, folder / "logs", 2)
        return launched[engine, setting] / strategy

    return run


def assert_trained_as_alone(run, alone):
    assert losses(run, "train/loss") == pytest.approx(losses(alone("two_tower", False), "train/loss"), rel=1e-5)
    one, other = load_model(run)[0].state_dict(), load_model(alone("two_tower", False))[0].state_dict()
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "strategy"), EVERY_STRATEGY)
def test_activations_are_recomputed_with_every_engine(engine, strategy, alone, with_setting):
    assert_trained_as_alone(with_setting(engine, strategy, "checkpoint_activations"), alone)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "strategy"), EVERY_STRATEGY)
def test_models_are_compiled_with_every_engine(engine, strategy, alone, with_setting, data, tmp_path):
    if strategy == "deepspeed_3":
        with pytest.raises(UserError, match=r"not with trainer.compile=true; take fsdp"):
            run_of("two_tower", data, tmp_path, 2, strategy, 1, False, "trainer.compile=true").here()
        return
    assert_trained_as_alone(with_setting(engine, strategy, "compile"), alone)


@pytest.mark.slow
@pytest.mark.needs("deepspeed")
@pytest.mark.parametrize("strategy", ENGINES["deepspeed"])
def test_the_optimizer_state_can_be_offloaded_to_host_memory(strategy, alone, with_setting):
    assert_trained_as_alone(with_setting("deepspeed", strategy, "offload"), alone)


@pytest.mark.parametrize("strategy", ENGINES["torch"])
def test_offloading_is_refused_without_deepspeed(strategy, data, tmp_path):
    with pytest.raises(UserError, match=r"trainer\.offload=true: .* take deepspeed_2 or deepspeed_3"):
        run_of("base", data, tmp_path, 2, strategy, 1, False, "trainer.offload=true").here()


def test_auto_takes_ddp_where_it_fits_and_says_why():
    gpu = 80 * 2**30
    assert choose("auto", 10**9, gpu, 1) == ("single", "there is one process")
    name, reason = choose("auto", 1_649_185_792, gpu, 8)
    assert (name, reason) == ("ddp", "weights, gradients and AdamW take 24.6 of 80.0 GiB of each device")
    name, reason = choose("auto", 7_000_000_000, gpu, 8)
    assert (name, "104.3 of 80.0 GiB" in reason) == ("fsdp", True)
    assert choose("deepspeed_2", 10, gpu, 8) == ("deepspeed_2", "as trainer.strategy says")
