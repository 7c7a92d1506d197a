"""`lcm plan`: its numbers by hand, one line for a job that does not fit, and a change under which it does."""

import re
import shlex
from pathlib import Path

import pytest
from synthetic import DIM, tiny_config, write_data

from lcm.cli import main
from lcm.config import save_config
from lcm.data.manifest import open_dataset
from lcm.plan.simulation import SimulatedStep
from lcm.training.checkpoint import checkpoint_bytes

ROOT = Path(__file__).parents[2]
SEVEN, ONE_AND_A_HALF = str(ROOT / "configs/two_tower_7b.yaml"), str(ROOT / "configs/base_1.6b.yaml")
GIB = 2**30


def table(out):
    """The table as strategy → (numbers in GiB, fits)."""
    rows = re.findall(r"^(\w+) +((?:[\d.]+ +){6})(fits|too much)", out, flags=re.MULTILINE)
    return {name: ([float(n) for n in numbers.split()], verdict == "fits") for name, numbers, verdict in rows}


@pytest.fixture
def tiny(tmp_path):
    """A Base-LCM of 110 thousand parameters, whose activations take far more memory."""
    config = tiny_config(Path("unused"), tmp_path / "run", "data.rows=64", "data.slots=128", "data.path=[]")
    model = config.model.model_copy(update={"width": 64, "layers": 2})
    save_config(config.model_copy(update={"model": model}), tmp_path / "tiny.yaml")
    return str(tmp_path / "tiny.yaml")


def test_the_largest_configuration_by_hand(capsys):
    assert main(["plan", "--config", SEVEN, "--nodes", "32"]) == 0
    out = capsys.readouterr().out
    parameters, gpus = 6_460_904_960, 256
    assert f"{parameters:,} parameters" in out
    assert "124,000 steps of 1,048,576 concepts: 130,023,424,000" in out
    flops = float(re.search(r"([\d.]+) GFLOPs", out)[1]) * 1e9
    speed = 0.4 * 989.4e12 / flops
    days = float(re.search(r"([\d.]+) days", out)[1])
    assert days == pytest.approx(124_000 * 1_048_576 / (speed * gpus) / 86_400, abs=0.01)
    assert f"{2048 * speed / 1e6:.3g} MB/s a process, {8 * 2048 * speed / 1e6:.3g} MB/s a node" in out
    assert "2.05 TB a billion concepts; 266 TB if none is seen twice" in out
    assert f"at most {(3 * 12 + 8) * parameters / 1e9:.3g} GB" in out
    documented = (ROOT / "docs/distributed.md").read_text(encoding="utf-8")
    assert out.split("\n\n")[0] in documented
    assert out.replace(f"{ROOT}/", "").splitlines()[-1] in documented
    found = table(out)
    for name, (numbers, _) in table(documented).items():
        assert found[name][0] == pytest.approx(numbers, rel=0.02, abs=0.02), "another torch may differ a little"
    whole = 4 * parameters / GIB
    by_hand = {
        "ddp": (whole, whole, 2 * whole),
        "fsdp": (whole / gpus, whole / gpus, 2 * whole / gpus),
        "deepspeed_1": (whole + whole / gpus, whole, 2 * whole / gpus),
        "deepspeed_2": (whole + whole / gpus, whole / gpus, 2 * whole / gpus),
        "deepspeed_3": (2 * whole / gpus, whole / gpus, 2 * whole / gpus),
    }
    for name, expected in by_hand.items():
        numbers, fits = found[name]
        assert numbers[:3] == pytest.approx(expected, abs=0.01), name
        assert sum(numbers[:5]) == pytest.approx(numbers[5], abs=0.03), name
        assert fits == (numbers[5] + 1.5 <= 79.1), name
    assert "←" in next(line for line in out.splitlines() if line.startswith("fsdp"))
    # Every process has all weights once more in bf16, from the forward pass to the backward pass.
    assert found["fsdp"][0][3] > whole / 2


