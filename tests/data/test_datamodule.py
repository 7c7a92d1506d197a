"""Batches: every document once, the same for any number of ranks and workers, resumable anywhere."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_data import DIM, END, a_config, documents_in, some_documents, write_data
from reading import DOCUMENTS, as_rows, opened, steps_of, trained

from lcm.batch import PAD, Batch
from lcm.config import Config
from lcm.data.order import Position
from lcm.data.shards import load_index

EMPTY = torch.full((16,), PAD).numpy().tobytes()
"""`doc` of an empty row."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "one", DOCUMENTS, validation=some_documents(25, seed=1))


@pytest.mark.parametrize("seed", [0, 3])
def test_every_document_is_trained_exactly_once_an_epoch(folder, seed):
    config = a_config(folder, run__seed=seed, data__rows=1)
    data = opened(config)
    found = [d for batch in trained(data, len(data.order)) for d in documents_in(batch)]
    expected = [
        (0, number, [*range(n - 1), -1], [i >= source for i in range(n)])
        for number, (n, source) in enumerate(DOCUMENTS)
    ]
    assert sorted(found) == expected
    assert data.position.epoch == 0
    assert data.position.row == len(data.order)


def test_long_documents_and_pairs_arrive_cut(tmp_path):
    """11 concepts; a pair with 7 of prompt and 3 of answer; one whose answer of 6 leaves no room for its suffix."""
    data = opened(a_config(write_data(tmp_path / "data", [(11, 0), (10, 7), (9, 3)]), data__slots=6, data__rows=1))
    batches = trained(data, len(data.order))
    found = sorted((concepts, targets) for batch in batches for _, _, concepts, targets in documents_in(batch))
    yes, no = True, False
    assert found == [
        ([0, 1, 2, 3, 4, 5], [no, no, no, yes, yes, yes]),
        ([0, 1, 2, 3, 4, 5], [yes] * 6),
        ([0, 1, 6, 7, 8, -1], [no, no, no, yes, yes, yes]),
        ([6, 7, -1], [yes] * 3),
        ([6, 7, 8, 9, -1], [yes] * 5),
    ]
    for batch in batches:
        for doc, pos in zip(batch.doc, batch.pos, strict=True):
            assert all(pos[doc == n].tolist() == list(range(int((doc == n).sum()))) for n in range(int(doc.max()) + 1))


def test_several_folders_are_mixed(tmp_path, folder):
    other = write_data(tmp_path / "other", some_documents(20, seed=5), mark=3)
    data = opened(a_config(folder, other, data__rows=1, data__group=16))
    found = [d for batch in trained(data, len(data.order)) for d in documents_in(batch)]
    assert sorted((mark, number) for mark, number, *_ in found) == [(0, i) for i in range(60)] + [
        (3, i) for i in range(20)
    ]
    marks = [mark for mark, *_ in found]
    assert {0, 3} == set(marks[:20]) == set(marks[-20:])


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_do_not_change_the_order(folder, workers):
    alone = trained(opened(a_config(folder, data__workers=0, trainer__max_steps=30)))
    together = trained(opened(a_config(folder, data__workers=workers, trainer__max_steps=30)))
    assert len(alone) == 30
    assert as_rows(alone) == as_rows(together)
    assert [int(b.step_targets) for b in alone] == [int(b.step_targets) for b in together]


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (4, 1), (1, 4), (2, 2), (4, 2)])
def test_ranks_and_accumulation_share_the_same_steps_and_seeds(folder, world_size, accumulate):
    assert steps_of(folder, world_size, accumulate, 9) == steps_of(folder, 1, 1, 9)


def test_no_two_rows_share_a_seed_and_another_run_has_others(folder):
    seeds = [row[0] for row in as_rows(trained(opened(a_config(folder, trainer__max_steps=60))))]
    others = [row[0] for row in as_rows(trained(opened(a_config(folder, trainer__max_steps=60, run__seed=2))))]
    assert len(set(seeds + others)) == 2 * 2 * 60


def known_targets(batches: list[Batch], predicts_first: bool) -> int:
    return sum(int(batch.targets(predicts_first).sum()) for batch in batches)


