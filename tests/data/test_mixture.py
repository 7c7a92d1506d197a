"""Mixtures: weights that hold exactly, each set's own epochs, the same rows for any number of ranks, resumable."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from made_up_data import a_config, documents_in, some_documents, write_data
from reading import as_rows, opened, trained
from serving import ALWAYS, served

from lcm.config import Config
from lcm.data.mixture import THOUSAND, Mixture, rows_in_thousand
from lcm.data.order import Position
from lcm.errors import UserError

SIZES, WEIGHTS = (70, 20, 45), (5, 3, 2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Three sets of different sizes; the last has no validation split."""
    root = tmp_path_factory.mktemp("mixture")
    held_out = some_documents(15, seed=9)
    return [
        write_data(root / f"set-{i}", some_documents(n, seed=i), held_out if i < 2 else (), mark=i)
        for i, n in enumerate(SIZES)
    ]


def mixed(folders, weights=WEIGHTS, **settings):
    mix = [{"path": str(folder), "weight": weight} for folder, weight in zip(folders, weights, strict=True)]
    return a_config(**{"data__path": (), "data__mix": mix, "data__rows": 1, **settings})


def marks_of(batches) -> list[int]:
    """The set of each row; a row's documents are of one set."""
    found = []
    for batch in batches:
        for row in range(len(batch.row)):
            (mark,) = {int(mark) for mark in batch.emb[row, batch.pos[row] == 0, 0].tolist()[:1]}
            found.append(mark)
    return found


def mixture_of(folders, weights=WEIGHTS, **settings) -> Mixture:
    order = opened(mixed(folders, weights, **settings)).order
    assert isinstance(order, Mixture)
    return order


@pytest.mark.parametrize("weights", [(5, 3, 2), (1, 1, 1), (0.001, 0.5, 0.499), (997, 1, 2)])
@pytest.mark.parametrize("seed", [0, 7])
def test_weights_are_exact_over_every_thousand_rows(folders, weights, seed):
    order = mixture_of(folders, weights, run__seed=seed)
    each = [int(order.used(n + THOUSAND)[i] - order.used(n)[i]) for n in (0, 1000, 17_000) for i in range(3)]
    assert each == 3 * order.rows_each.tolist()
    assert np.abs(order.rows_each - THOUSAND * np.array(weights) / sum(weights)).max() < 1
    assert order.rows_each.sum() == THOUSAND


def test_the_sets_are_spread_over_the_thousand(folders):
    """The set with half of the weight has about half of every hundred rows; no thousand is like the next."""
    order = mixture_of(folders)
    hundreds = np.diff([order.used(n)[0] for n in range(0, 5001, 100)])
    assert 30 < hundreds.min() < hundreds.max() < 70
    first, second = (np.diff([order.used(n)[0] for n in range(start, start + 1000)]) for start in (0, 1000))
    assert (first != second).sum() > 100


def test_each_set_is_trained_once_in_each_of_its_own_epochs(folders):
    """Every document of a set, once, before any comes again, however far the others are."""
    config = mixed(folders, trainer__max_steps=200)
    data = opened(config)
    seen = {mark: Counter() for mark in range(3)}
    order = data.order
    for batch in trained(data):
        for mark, number, *_ in documents_in(batch):
            seen[mark][number] += 1
    for mark, epochs in enumerate(order.epochs(data.position)):
        counts = [seen[mark][number] for number in range(SIZES[mark])]
        assert sum(counts) / SIZES[mark] == pytest.approx(epochs, rel=0.2)
        assert max(counts) - min(counts) <= 1, "none comes twice before all came once"
    assert max(order.epochs(data.position)) > 3 > min(order.epochs(data.position))
    assert data.metrics() == {f"data/epochs_of_{i}": v for i, v in enumerate(order.epochs(data.position), 1)}


