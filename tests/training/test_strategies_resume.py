"""A broken run resumes: bit for bit on as many ranks, and under any other strategy and number of ranks."""

import shutil
from dataclasses import replace

import pytest
import torch
from family_runs import config_of, write_quantizer
from ranks import ENGINES, EVERY_STRATEGY, Run, train_together
from same_run import assert_same_run
from synthetic import write_data

from lcm.models.quantizer import load_quantizer, save_quantizer
from lcm.training.checkpoint import latest, open_checkpoint

ROWS, STEPS, SAVED, BROKEN = 8, 12, 5, 7


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def run_of(data, folder, processes, strategy, *more, breaks=None, dropout=0.0, family="two_tower"):
    changes = [
        f"data.rows={ROWS // processes}",
        f"trainer.devices={processes}",
        f"trainer.strategy={strategy}",
        f"trainer.max_steps={STEPS}",
        f"trainer.checkpoint_every={SAVED}",
        "trainer.validate_every=4",
        "trainer.validation_rows=8",
        *more,
    ]
    return Run(config_of(family, data, folder, None, *changes, dropout=dropout), breaks=breaks)


@pytest.fixture(scope="module")
def same(data, tmp_path_factory):
    """On two ranks, for each strategy: a run, and one that breaks and resumes, with dropout and accumulation."""
    launched = {}

    def runs(engine):
        if engine not in launched:
            folder = launched[engine] = tmp_path_factory.mktemp(engine)
            launch = {}
            settings = ["trainer.accumulate=2", "data.rows=2", "data.workers=2"]
            for strategy in ENGINES[engine]:
                for name, breaks in (("straight", None), ("broken", BROKEN), ("again", None)):
                    run = folder / f"{strategy}-{'straight' if name == 'straight' else 'broken'}"
                    launch[f"{strategy}-{name}"] = run_of(data, run, 2, strategy, *settings, breaks=breaks, dropout=0.2)
            train_together(launch, folder / "logs", 2)
        return launched[engine]

    return runs


@pytest.mark.parametrize(("engine", "strategy"), EVERY_STRATEGY)
def test_a_broken_run_resumes_bit_for_bit(engine, strategy, same):
    folder = same(engine)
    assert_same_run(folder / f"{strategy}-straight", folder / f"{strategy}-broken")
    logs = folder / "logs"
    for rank in (0, 1):
        lines = {
            name: (logs / f"{strategy}-{name}.{rank}.batches").read_text().splitlines()
            for name in ("straight", "broken", "again")
        }
        saved = [line for line in lines["broken"] if int(line.split()[0]) < SAVED]
        assert lines["straight"] == saved + lines["again"], "neither lost nor trained twice"


def test_ranks_that_see_different_checkpoints_do_not_train(data, tmp_path):
    run_of(data, tmp_path / "run", 1, "auto", breaks=BROKEN).here()
    blind = replace(run_of(data, tmp_path / "run", 2, "ddp"), spoils=(1, 0, "resume"))
    with pytest.raises(AssertionError, match=r"rank 0 begins after step 5, rank 1 after step 0; run.dir=.* must"):
        train_together({"blind": blind}, tmp_path / "logs", 2)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    run_of(data, folder, 1, "auto").here()
    return folder


CHANGES = [(1, 2), (2, 1), (2, 4), (4, 2)]


@pytest.fixture(scope="module")
def changed(data, tmp_path_factory):
    """Runs that broke and resumed on another number of ranks, for every strategy of an engine."""
    finished = {}

    def runs(engine):
        if engine not in finished:
            folder = finished[engine] = tmp_path_factory.mktemp(engine)
            strategies = ENGINES[engine]
            for before in (1, 2, 4):
                broken = {s: run_of(data, folder / f"{s}-{before}", before, s, breaks=BROKEN) for s in strategies}
                train_together(broken, folder / f"broken{before}", before)
            for before, after in CHANGES:
                for s in strategies:
                    shutil.copytree(folder / f"{s}-{before}", folder / f"{s}-{before}-{after}")
            for after in (1, 2, 4):
                resumed = {
                    f"{s}-{b}-{a}": run_of(data, folder / f"{s}-{b}-{a}", a, s)
                    for b, a in CHANGES
                    for s in strategies
                    if a == after
                }
                train_together(resumed, folder / f"resumed{after}", after)
        return finished[engine]

    return runs


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), CHANGES)
@pytest.mark.parametrize(("engine", "strategy"), EVERY_STRATEGY)
def test_a_run_resumes_on_another_number_of_ranks(engine, strategy, before, after, changed, straight):
    assert_continued(changed(engine) / f"{strategy}-{before}-{after}", straight)


def test_fsdp_resumes_from_a_checkpoint_of_one_rank(data, straight, tmp_path):
    """A checkpoint does not depend on the strategy that wrote it."""
    run_of(data, tmp_path / "run", 1, "auto", breaks=BROKEN).here()
    shutil.copytree(tmp_path / "run", tmp_path / "two")
    train_together({"fsdp": run_of(data, tmp_path / "two", 2, "fsdp")}, tmp_path / "logs", 2)
    assert_continued(tmp_path / "two", straight)


@pytest.mark.slow
def test_codebooks_come_from_the_checkpoint_even_if_their_file_has_changed(data, tmp_path):
    """The tables derived from them, which are in no checkpoint, come back too, also where the model is sharded."""
    quantizer = write_quantizer(data, tmp_path / "quantizer.safetensors")

    def run(name, processes, strategy, breaks=None):
        settings = [f"data.rows={ROWS // processes}", f"trainer.devices={processes}", f"trainer.strategy={strategy}"]
        more = [f"trainer.max_steps={STEPS}", f"trainer.checkpoint_every={SAVED}", "trainer.validation_rows=8"]
        config = config_of("quant_d", data, tmp_path / name, quantizer, *settings, *more, dropout=0.0)
        return Run(config, breaks=breaks)

    run("alone", 1, "auto", BROKEN).here()
    shutil.copytree(tmp_path / "alone", tmp_path / "sliced")
    fitted, record = load_quantizer(quantizer)
    fitted.set(fitted.codebooks.flip(1) * 3)
    save_quantizer(quantizer, fitted, record)
    run("alone", 1, "auto").here()
    train_together({"sliced": run("sliced", 2, "fsdp")}, tmp_path / "logs", 2)
    assert_continued(tmp_path / "sliced", tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.needs("deepspeed")
def test_deepspeed_ddp_and_fsdp_resume_from_one_another(data, straight, tmp_path):
    steps = ["deepspeed_3", "ddp", "deepspeed_2", "fsdp"]
    launch = {}
    for number, strategy in enumerate(steps):
        last = number == len(steps) - 1
        every = f"trainer.checkpoint_every={2}"
        breaks = None if last else 3 + 2 * number
        launch[strategy] = run_of(data, tmp_path / "run", 2, strategy, every, breaks=breaks)
    train_together(launch, tmp_path / "logs", 2)
    assert_continued(tmp_path / "run", straight)


def assert_continued(run, straight):
    """Weights, moments and position equal those of an unbroken run on one rank."""
    found, wanted = open_checkpoint(latest(run)), open_checkpoint(latest(straight))
    assert found["global_step"] == wanted["global_step"] == STEPS
    assert found["ConceptData"] == wanted["ConceptData"]
    torch.testing.assert_close(found["state_dict"], wanted["state_dict"], rtol=1e-4, atol=1e-5)
    states = (found["optimizer_states"][0]["state"], wanted["optimizer_states"][0]["state"])
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-5)