@pytest.mark.parametrize("predicts_first", [True, False])
def test_each_rank_knows_the_targets_of_its_step_beforehand(folder, predicts_first):
    config = a_config(folder, trainer__accumulate=2, trainer__max_steps=25)
    ranks = [trained(opened(config, rank, 2, predicts_first)) for rank in range(2)]
    for micro_batches in ranks:
        for step in range(25):
            batches = micro_batches[2 * step : 2 * step + 2]
            assert {int(b.step_targets) for b in batches} == {known_targets(batches, predicts_first)}


@pytest.mark.parametrize("steps", [1, 4, 13])
@pytest.mark.parametrize(("world_size", "accumulate", "workers"), [(1, 1, 0), (2, 2, 0), (1, 3, 2)])
def test_a_run_resumes_with_exactly_the_rows_that_are_left(folder, steps, world_size, accumulate, workers):
    """The checkpoint of rank 0 does for everybody; the loader of the killed run had read further ahead."""
    straight = as_rows(trained(opened(a_config(folder, trainer__max_steps=50)), 50))
    first = opened(a_config(folder, trainer__max_steps=50, data__workers=workers))
    trained(first, steps)
    state = json.loads(json.dumps(first.state_dict()))
    assert all(type(value) is int for value in state.values())

    config = a_config(folder, trainer__max_steps=steps + 5, trainer__accumulate=accumulate, data__workers=workers)
    ranks = [opened(config, rank, world_size) for rank in range(world_size)]
    resumed = []
    for data in ranks:
        data.load_state_dict(state)
        resumed.append(as_rows(trained(data)))
    together = 2 * world_size * accumulate
    left = [row for row in straight[2 * steps :] if EMPTY not in row]
    for step in range(5):
        dealt = [row for rows in resumed for row in rows[step * 2 * accumulate : (step + 1) * 2 * accumulate]]
        assert len(dealt) == together
        found = [row for row in dealt if EMPTY not in row]
        assert sorted(found) == sorted(left[: len(found)])
        left = left[len(found) :]


def test_a_checkpoint_in_mid_step_is_that_of_the_step_before(folder):
    data = opened(a_config(folder, trainer__accumulate=3))
    trained(data, 3)
    whole = data.state_dict()
    begun = as_rows(trained(data, 2))
    assert data.state_dict() == whole
    assert as_rows(trained(data, 2)) == begun  # the step begins anew, as after a crash
    assert data.state_dict() == whole
    trained(data, 6)
    straight = opened(a_config(folder, trainer__accumulate=3))
    trained(straight, 9)
    assert data.state_dict() == straight.state_dict()


def test_the_length_is_the_whole_run_and_the_stream_the_rest_of_it(folder):
    config = a_config(folder, trainer__max_steps=10, trainer__accumulate=2)
    data = opened(config)
    trained(data, 8)
    assert len(data.train_dataloader()) == 20
    assert len(list(data.train_dataloader())) == 12


def test_after_a_change_of_the_order_the_next_epoch_begins(folder, capsys):
    data = opened(a_config(folder))
    trained(data, 5)
    reordered = opened(a_config(folder, data__slots=32))
    reordered.load_state_dict(data.state_dict())
    assert reordered.position == Position(epoch=1)
    assert reordered.steps == 5
    assert "start of epoch 1 of the data" in capsys.readouterr().err


def test_a_position_of_an_earlier_version_is_read(folder):
    """It also held the group of its row, which follows from the row."""
    straight = as_rows(trained(opened(a_config(folder)), 9))
    data = opened(a_config(folder))
    state = {"epoch": 0, "row": 10, "group": 0, "group_row": 0, "steps": 5, "plan": data.order.fingerprint}
    data.load_state_dict(state)
    assert (data.position, data.steps) == (Position(0, 10), 5)
    assert as_rows(trained(data, 4)) == straight[10:]


