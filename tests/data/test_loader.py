"""Spans become a batch: the right bytes in the right slots, and little else open."""

import os
import threading

import numpy as np
import psutil
import torch
from made_up_data import DIM, END, write_data

import lcm.data.loader
from lcm.batch import PAD, row_seed
from lcm.data.loader import Batches, MicroBatch, RowReader, split
from lcm.data.packing import SPAN, Row
from lcm.data.shards import load_index


def a_span(offset: int, *, first=0, count=1, slot=0, doc=0, pos=0, prompt=0, shard=0) -> np.ndarray:
    return np.array([(shard, offset, first, count, slot, doc, pos, prompt)], SPAN)


def a_micro_batch(*rows: list[np.ndarray]) -> MicroBatch:
    found = [Row(2, 5 + i, np.concatenate([np.empty(0, SPAN), *spans]), 0) for i, spans in enumerate(rows)]
    return MicroBatch(found, targets=11)


def test_micro_batches_are_equal_and_know_the_targets_of_the_whole_step():
    rows = [Row(0, i, np.empty(0, SPAN), targets=i) for i in range(8)]
    for count in (1, 2, 8):
        found = split(rows, count)
        assert [row for micro_batch in found for row in micro_batch.rows] == rows
        assert {len(micro_batch.rows) for micro_batch in found} == {8 // count}
        assert {micro_batch.targets for micro_batch in found} == {28}


def test_a_batch_worked_out_by_hand(tmp_path):
    """A whole document beside a shortened pair; then the second piece of a cut document; then an empty row."""
    folder = write_data(tmp_path / "data", [(3, 0), (9, 6), (10, 0)])
    tar = folder / "train-000000.tar"
    whole, pair, long = load_index(tar)[:, 0].tolist()
    micro_batch = a_micro_batch(
        [
            a_span(whole, count=3),
            a_span(pair, first=0, count=1, slot=3, doc=1, prompt=1),
            a_span(pair, first=5, count=4, slot=4, doc=1, pos=1, prompt=1),
        ],
        [a_span(long, first=6, count=3)],
        [],
    )
    batch = RowReader([tar], dim=DIM, slots=8, seed=4).read(micro_batch)

    assert batch.doc.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0] + [PAD] * 5, [PAD] * 8]
    assert batch.pos.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 2, 0, 0, 0, 0, 0], [0] * 8]
    assert batch.is_target.int().tolist() == [[1, 1, 1, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0, 0], [0] * 8]
    concepts = [(0, 0), (0, 1), END, (1, 0), (1, 5), (1, 6), (1, 7), END]
    expected = torch.zeros(3, 8, DIM, dtype=torch.float16)
    for slot, concept in enumerate(concepts):
        expected[0, slot] = torch.tensor(END if concept is END else (0, *concept, 1))
    for slot in range(3):
        expected[1, slot] = torch.tensor((0, 2, 6 + slot, 1))
    assert torch.equal(batch.emb, expected)
    assert batch.row.tolist() == [row_seed(4, 2, 5), row_seed(4, 2, 6), row_seed(4, 2, 7)]
    assert batch.step_targets.item() == 11


def test_seeds_are_the_same_everywhere_and_differ_between_rows_epochs_and_runs():
    keys = [(seed, epoch, number) for seed in range(3) for epoch in range(12) for number in range(120)]
    seeds = [row_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert row_seed(1, 0, 0) == 9176422400804903422


def test_short_reads_are_continued(tmp_path, monkeypatch):
    folder = write_data(tmp_path / "data", [(9, 0)])
    tar = folder / "train-000000.tar"
    micro_batch = a_micro_batch([a_span(int(load_index(tar)[0, 0]), count=9)])
    whole = RowReader([tar], dim=DIM, slots=9, seed=0).read(micro_batch)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, memory, offset: preadv(file, [memory[0][:7]], offset))
    assert torch.equal(RowReader([tar], dim=DIM, slots=9, seed=0).read(micro_batch).emb, whole.emb)


def test_few_files_stay_open_and_all_are_closed_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(lcm.data.loader, "OPEN_FILES", 3)
    folder = write_data(tmp_path / "data", [(3, 0)] * 6, per_shard=1)
    tars = sorted(folder.glob("train-*.tar"))
    offset = int(load_index(tars[0])[0, 0])
    before = psutil.Process().num_fds()
    reader = RowReader(tars, dim=DIM, slots=4, seed=0)
    for number in [*range(6), 2, *range(6)]:
        batch = reader.read(a_micro_batch([a_span(offset, count=2, shard=number)]))
        assert batch.emb[0, :2, 1:3].tolist() == [[number, 0], [number, 1]]
        assert psutil.Process().num_fds() <= before + 3
    del reader
    assert psutil.Process().num_fds() == before


def test_a_file_that_is_being_read_outlives_its_eviction(tmp_path, monkeypatch):
    """Many threads, one place in the cache: whoever still reads a file keeps it open."""
    monkeypatch.setattr(lcm.data.loader, "OPEN_FILES", 1)
    folder = write_data(tmp_path / "data", [(9, 0)] * 8, per_shard=1)
    tars = sorted(folder.glob("train-*.tar"))
    offset = int(load_index(tars[0])[0, 0])
    reader = RowReader(tars, dim=DIM, slots=8, seed=0)
    stream = [a_micro_batch([a_span(offset, count=8, shard=i % 8)]) for i in range(400)]
    for i, batch in enumerate(Batches(reader, lambda: stream, len(stream), workers=8)):
        assert batch.emb[0, :, 1].tolist() == [i % 8] * 8


def test_reading_ahead_is_bounded_and_ends_with_the_loop(tmp_path):
    folder = write_data(tmp_path / "data", [(3, 0)])
    tar = folder / "train-000000.tar"
    dealt = []

    def deal():
        for number in range(100):
            dealt.append(number)
            yield a_micro_batch([a_span(int(load_index(tar)[0, 0]), count=3)])

    threads = threading.active_count()
    batches = iter(Batches(RowReader([tar], dim=DIM, slots=4, seed=0), deal, 100, workers=2))
    next(batches)
    assert len(dealt) == 5
    assert threading.active_count() <= threads + 2
    del batches
    assert threading.active_count() == threads