def test_sixteen_bytes_a_parameter_and_six_flops(monkeypatch, capsys):
    parameters = 1_649_185_792
    step = SimulatedStep(parameters, 0, units=(parameters, 0), forward=GIB, backward=GIB, backward_all_grads=GIB)
    monkeypatch.setattr("lcm.plan.memory.simulate", lambda config, sharded=False: step)
    assert main(["plan", "--config", ONE_AND_A_HALF, "--nodes", "4", "--data.rows", "8"]) == 0
    out = capsys.readouterr().out
    flops = 6 * 1_649_185_792 + 12 * 32 * 2048 * 128
    assert f"{flops / 1e9:.2f} GFLOPs a concept" in out
    numbers, fits = table(out)["ddp"]
    assert sum(numbers[:3]) == pytest.approx(16 * 1_649_185_792 / GIB, abs=0.02)
    assert fits
    assert "←" in next(line for line in out.splitlines() if line.startswith("ddp"))


def message(words, capsys):
    assert main(["plan", *words]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def the_way_out(line):
    return shlex.split(re.search(r"this does: (.*) \([\d.]+ GiB\)", line)[1])


def test_a_job_that_does_not_fit_names_fewer_rows_that_do(tiny, capsys):
    words = ["--config", tiny, "--memory", "1.55", "--gpus-per-node", "1"]
    line = message(words, capsys)
    assert "does not fit: single takes" in line
    found = the_way_out(line)
    assert found[0] == "--data.rows"
    assert main(["plan", *words, *found]) == 0
    assert main(["plan", *words, "--data.rows", str(int(1.25 * int(found[1])) + 1)]) == 1


def test_a_job_that_does_not_fit_names_another_strategy_that_does(capsys):
    words = ["--config", SEVEN, "--trainer.strategy", "ddp"]
    line = message(words, capsys)
    assert "ddp takes 1" in line
    assert the_way_out(line) == ["--trainer.strategy", "fsdp"]
    assert main(["plan", *words, *the_way_out(line)]) == 0


def test_the_line_to_submit_a_job_that_fits_has_its_nodes_tasks_and_settings(tmp_path, tiny, capsys):
    config = tmp_path / "with space.yaml"
    config.write_text(Path(tiny).read_text())
    settings = ["--data.rows", "1", "--run.dir=runs/a b"]
    assert main(["plan", "--nodes", "2", "--config", str(config), "--gpus-per-node", "4", *settings]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    layout = ["--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4"]
    assert shlex.split(line) == ["sbatch", *layout, "slurm/train.sbatch", str(config), *settings]


def test_a_job_that_needs_more_gpus_names_how_many(tiny, capsys):
    """Weights, gradients and moments alone do not fit on one GPU, nor on two."""
    words = ["--config", tiny, "--gpus-per-node", "1", "--model.width", "512", "--data.rows", "1", "--data.slots", "2"]
    line = message([*words, "--memory", "1.56"], capsys)
    found = the_way_out(line)
    assert found[0] in ("--nodes", "--gpus-per-node")
    assert main(["plan", *words, "--memory", "1.56", *found]) == 0


def test_a_job_that_fits_in_no_way_is_refused(tiny, capsys):
    assert "take a smaller model" in message(["--config", tiny, "--memory", "1.5"], capsys)


def test_strategies_that_are_refused_in_training_are_refused_here(tmp_path, capsys):
    config = str(ROOT / "configs/one_tower_toy.yaml")
    assert "deepspeed_3: not for model.kind" in message(
        ["--config", config, "--trainer.strategy", "deepspeed_3"], capsys
    )


def test_the_epochs_of_prepared_data_are_counted(tmp_path, capsys):
    data = write_data(tmp_path / "data")
    save_config(tiny_config(data, tmp_path / "run", "data.rows=2"), tmp_path / "run.yaml")
    assert main(["plan", "--config", str(tmp_path / "run.yaml"), "--gpus-per-node", "2"]) == 0
    out = capsys.readouterr().out
    concepts = sum(shard.concepts for shard in open_dataset(data).shards("train"))
    trained = 12 * 2 * 12 * 2
    assert f"{concepts * 2 * DIM / 1000:.3g} kB: {concepts:,} concepts, each seen {trained / concepts:.2f} times" in out
    assert "model.dim=16, but" in message(["--config", str(tmp_path / "run.yaml"), "--model.dim", "16"], capsys)


def test_the_epochs_of_each_set_of_a_mixture_are_counted(tmp_path, capsys):
    sets = [write_data(tmp_path / "one"), write_data(tmp_path / "two", 90)]
    mix = f"[{{path: {sets[0]}, weight: 3}}, {{path: {sets[1]}, weight: 1}}]"
    save_config(tiny_config("", tmp_path / "run", "--data.path", "[]", "--data.mix", mix), tmp_path / "run.yaml")
    assert main(["plan", "--config", str(tmp_path / "run.yaml")]) == 0
    sizes = [sum(shard.concepts for shard in open_dataset(data).shards("train")) for data in sets]
    trained = 12 * 2 * 12 * 8
    times = [share * trained / size for share, size in zip((0.75, 0.25), sizes, strict=True)]
    said = ", ".join(f"those of {data} {seen:.2f} times" for data, seen in zip(sets, times, strict=True))
    assert f"{sum(sizes):,} concepts; seen: {said}" in capsys.readouterr().out


def test_checkpoint_sizes_are_those_checked_before_training():
    assert checkpoint_bytes(1000, keep=1) == 36_000 + 8_000
    assert checkpoint_bytes(1000, keep=3) == 60_000 + 8_000


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--gpu", "h1000"], "--gpu=h1000: expected one of h100, "),
        (["--gpu", "v100 sxm", "--memory", "32"], "does not compute in trainer.precision=bf16"),
        (["--mfu", "40"], "--mfu=40: expected a number above 0, and 1 at most"),
        (["--mfu", "much"], "--mfu=much: expected a number"),
        (["--memory", "-3"], "--memory=-3: expected a number above 0"),
        (["--nodes", "0"], "--nodes=0: expected a whole number from 1"),
        (["--gpus-per-node", "2.5"], "--gpus-per-node=2.5: expected a whole number from 1"),
        (["--trainer.max_step", "5"], "did you mean 'trainer.max_steps'?"),
    ],
)
def test_a_mistake_is_one_line(words, expected, capsys):
    assert expected in message(["--config", SEVEN, *words], capsys)