def test_rows_do_not_depend_on_what_else_is_mixed(folders):
    """A set's rows in its epoch are those that it has alone, with seeds that no other set's rows have."""
    batches = trained(opened(mixed(folders, trainer__max_steps=300)))
    alone = trained(opened(a_config(folders[1], data__rows=1, trainer__max_steps=9)))
    rows = [row[1:] for row, mark in zip(as_rows(batches), marks_of(batches), strict=True) if mark == 1]
    assert sorted(rows[:9]) != sorted(rows[9:18]), "another epoch, another order"
    assert {row[1:] for row in as_rows(alone)} <= set(rows)
    seeds = Counter(row[0] for row in as_rows(batches))
    assert max(seeds.values()) == 1


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 8), (2, 4), (8, 1), (4, 1)])
def test_a_step_has_the_same_rows_for_any_number_of_ranks(folders, world_size, accumulate):
    def steps(world_size, accumulate):
        settings = {"trainer__accumulate": accumulate, "trainer__max_steps": 12}
        config = mixed(folders, data__rows=8 // world_size // accumulate, **settings)
        ranks = [trained(opened(config, rank, world_size)) for rank in range(world_size)]
        return [
            sorted(as_rows([b for batches in ranks for b in batches[step * accumulate : (step + 1) * accumulate]]))
            for step in range(12)
        ]

    assert steps(world_size, accumulate) == steps(1, 1)


@pytest.mark.parametrize("stop", [1, 29, 130])
def test_a_resumed_run_has_the_rows_that_it_would_have_had(folders, stop):
    straight = trained(opened(mixed(folders, trainer__max_steps=160)))
    data = opened(mixed(folders, trainer__max_steps=160))
    first = trained(data, stop)
    resumed = opened(mixed(folders, trainer__max_steps=160))
    resumed.load_state_dict(data.state_dict())
    assert as_rows(first) + as_rows(trained(resumed)) == as_rows(straight)


@pytest.mark.parametrize("change", [{"weights": (5, 3, 1)}, {"data__slots": 15}, {"run__seed": 2}, {"fewer": True}])
def test_another_mixture_begins_the_next_epoch_of_each_set(folders, capsys, change):
    data = opened(mixed(folders))
    trained(data, 5)
    some = folders[:2] if change.pop("fewer", False) else folders
    other = opened(mixed(some, change.pop("weights", WEIGHTS)[: len(some)], **change))
    other.load_state_dict(data.state_dict())
    assert other.position == Position(1, 0)
    assert "training resumes at the start of epoch 1" in capsys.readouterr().err
    assert all(row.epoch == 1 for row in other.order.rows(1, next(other.order.steps(other.position, 8)).rows))


def test_no_set_begins_again_an_epoch_that_it_had_before_a_change(folders):
    """The smallest set is in its third epoch or later, the largest in its first: all begin one that none has begun."""
    data = opened(mixed(folders, (1, 8, 1), trainer__max_steps=60))
    begun = {row.epoch for step in islice(data.order.steps(Position(), 1), 60) for row in data.order.rows(0, step.rows)}
    trained(data)
    other = opened(mixed(folders, (1, 1, 1)))
    other.load_state_dict(data.state_dict())
    assert other.position == Position(max(begun) + 1, 0)
    assert max(begun) >= 2
    alone = opened(a_config(folders[1]))
    alone.load_state_dict(data.state_dict())
    assert alone.position == other.position


def validation(folders, weights, rank=0, world_size=1, **settings):
    data = opened(mixed(folders, weights, **settings), rank, world_size)
    return list(data.val_dataloader())


@pytest.mark.parametrize("weights", [(5, 3), (1, 1), (1, 30), (999, 1)])
def test_validation_has_the_weights_and_no_document_twice(folders, weights):
    """Validation ends before a document would come again; the set without held-out documents is left out."""
    batches = validation(folders, (*weights, 2), trainer__validation_rows=1000)
    documents = Counter((mark, number) for batch in batches for mark, number, *_ in documents_in(batch))
    assert set(documents.values()) == {1}
    marks = Counter(marks_of(batches))
    assert set(marks) <= {0, 1}
    assert marks[0] / marks.total() == pytest.approx(weights[0] / sum(weights), abs=0.2)


@pytest.mark.parametrize("weights", [(5, 3, 2), (1, 1, 1), (1, 500, 499), (990, 5, 5)])
def test_once_ends_before_the_first_row_that_comes_again(folders, weights):
    order = mixture_of(folders, weights)
    numbers = np.concatenate([step.rows for step in islice(order.steps(Position(), 1), order.once + 1)])
    assert len(set(numbers[:-1].tolist())) == order.once
    assert numbers[-1] > order.first_row[-1], "a row of another epoch"


@pytest.mark.parametrize("wanted", [1, 5, 1000])
def test_validation_has_the_same_rows_for_any_number_of_ranks(folders, wanted):
    """Empty rows fill up what the ranks do not share evenly."""

    def rows(world_size):
        settings = {"trainer__validation_rows": wanted, "data__rows": 2}
        ranks = [validation(folders, WEIGHTS, rank, world_size, **settings) for rank in range(world_size)]
        assert len({len(batches) for batches in ranks}) == 1, "every rank has as many batches"
        found = as_rows([batch for batches in ranks for batch in batches])
        return sorted(row for row in found if row[1:] != empty)

    empty = next(row[1:] for row in as_rows(validation(folders, WEIGHTS, 7, 8, trainer__validation_rows=1)))
    assert rows(1) == rows(3) == rows(8)
    assert 1 <= len(rows(1)) <= wanted


def test_a_dead_shard_of_one_set_empties_its_documents_alone(tmp_path, folders, capsys):
    there = write_data(tmp_path / "there/data", some_documents(40, seed=4), mark=5)
    with served(tmp_path / "there") as server:
        server.fails("train-000002.tar", 404, times=ALWAYS)
        mix = [{"path": str(folders[0]), "weight": 1}, {"path": f"{server.url}/data", "weight": 1}]
        settings = {"data__skip_dead": True, "data__retries": 0, "data__cache": str(tmp_path / "cache")}
        steps = {"data__path": (), "data__mix": mix, "data__rows": 4, "trainer__max_steps": 12}
        data = opened(a_config(**settings, **steps))
        found = {(mark, number) for batch in trained(data) for mark, number, *_ in documents_in(batch)}
    mix[1]["path"] = str(there)
    whole = opened(a_config(**steps))
    expected = {(mark, number) for batch in trained(whole) for mark, number, *_ in documents_in(batch)}
    assert found == {(mark, number) for mark, number in expected if mark == 0 or number not in range(20, 30)}
    assert data.metrics()["data/dead_shards"] >= 1
    assert capsys.readouterr().err.count("train-000002.tar: not found") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data__path": "data/a"}, "data.mix names the data sets, too; leave one out"),
        ({"data__mix": [{"path": "a", "weight": 0}]}, "weight"),
        ({"data__mix": [{"path": "a", "wieght": 1}]}, "wieght"),
    ],
)
def test_a_wrong_mixture_is_refused(settings, message):
    mix = {"data__path": (), "data__mix": [{"path": "data/a", "weight": 1}]}
    with pytest.raises(UserError, match=message):
        a_config(**(mix | settings))


