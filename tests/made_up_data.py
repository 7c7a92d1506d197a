"""Prepared folders whose vectors say where they come from, so that a batch can be read like a list."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lcm.batch import Batch
from lcm.codec.text import SplitterSettings
from lcm.config import Config
from lcm.data.manifest import CodecInfo, Manifest, NormalizerInfo
from lcm.data.shards import Encoded, shard_name, write_shard

DIM = 4
END = np.full(DIM, 7, dtype=np.float16)
Document = tuple[int, int]
"""(concepts, source_length)"""


def write_data(
    folder: Path,
    train: Sequence[Document],
    validation: Sequence[Document] = (),
    test: Sequence[Document] = (),
    *,
    mark: int = 0,
    per_shard: int = 10,
    dim: int = DIM,
    end: np.ndarray = END,
    fingerprint: str = "f00",
) -> Path:
    """Concept i of document d is (mark, d, i, 1); every document ends with `end`. `mark` tells folders apart."""
    folder.mkdir(parents=True)
    splits, number = {}, 0
    for split, documents in {"train": train, "validation": validation, "test": test}.items():
        records = []
        for start in range(0, len(documents), per_shard):
            some = documents[start : start + per_shard]
            path = folder / shard_name(split, len(records))
            records.append(write_shard(path, [encoded(number + i, d, mark, dim, end) for i, d in enumerate(some)]))
            number += len(some)
        splits[split] = tuple(records)
    Manifest(
        codec=CodecInfo(
            name="toy",
            fingerprint=fingerprint,
            dim=dim,
            lang="eng_Latn",
            stop_threshold=0.9,
            end_of_text=hashlib.sha256(end[:dim].tobytes()).hexdigest(),
        ),
        splitter=SplitterSettings(),
        options={},
        inputs=(),
        refused={},
        splits=splits,
        normalizer=NormalizerInfo(location=(float(mark),) * dim, scale=(2.0,) * dim),
    ).save(folder)
    return folder


def encoded(number: int, document: Document, mark: int, dim: int, end: np.ndarray) -> Encoded:
    concepts, source_length = document
    vectors = np.array([(mark, number, i, 1) for i in range(concepts)], dtype=np.float16)[:, :dim]
    vectors[-1] = end[:dim]
    return Encoded(
        number=number,
        id=f"{mark}-{number}",
        title="",
        source="made up",
        lang="eng_Latn",
        sentences=["?"] * concepts,
        source_length=source_length,
        vectors=vectors,
    )


def some_documents(count: int, longest: int = 12, seed: int = 0) -> list[Document]:
    """Every third one is a pair."""
    lengths = np.random.default_rng(seed).integers(2, longest + 1, count).tolist()
    return [(n, n // 2 if i % 3 == 0 and n > 3 else 0) for i, n in enumerate(lengths)]


def a_config(*folders: Path, **settings: object) -> Config:
    """a_config(folder, data__rows=2): a run on made-up data; every setting may be named."""
    values = {
        "model": {"kind": "base", "dim": DIM, "width": 8, "heads": 2, "layers": 1},
        "data": {"path": [str(f) for f in folders], "slots": 16, "rows": 2, "group": 2, "workers": 0},
        "trainer": {"max_steps": 1000, "validation_rows": 10},
    }
    for name, value in settings.items():
        section, setting = name.split("__")
        values.setdefault(section, {})[setting] = value
    return Config.parse(values, [], where="test")


def documents_in(batch: Batch) -> list[tuple[int, int, list[int], list[bool]]]:
    """(mark, number, concepts, targets) of each document, row by row. The vector at the end names no concept: -1."""
    found = []
    for emb, doc, is_target in zip(batch.emb, batch.doc, batch.is_target, strict=True):
        for number in doc[doc >= 0].unique().tolist():
            vectors = emb[doc == number].tolist()
            concepts = [-1 if v == END.tolist() else int(v[2]) for v in vectors]
            found.append((int(vectors[0][0]), int(vectors[0][1]), concepts, is_target[doc == number].tolist()))
    return found
