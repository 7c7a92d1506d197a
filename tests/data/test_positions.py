"""A run's position survives any change of ranks, workers and accumulation, with real processes."""

from collections import Counter

import pytest
from ranks import Run, train_together
from synthetic import tiny_config, write_data

from lcm.batch import row_seed
from lcm.data.datamodule import ConceptData

PARTS = [(1, 3, 0, 5), (2, 1, 2, 10), (4, 2, 1, 14), (3, 2, 2, 20)]
"""Processes, accumulation, workers, and the step that a part of the run ends before."""


@pytest.mark.slow
def test_every_row_is_trained_once_while_the_number_of_ranks_changes(tmp_path):
    data, trained = write_data(tmp_path / "data", documents=250), Counter()
    for processes, accumulate, workers, end in PARTS:
        settings = {
            "trainer.devices": processes,
            "trainer.strategy": "auto" if processes == 1 else "ddp",
            "trainer.accumulate": accumulate,
            "trainer.checkpoint_every": 1,
            "trainer.max_steps": PARTS[-1][3],
            "data.workers": workers,
        }
        config = tiny_config(data, tmp_path / "run", *(f"{name}={value}" for name, value in settings.items()))
        run = Run(config, breaks=None if end == PARTS[-1][3] else end)
        train_together({"part": run}, tmp_path / f"part{processes}", processes)
        files = [tmp_path / f"part{processes}/part.{rank}.batches" for rank in range(processes)]
        lengths = {len(file.read_text().splitlines()) for file in files}
        assert len(lengths) == 1, "every process trains as many micro-batches"
        trained.update(seed for file in files for seed in seeds(file))
    order = ConceptData(config, predicts_first=False).order
    rows = [row_seed(order.seed, 0, number) for number in range(len(order))]
    assert len(rows) > 100
    assert {trained[seed] for seed in rows} == {1}
    assert row_seed(order.seed, 1, 0) in trained, "and the next epoch began"


def seeds(file):
    """The seeds of the rows in a file that tests/synthetic.py recorded."""
    for line in file.read_text().splitlines():
        yield from (int(word) for word in line[line.index("[") + 1 : line.index("]")].split(", "))
