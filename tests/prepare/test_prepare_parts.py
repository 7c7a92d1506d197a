"""Parts of a data set, made in any order, at once, and again, are together the data set that one run makes."""

import json
from itertools import permutations

import pytest
from stub_codec import use_codec
from test_prepare_kill import killed_at, options, reference, snapshot, start

from lcm.errors import UserError
from lcm.prepare.command import prepare

__all__ = ["reference"]  # a fixture
PARTS = ("1/3", "2/3", "3/3")


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    use_codec(monkeypatch)


def part(number, source, output, **more):
    return prepare(options(source, output, part=number, **more))


@pytest.mark.parametrize("order", list(permutations(PARTS)))
def test_the_order_of_parts_changes_nothing_and_the_last_completes(order, reference, tmp_path):
    source, expected = reference
    made = [part(number, source, tmp_path / "data") for number in order]
    assert [manifest is None for manifest in made] == [True, True, False]
    assert snapshot(tmp_path / "data") == expected


def test_a_part_makes_its_own_shards_alone(reference, tmp_path):
    source, expected = reference
    names = sorted(name for name in expected if name.endswith(".tar"))
    seen = []
    for number in PARTS:
        part(number, source, tmp_path / number[0])
        seen += [name for name in snapshot(tmp_path / number[0]) if name.endswith(".tar")]
    assert sorted(seen) == names, "each by one part"


def test_part_i_makes_every_nth_shard_from_the_ith_on(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": f"Text {i}.", "split": "train"}) + "\n" for i in range(6)))
    part("2/3", source, tmp_path / "data", shard_documents=1)
    made = sorted(name for name in snapshot(tmp_path / "data") if name.endswith(".tar"))
    assert made == ["train-000001.tar", "train-000004.tar"]


def test_more_parts_than_shards_are_no_mistake(reference, tmp_path):
    source, expected = reference
    for number in range(1, 10):
        part(f"{number}/9", source, tmp_path / "data")
    assert snapshot(tmp_path / "data") == expected


def test_a_part_that_is_done_already_says_so_and_changes_nothing(reference, tmp_path, capsys):
    source, expected = reference
    part("1/3", source, tmp_path / "data")
    before = snapshot(tmp_path / "data")
    part("1/3", source, tmp_path / "data")
    assert snapshot(tmp_path / "data") == before
    for number in ("2/3", "3/3", "2/3"):
        part(number, source, tmp_path / "data")
    assert "finished already" in capsys.readouterr().err
    assert snapshot(tmp_path / "data") == expected


def test_a_run_without_a_part_makes_what_is_left(reference, tmp_path):
    source, expected = reference
    part("2/3", source, tmp_path / "data")
    prepare(options(source, tmp_path / "data"))
    assert snapshot(tmp_path / "data") == expected


def test_a_part_killed_before_any_change_of_the_disk_and_started_again_is_the_same(reference, tmp_path):
    """While another is done, and a third is still to come."""
    source, expected = reference
    step = 1
    while True:
        folder = tmp_path / str(step)
        part("1/3", source, folder)
        if not killed_at(step, source, folder, part="2/3"):
            break
        for number in ("3/3", "2/3"):
            part(number, source, folder)
        assert snapshot(folder) == expected, f"killed at change {step}"
        step += 1
    assert step > 10


def test_parts_at_once_are_the_same(reference, tmp_path):
    source, expected = reference
    running = [start(source, tmp_path / "data", "--part", number, "--workers", "1", delay=0.02) for number in PARTS]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], outputs
    assert sum("18 documents" in out for out, _ in outputs) >= 1, "one of them, or two that see it, tell of it all"
    assert snapshot(tmp_path / "data") == expected


def test_parts_of_other_options_are_refused(reference, tmp_path):
    source, _ = reference
    part("1/3", source, tmp_path / "data")
    with pytest.raises(UserError, match="begun with --max-characters"):
        part("2/3", source, tmp_path / "data", max_characters=20)


@pytest.mark.parametrize("wrong", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3"])
def test_a_malformed_part_is_one_line(wrong):
    with pytest.raises(UserError, match=f"--part={wrong}: expected I/N, for example 2/16"):
        options("a", "b", part=wrong)
