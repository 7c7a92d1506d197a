"""Assert that two runs are equal: checkpoints, models, losses."""

import csv
from pathlib import Path

import torch

from lcm.training.checkpoint import open_checkpoint


def losses(run):
    """The rows of metrics.csv without speed and MFU."""
    with Path(run, "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if "second" not in k and "mfu" not in k} for row in csv.DictReader(file)]


def assert_same_checkpoint(straight: Path, resumed: Path):
    one, two = open_checkpoint(straight), open_checkpoint(resumed)
    assert one["global_step"] == two["global_step"]
    torch.testing.assert_close(one["state_dict"], two["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(one["optimizer_states"], two["optimizer_states"], rtol=0, atol=0)
    assert one["ConceptData"] == two["ConceptData"]


def assert_same_run(straight: Path, resumed: Path):
    for name in ("last.ckpt", "best.ckpt"):
        assert_same_checkpoint(straight / "checkpoints" / name, resumed / "checkpoints" / name)
    assert (straight / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    assert losses(straight) == losses(resumed)