def test_a_set_that_gets_no_row_or_has_none_is_refused(tmp_path, folders):
    with pytest.raises(
        UserError, match=r"data.mix: weight=1 of .*set-1 is less than a row in 1,000; expected at least 3.001"
    ):
        mixture_of(folders, (2000, 1, 1000))
    empty = write_data(tmp_path / "empty", (), some_documents(3))
    with pytest.raises(UserError, match=r"data.mix: .*empty has no document to train on; leave it out"):
        opened(mixed([folders[0], empty], (1, 1)))
    with pytest.raises(UserError, match="named twice"):
        opened(mixed([folders[0], folders[0]], (1, 1)))


def test_rounding_gives_what_is_left_to_the_largest_remainders():
    assert rows_in_thousand([1.0, 1.0, 1.0], "abc").tolist() == [334, 333, 333]
    assert rows_in_thousand([0.2, 0.3335, 0.4665], "abc").tolist() == [200, 334, 466]


def test_the_sets_are_described_with_their_shares(folders):
    lines = list(opened(mixed(folders)).describe())
    assert [line.split(": ")[1].split(",")[0] for line in lines] == [
        "50% of the rows",
        "30% of the rows",
        "20% of the rows",
    ]
    targets = [int(line.split(", ")[1].split()[0].replace(",", "")) for line in lines]
    alone = [next(iter(opened(a_config(folder)).describe())) for folder in folders]
    assert [f"{n:,} targets an epoch" in line for n, line in zip(targets, alone, strict=True)] == [True] * 3


def test_steps_go_on_without_end(folders):
    order = mixture_of(folders)
    steps = list(islice(order.steps(Position(), 7), 100))
    assert [step.after.row for step in steps] == list(range(7, 701, 7))
    assert all(len(step.rows) == 7 for step in steps)


@pytest.mark.parametrize(
    "words",
    [
        ["--data.mix", "[{path: data/a, weight: 3}, {path: data/b}]"],
        ['data.mix=[{"path": "data/a", "weight": 3}, {"path": "data/b"}]'],
    ],
)
def test_a_mixture_may_be_said_on_the_command_line(words):
    values = a_config().model_dump(mode="json", exclude_none=True) | {"data": {}}
    mix = Config.parse(values, words, where="test").data.mix
    assert [(one.path, one.weight) for one in mix] == [("data/a", 3), ("data/b", 1)]


def test_a_mixture_that_is_no_yaml_is_refused():
    with pytest.raises(
        UserError, match=r"--data.mix=\[\{path: \]: expected YAML or JSON, as in --data.mix '\[\{path: DIR\}\]'"
    ):
        Config.parse({}, ["--data.mix", "[{path: ]"], where="test")
