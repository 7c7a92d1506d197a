"""A run on a mixture of data sets: killed and resumed, checked, and described."""

import pytest
from family_runs import train_and_break
from same_run import assert_same_run, losses
from synthetic import tiny_config, write_data

from lcm.errors import UserError
from lcm.training.checkpoint import CARD
from lcm.training.run import check, train


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return [write_data(root / name, documents) for name, documents in (("stories", 60), ("pairs", 90))]


def mixed(sets, run, *settings):
    mix = ", ".join(f"{{path: {folder}, weight: {weight}}}" for folder, weight in zip(sets, (3, 1), strict=True))
    return tiny_config(sets[0], run, "--data.path", "[]", "--data.mix", f"[{mix}]", *settings)


def test_a_killed_run_on_a_mixture_ends_as_one_that_was_not(sets, tmp_path):
    train(mixed(sets, tmp_path / "straight"))
    train_and_break(mixed(sets, tmp_path / "killed"), 7)
    train(mixed(sets, tmp_path / "killed"))
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    last = [row for row in losses(tmp_path / "straight") if row["data/epochs_of_1"]][-1]
    assert float(last["data/epochs_of_1"]) > float(last["data/epochs_of_2"]) > 0
    assert f"| data | {sets[0]}, {sets[1]} |" in (tmp_path / "straight" / CARD).read_text()


def test_the_check_says_the_share_of_each_set(sets, tmp_path, capsys):
    check(mixed(sets, tmp_path / "run"))
    said = capsys.readouterr().out
    for folder, share in zip(sets, (75, 25), strict=True):
        assert f"data       {folder}: {share}% of the rows, " in said


def test_path_and_mix_exclude_each_other(sets, tmp_path):
    with pytest.raises(UserError, match=r"path=.*: data.mix names the data sets, too; leave one out"):
        mixed(sets, tmp_path / "run", "--data.path", str(sets[0]))
