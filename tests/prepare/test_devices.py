"""Devices: worker i gets device i modulo their number, and the bytes do not depend on it."""

import json
import os
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from stub_codec import InlinePool, StubCodec, StubPool, use_codec

from lcm.errors import UserError
from lcm.prepare.command import prepare
from lcm.prepare.options import PrepareOptions, devices_for, workers_for
from lcm.prepare.worker import Pool


def gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("count", "given", "devices"),
    [
        (0, (), ("cpu",)),
        (0, ("cpu",), ("cpu",)),
        (2, (), ("cuda:0", "cuda:1")),
        (2, ("cuda",), ("cuda:0", "cuda:1")),
        (4, ("cuda:3", "cuda:1"), ("cuda:3", "cuda:1")),
        (4, ("cpu",), ("cpu",)),
    ],
)
def test_all_gpus_are_used_by_default(count, given, devices, monkeypatch):
    gpus(monkeypatch, count)
    assert devices_for(given) == devices


@pytest.mark.parametrize(
    ("count", "given", "message"),
    [
        (0, ("cuda",), "--devices=cuda: no GPU is visible here"),
        (2, ("cuda:2",), "no device 'cuda:2'; expected one or more of cpu, cuda:0, cuda:1"),
        (1, ("cpu", "cuda:0"), "expected the CPU or GPUs, not both"),
        (0, ("cpu", "tpu"), "no device 'tpu'"),
    ],
)
def test_a_device_that_is_not_there_is_refused(count, given, message, monkeypatch):
    gpus(monkeypatch, count)
    with pytest.raises(UserError) as error:
        devices_for(given)
    assert message in str(error.value)


def test_there_are_as_many_workers_as_gpus_or_else_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert workers_for(None, ("cpu",)) == 12
    assert workers_for(None, ("cuda:0", "cuda:1")) == 2
    assert workers_for(5, ("cuda:0", "cuda:1")) == workers_for(5, ("cpu",)) == 5


class Named:
    """A worker that says where it was started, and holds its task until the others have theirs."""

    def __init__(self, device, folder):
        self.info, self.folder = device, folder

    def __call__(self, task, progress):
        (self.folder / f"{os.getpid()}").write_text(self.info)
        while len(list(self.folder.iterdir())) < 3:
            time.sleep(0.05)
        return self.info


def test_worker_i_gets_device_i_modulo_their_number(tmp_path):
    starts = [partial(Named, device, tmp_path) for device in ("cuda:0", "cuda:1")]
    with Pool(starts, 3, print) as pool:
        assert pool.info() == "cuda:0"
        results = list(pool.run(range(3)))
    assert sorted(results) == ["cuda:0", "cuda:0", "cuda:1"]


def load_noting(folder, name, *, device, compile_encoder=False):
    (Path(folder) / f"{device}-{os.getpid()}-{torch.get_num_threads()}").touch()
    return StubCodec(name)


def test_the_bytes_depend_neither_on_workers_nor_on_their_devices(tmp_path, monkeypatch):
    rows = [{"id": i, "text": f"Text {i}. It goes on!", "split": "train"} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gpus(monkeypatch, 3)
    found = {}
    for workers, devices in ((1, ("cuda:0",)), (2, ("cuda",))):
        output, notes = tmp_path / f"data{workers}", tmp_path / f"notes{workers}"
        notes.mkdir()
        use_codec(monkeypatch, partial(load_noting, str(notes)), InlinePool if workers == 1 else StubPool)
        options = PrepareOptions(
            input=(str(tmp_path / "a.jsonl"),), output=str(output), workers=workers, devices=devices, shard_documents=4
        )
        manifest = prepare(options)
        found[workers] = {path.name: path.read_bytes() for path in output.iterdir()}
        for path in notes.glob("cpu-*"):
            path.unlink()  # this process, which loads no weights
        places = sorted(path.name.split("-")[0] for path in notes.iterdir())
        assert set(places) <= {"cuda:0", "cuda:1", "cuda:2"}
        assert len(places) == len(set(places)) <= workers
        assert {path.name.split("-")[2] for path in notes.iterdir()} == {"1"}
    assert found[1] == found[2]
    assert manifest.options["devices"] == "cuda"
    with pytest.raises(UserError, match="--devices cuda, now not given"):
        prepare(PrepareOptions(input=options.input, output=options.output, devices=("cpu",), shard_documents=4))
