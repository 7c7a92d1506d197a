"""All ranks skip the same dead shards, whichever of them could not fetch one, and none waits for ever."""

import csv
import os
import subprocess
import sys
import time
from ast import literal_eval
from pathlib import Path

import pytest
import torch
from ranks import Run, start, train_together, wait_together
from serving import ALWAYS, served
from synthetic import tiny_config, write_data

from lcm.config import save_config
from lcm.data.dataset import PreparedData
from lcm.data.order import RowOrder
from lcm.data.prefetch import exchange
from lcm.errors import UserError
from lcm.training.checkpoint import latest, open_checkpoint
from lcm.training.run import train

ROOT = Path(__file__).parents[2]


LOST = [[{1: "a"}, {}, {}], [{}, {2: "b"}, {1: "c", 3: "d"}], [{}, {}, {}]]


def test_a_rank_that_ended_makes_the_exchange_one_line(monkeypatch):
    def closed(*_):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("lcm.data.prefetch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("lcm.data.prefetch.distributed.all_gather_object", closed)
    with pytest.raises(UserError, match="another rank ended before it said which shards are dead"):
        exchange({})


def exchange_three_times(found):
    rank = int(os.environ["LOCAL_RANK"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=3)
    Path(f"{found}.{rank}").write_text(repr([exchange(own[rank]) for own in LOST]))


def test_every_rank_learns_of_every_dead_shard(tmp_path):
    """Three ranks, three times over."""
    wait_together(start(exchange_three_times, str(tmp_path / "found"), tmp_path, 3), tmp_path)
    found = [literal_eval((tmp_path / f"found.{rank}").read_text()) for rank in range(3)]
    assert [set(all_lost) for all_lost in found[0]] == [{1}, {1, 2, 3}, set()]
    assert found[0] == found[1] == found[2]


@pytest.fixture
def server(tmp_path):
    write_data(tmp_path / "there/data", shards=5, validation=20)
    with served(tmp_path / "there") as server:
        yield server


def config_of(server, run, *settings):
    """Four rows a step, of which each of two ranks trains two."""
    return tiny_config(f"{server.url}/data", run, "data.retries=0", "data.group=2", *settings)


def reports(run):
    with (run / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


def test_dead_shards_are_reported_beside_the_loss(server, tmp_path):
    server.fails("train-000002.tar", 404, times=ALWAYS)
    cache = f"data.cache={tmp_path / 'cache'}"
    train(config_of(server, tmp_path / "run", "data.skip_dead=true", cache))
    counts = [float(row["data/dead_shards"]) for row in reports(tmp_path / "run")]
    assert len(counts) == 12
    assert counts == sorted(counts)
    assert counts[-1] >= 1
    train(config_of(server, tmp_path / "whole", cache, "run.seed=8", "data.path=" + str(tmp_path / "there/data")))
    assert "data/dead_shards" not in reports(tmp_path / "whole")[0]


def test_remote_and_local_data_train_the_same_weights(server, tmp_path):
    there = config_of(server, tmp_path / "there_run", f"data.cache={tmp_path / 'cache'}", "data.workers=2")
    here = tiny_config(tmp_path / "there/data", tmp_path / "here_run", "data.group=2")
    for config in (there, here):
        train(config)
    one, two = (tmp_path / name / "model.safetensors" for name in ("there_run", "here_run"))
    assert one.read_bytes() == two.read_bytes()
    assert "data/dead_shards" not in reports(tmp_path / "there_run")[0]


@pytest.mark.slow
def test_a_finished_run_does_not_wait_for_the_next_group(server, tmp_path):
    """Started like a user does: the next group is being fetched when the process ends."""
    settings = [f"data.cache={tmp_path / 'cache'}", "trainer.max_steps=2", "run.seed=9"]
    config = config_of(server, tmp_path / "run", *settings)
    shards = PreparedData([tmp_path / "there/data"]).shards("train")
    order = RowOrder(shards, slots=12, group=2, seed=9, predicts_first=True)
    never_there = [f"train-{number:06}.tar" for number in order.shards_of(0, 1)]
    for name in never_there:
        server.fails(name, "stalled", times=ALWAYS)
    save_config(config, tmp_path / "run.yaml")
    command = [sys.executable, "-m", "lcm.cli", "train", "--config", str(tmp_path / "run.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().strip() == str(tmp_path / "run")
        ended = time.monotonic()
        _, err = process.communicate(timeout=50)
    assert process.returncode == 0, err
    assert time.monotonic() - ended < 30, "less than it takes to give up on a silent server"
    assert "Traceback" not in err
    assert set(never_there) <= set(server.requests)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_ranks_skip_a_shard_that_one_of_them_cannot_fetch(strategy, server, tmp_path):
    """Rows and targets are those of a run in which no rank can fetch the shard."""
    together = ["trainer.devices=2", f"trainer.strategy={strategy}", "data.skip_dead=true", "data.workers=2"]
    server.fails("train-000002.tar", 404, times=ALWAYS)
    for name, dead_for in {"one": "1", "all": None}.items():
        server.dead_for = dead_for
        runs = {"run": Run(config_of(server, tmp_path / name, *together))}
        logs = train_together(runs, tmp_path / f"logs-{name}", 2)
        assert logs[0].count("train-000002.tar: not found (tried once); skipped") == 1
        assert "skipped" not in logs[1]
        assert open_checkpoint(latest(tmp_path / name))["global_step"] == 12
    for rank in (0, 1):
        one, every = ((tmp_path / f"logs-{name}/run.{rank}.batches").read_text() for name in ("one", "all"))
        assert one == every
        assert len(one.splitlines()) == 12
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "all/model.safetensors").read_bytes()
    one, every = (reports(tmp_path / name) for name in ("one", "all"))
    for name in ("train/loss", "data/dead_shards", "train/gradient_norm"):
        assert [row[name] for row in one] == [row[name] for row in every]
    assert float(one[-1]["data/dead_shards"]) >= 1


@pytest.mark.slow
def test_a_run_with_dead_shards_does_not_depend_on_the_number_of_ranks(server, tmp_path):
    """Steps, losses and what is skipped do not depend on the number of processes."""
    server.fails("train-000002.tar", 404, times=ALWAYS)
    settings = ["data.skip_dead=true", "model.dropout=0"]
    alone = config_of(server, tmp_path / "alone", *settings, "data.rows=4", f"data.cache={tmp_path / 'cache'}")
    train(alone)
    server.dead_for = "1"
    together = config_of(server, tmp_path / "together", *settings, "trainer.devices=2", "trainer.strategy=ddp")
    train_together({"run": Run(together)}, tmp_path / "logs", 2)
    one, two = (
        torch.tensor([float(row["train/loss"]) for row in reports(tmp_path / n)]) for n in ("alone", "together")
    )
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_without_skip_dead_a_dead_shard_ends_the_run(server, tmp_path):
    server.dead_for = "1"
    server.fails("train-000002.tar", 404, times=ALWAYS)
    config = config_of(server, tmp_path / "run", "trainer.devices=2", "trainer.strategy=ddp", "data.retries=1")
    told = r"UserError: \S+/train-000002\.tar: not found \(tried once\); data\.skip_dead=true"
    with pytest.raises(AssertionError, match=told):
        train_together({"run": Run(config)}, tmp_path / "logs", 2)