def test_empty_rows_hold_nothing(folder):
    data = opened(a_config(folder, data__rows=64))
    batch = next(iter(data.train_dataloader()))
    empty = (batch.doc == PAD).all(1)
    assert int(empty.sum()) == 64 - len(data.order)
    assert not batch.is_target[empty].any()
    assert not batch.emb[batch.doc == PAD].any()
    assert not batch.pos[batch.doc == PAD].any()
    assert int(batch.step_targets) == int(batch.is_target.sum())


def test_changing_one_document_on_disk_changes_its_slots_and_nothing_else(tmp_path):
    folder = write_data(tmp_path / "data", DOCUMENTS)
    before = trained(opened(a_config(folder, trainer__max_steps=20)))
    tar = folder / "train-000002.tar"
    offset, concepts, _ = load_index(tar)[4].tolist()
    with tar.open("r+b") as file:
        file.seek(offset)
        file.write(np.full((concepts - 1, DIM), 99, dtype=np.float16).tobytes())
    after = trained(opened(a_config(folder, trainer__max_steps=20)))
    for old, new in zip(before, after, strict=True):
        changed = (old.emb != new.emb).any(-1)
        document = (old.emb[..., 1] == 24) & (old.emb[..., 3] == 1) & (old.doc != PAD)
        assert torch.equal(changed, document)
    assert sum(int((new.emb == 99).all(-1).sum()) for new in after) == concepts - 1


def test_vectors_arrive_as_they_are_stored(folder):
    batch = next(iter(opened(a_config(folder)).train_dataloader()))
    assert batch.emb.dtype == torch.float16
    assert batch.emb.shape == (2, 16, DIM)


# ---- facts for the model ----


def test_the_folder_with_the_most_training_concepts_decides(tmp_path, folder):
    small = write_data(tmp_path / "small", DOCUMENTS[:5], validation=DOCUMENTS * 2, mark=3)
    data = opened(a_config(small, folder))
    location, scale = data.prepared.normalizer
    assert location.tolist() == [0.0] * DIM
    assert scale.tolist() == [2.0] * DIM
    assert data.end_of_text.tolist() == END.tolist()
    codec = data.prepared.codec
    assert (codec.name, codec.fingerprint, codec.dim, codec.splitter["name"]) == ("toy", "f00", DIM, "nupunkt")


# ---- validation ----


def validated(config: Config, world_size: int, predicts_first: bool = True) -> list[list[Batch]]:
    return [list(opened(config, rank, world_size, predicts_first).val_dataloader()) for rank in range(world_size)]


def test_validation_reads_the_same_rows_whatever_the_seed_and_the_ranks(folder):
    one = as_rows(validated(a_config(folder, data__rows=1), 1)[0])
    assert len(one) == 10
    assert one == as_rows(validated(a_config(folder, data__rows=1, run__seed=9), 1)[0])
    for world_size in (2, 4):
        ranks = validated(a_config(folder), world_size)
        assert len({len(batches) for batches in ranks}) == 1
        rows = [row for batches in ranks for row in as_rows(batches) if EMPTY not in row]
        assert sorted(rows) == sorted(one)


@pytest.mark.parametrize("predicts_first", [True, False])
def test_a_validation_pass_knows_its_targets(folder, predicts_first):
    for batches in validated(a_config(folder, data__rows=3), 2, predicts_first):
        assert {int(b.step_targets) for b in batches} == {known_targets(batches, predicts_first)}


def test_validation_falls_back_on_the_test_split_and_then_on_nothing(tmp_path, capsys):
    tested = opened(a_config(write_data(tmp_path / "tested", DOCUMENTS, test=DOCUMENTS[:5])))
    assert tested.has_validation
    assert len(list(tested.val_dataloader())) > 0
    alone = opened(a_config(write_data(tmp_path / "alone", DOCUMENTS)))
    assert not alone.has_validation
    assert alone.val_dataloader() == []
    assert "without validation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("documents", "task"),
    [([(9, 4), (5, 3)], "answer"), ([(9, 4), (5, 0)], "continue"), ([(9, 0)], "continue")],
)
def test_a_model_answers_by_default_only_where_it_has_seen_nothing_but_pairs(tmp_path, documents, task):
    assert opened(a_config(write_data(tmp_path / "data", documents))).prepared.codec.default_task == task
