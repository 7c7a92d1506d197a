"""Random vectors as a batch and as a prepared data set, a tiny configuration, and a run that kills itself.

    python tests/synthetic.py RUN.yaml STEP MICRO_BATCH

trains, writes a line per micro-batch into RUN.batches, and kills itself before this one.
"""

import hashlib
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import pad

from lcm.batch import PAD, Batch
from lcm.codec.text import SplitterSettings
from lcm.config import Config, load_config
from lcm.data.manifest import CodecInfo, Manifest, NormalizerInfo
from lcm.data.shards import Encoded, shard_name, write_shard
from lcm.training.module import LCMModule

DIM = 8


def pack(rows, slots, seed=0, step_targets=1):
    """Rows of documents, given by their lengths, filled with random vectors that depend on the seed."""
    doc = torch.full((len(rows), slots), PAD)
    pos = torch.zeros(len(rows), slots, dtype=torch.long)
    for r, lengths in enumerate(rows):
        start = 0
        for number, length in enumerate(lengths):
            doc[r, start : start + length] = number
            pos[r, start : start + length] = torch.arange(length)
            start += length
    torch.manual_seed(seed)
    emb = torch.randn(len(rows), slots, DIM).masked_fill((doc == PAD)[..., None], 0)
    return Batch(emb, doc, pos, doc != PAD, torch.arange(len(rows)), torch.tensor(step_targets))


def with_room(batch, slots, rows):
    """The batch with more slots and rows, empty but for vectors of sevens, which nothing may read."""
    room = (0, slots, 0, rows)
    return Batch(
        emb=pad(batch.emb, (0, 0, *room), value=7.0),
        doc=pad(batch.doc, room, value=PAD),
        pos=pad(batch.pos, room),
        is_target=pad(batch.is_target, room),
        row=torch.arange(len(batch.row) + rows),
        step_targets=batch.step_targets,
    )


def write_data(folder: Path, documents: int = 60, shards: int = 3, validation: int = 12, seed: int = 0) -> Path:
    """Write a data set: documents of 2 to 9 sentences and the end of text, some of them pairs."""
    random = np.random.default_rng(seed)
    end = random.standard_normal(DIM).astype(np.float16)

    def document(number: int) -> Encoded:
        count = int(random.integers(2, 10))
        vectors = np.concatenate([random.standard_normal((count, DIM)).astype(np.float16), end[None]])
        prompt = 2 if number % 5 == 0 else 0
        sentences = [f"Sentence {i} of {number}." for i in range(count + 1)]
        return Encoded(number, str(number), "", "", "eng_Latn", sentences, prompt, vectors)

    folder.mkdir(parents=True, exist_ok=True)
    train = [[document(n) for n in range(s, documents, shards)] for s in range(shards)]
    splits = {
        "train": train,
        "validation": [[document(documents + n) for n in range(validation)]] if validation else [],
    }
    records = {
        split: tuple(write_shard(folder / shard_name(split, i), part) for i, part in enumerate(parts))
        for split, parts in splits.items()
    }
    Manifest(
        codec=CodecInfo(
            name="synthetic", fingerprint="0", dim=DIM, lang="eng_Latn", stop_threshold=0.9,
            end_of_text=hashlib.sha256(end.tobytes()).hexdigest(),
        ),
        splitter=SplitterSettings(),
        options={},
        inputs=(),
        refused={},
        splits={split: parts for split, parts in records.items() if parts},
        normalizer=NormalizerInfo(location=(0.25,) * DIM, scale=(2.0,) * DIM),
    ).save(folder)  # fmt: skip
    return folder


def tiny_config(data: Path | str, run: Path, *overrides: str) -> Config:
    """A model of a few thousand parameters with dropout, 12 steps, validation and checkpoints in between."""
    values = {
        "model": {"kind": "base", "dim": DIM, "width": 16, "heads": 2, "layers": 2, "dropout": 0.2},
        "data": {"path": [str(data)], "slots": 12, "rows": 2, "group": 2, "workers": 0},
        "optimizer": {"lr": 1e-2, "warmup_steps": 3},
        "trainer": {
            "max_steps": 12, "precision": "fp32", "devices": 1, "validate_every": 4, "validation_rows": 4,
            "checkpoint_every": 3, "log_every": 1, "loggers": ["csv"],
        },
        "run": {"dir": str(run), "seed": 7},
    }  # fmt: skip
    return Config.parse(values, overrides, where="tiny")


def record_batches(path: Path, kill_at: tuple[int, int] | None = None) -> None:
    """From now on each micro-batch that is trained appends its step, its rows and a checksum of its vectors.

    kill_at: the (step, micro-batch) before which the process kills itself with SIGKILL
    """
    original = LCMModule.training_step

    def training_step(self, batch, batch_idx):
        place = (self.global_step, batch_idx % self.trainer.accumulate_grad_batches)
        if place == kill_at:
            self.trainer.strategy.checkpoint_io.wait()  # so that the newest checkpoint is known
            os.kill(os.getpid(), signal.SIGKILL)
        with path.open("a") as file:
            print(*place, batch.row.tolist(), float(batch.emb.double().sum()), file=file)
        return original(self, batch, batch_idx)

    LCMModule.training_step = training_step


def train_until_killed(path: str, step: str, micro_batch: str) -> None:
    """Train, write a line per micro-batch into RUN.batches, and be killed before this one."""
    from lcm.training.run import train

    torch.set_num_threads(1)
    record_batches(Path(path).with_suffix(".batches"), kill_at=(int(step), int(micro_batch)))
    train(load_config(path))


if __name__ == "__main__":
    train_until_killed(*sys.argv[1:])