@pytest.mark.parametrize(("gpu", "precision"), [("h100", "bf16"), ("v100 sxm", "fp32")])
def test_precision_auto_is_that_of_the_gpu(tiny, gpu, precision, capsys):
    words = ["plan", "--config", tiny, "--gpu", gpu, "--memory", "32"]
    assert main([*words, "--trainer.precision", "auto"]) == 0
    auto = capsys.readouterr().out
    assert main([*words, "--trainer.precision", precision]) == 0
    asked, submitted = capsys.readouterr().out.split("\nsbatch ")
    assert auto.startswith(asked)
    assert submitted.endswith(f"--trainer.precision {precision}\n")
    assert f" in {precision}" in auto


def test_faster_gpus_and_a_better_utilisation_take_fewer_days(tiny, capsys):
    def days(*words):
        assert main(["plan", "--config", tiny, "--trainer.max_steps", "1000000000000", *words]) == 0
        return float(re.search(r"([\d.,]+) days", capsys.readouterr().out)[1].replace(",", ""))

    fast = ["--trainer.precision", "bf16"]
    assert days("--mfu", "0.2", *fast) == pytest.approx(2 * days("--mfu", "0.4", *fast), rel=1e-3)
    assert days("--gpu", "a100", *fast) == pytest.approx(989.4 / 312 * days(*fast), rel=1e-3)
    assert days("--gpu", "rtx 4090", "--memory", "24", *fast) == pytest.approx(989.4 / 82.6 * days(*fast), rel=1e-3)
    assert days("--nodes", "2", *fast) == pytest.approx(days(*fast), rel=1e-3), "twice the GPUs, twice the concepts"
