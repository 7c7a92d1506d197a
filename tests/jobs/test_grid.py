"""A sweep's grid: lists are crossed, and a mistake is one line before anything is queued."""

import pytest
from synthetic import tiny_config

from lcm.config import save_config
from lcm.errors import UserError
from lcm.jobs.grid import read_grid


@pytest.fixture
def grid(tmp_path):
    """A function that reads a grid of these lines, beside a small configuration."""
    save_config(tiny_config("data", tmp_path / "unused"), tmp_path / "c.yaml")

    def read(*lines, overrides=()):
        text = "\n".join([f"config: {tmp_path}/c.yaml", f"run.dir: {tmp_path}/sweep", *lines])
        (tmp_path / "grid.yaml").write_text(text)
        return read_grid(tmp_path / "grid.yaml", overrides)

    return read


def test_lists_are_crossed_and_single_values_are_in_all_runs(grid, tmp_path):
    lines = ("optimizer.lr: [1e-4, 4e-4]", "trainer.max_steps: [5, 6, 7]", "run.seed: 3", "data: {rows: [2]}")
    folder, runs = grid(*lines, overrides=["--trainer.keep=2"])
    assert folder == tmp_path / "sweep"
    found = {(run.optimizer.lr, run.trainer.max_steps, run.run.seed, run.data.rows, run.trainer.keep) for run in runs}
    assert found == {(lr, steps, 3, 2, 2) for lr in (1e-4, 4e-4) for steps in (5, 6, 7)}
    assert runs[1].run.dir == f"{tmp_path}/sweep/lr=1e-4,max_steps=6,rows=2"
    assert len({run.run.dir for run in runs}) == 6


def test_a_setting_that_is_a_list_is_one_value_in_a_second_pair_of_brackets(grid):
    _, runs = grid("data.path: [[a, b], [c]]")
    assert [run.data.path for run in runs] == [("a", "b"), ("c",)]
    assert all("/" not in run.run.dir.rpartition("sweep/")[2] for run in runs)


def test_settings_of_one_last_name_stand_whole_in_the_names_of_runs(grid):
    _, runs = grid("model.width: [32, 64]", "optimizer.eps: [1e-5]", "model.dim: [8]", "sampling.eta: [1]")
    assert runs[0].run.dir.endswith("/width=32,eps=1e-5,dim=8,eta=1")
    _, runs = grid("trainer.checkpoint_every: [1]", "trainer.validate_every: [1]")
    assert runs[0].run.dir.endswith("/checkpoint_every=1,validate_every=1")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["optimizer.lr: [1e-4, 1e-4]"], "two runs would be"),
        (["optimizer.lr: [1e-4]", "optimizer.lr: [2e-4]"], "optimizer.lr stands there twice; remove one"),
        (["optimizer: {lr: 1e-4}", "optimizer.lr: 1"], "optimizer.lr stands there twice; remove one"),
        (["optimizer.lr: []"], "optimizer.lr=[]: expected a value at least"),
        (["optimizer.rl: [1]"], "did you mean 'optimizer.lr'?"),
        (["model.width: [32, 33]"], "model.width=33 cannot be split"),
        (["trainer.max_steps: [" + "1, " * 1001 + "]"], "1,001 runs, 1,000 at most; split it"),
        (["- a"], "not valid YAML"),
        (["optimizer.lr: &lr [1e-4, *lr]"], "not valid YAML"),
    ],
)
def test_a_mistake_is_refused_with_its_name(lines, told, grid):
    with pytest.raises(UserError, match=told.replace("[", r"\[").replace("?", r"\?")):
        grid(*lines)


@pytest.mark.parametrize("way", ["--{}={}", "{}={}", "--{} {}"])
def test_a_crossed_setting_and_the_folder_are_not_changed_behind_the_names_of_runs(way, grid):
    for name, value in (("optimizer.lr", "1e-3"), ("run.dir", "elsewhere")):
        with pytest.raises(UserError, match=rf"--{name}: .*grid.yaml says it for each run, and the folders are named"):
            grid("optimizer.lr: [1e-4, 4e-4]", overrides=way.format(name, value).split())


def test_the_command_line_replaces_a_single_value_and_does_not_add_to_it(grid):
    _, runs = grid("data.path: a", "model.width: [32, 64]", "run.seed: 3", overrides=["--data.path=b", "run.seed=4"])
    assert [(run.data.path, run.run.seed, run.model.width) for run in runs] == [(("b",), 4, 32), (("b",), 4, 64)]


def test_the_folder_of_a_sweep_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_config(tiny_config("data", tmp_path / "unused"), tmp_path / "c.yaml")
    (tmp_path / "grid.yaml").write_text("config: ~/c.yaml\nrun.dir: ~/sweep\nrun.seed: [1]")
    folder, (run,) = read_grid("~/grid.yaml")
    assert (folder, run.run.dir) == (tmp_path / "sweep", f"{tmp_path}/sweep/seed=1")
    (tmp_path / "grid.yaml").write_text("config: ~/c.yaml\nrun.dir: $RUNS/sweep\nrun.seed: [1]")
    with pytest.raises(UserError, match=r"grid.yaml: run.dir=\$RUNS/sweep: \$RUNS is not replaced here"):
        read_grid(tmp_path / "grid.yaml")


def test_a_grid_without_configuration_or_folder_is_refused(tmp_path):
    (tmp_path / "grid.yaml").write_text("optimizer.lr: [1]")
    with pytest.raises(UserError, match="expected one 'config:'"):
        read_grid(tmp_path / "grid.yaml")
    (tmp_path / "grid.yaml").write_text("just words")
    with pytest.raises(UserError, match="expected settings"):
        read_grid(tmp_path / "grid.yaml")
