"""Prepared data: what lies on disk, in what order it is read, and how it becomes batches.

Read manifest and shards (the files), then packing and order (which documents make which row and step), then loader and
datamodule (rows as tensors). Shards behind a URL: remote, shard_cache, prefetch. Nothing here knows text, a codec's
network or a model; Lightning is imported with `ConceptData` only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lcm.data.dataset import PreparedData, RemoteShard, Shard, shards_at
from lcm.data.manifest import (
    MANIFEST,
    SPLITS,
    UNFINISHED,
    CodecInfo,
    DatasetInfo,
    InputFile,
    Manifest,
    NormalizerInfo,
    Record,
    RefusedRecord,
    ShardRecord,
    open_dataset,
)
from lcm.data.order import Position
from lcm.data.remote import Unreachable, is_url, local
from lcm.data.shard_cache import ShardCache
from lcm.data.shards import (
    CONCEPTS,
    SOURCE,
    Encoded,
    index_path,
    load_index,
    read_documents,
    read_sample,
    read_shard,
    shard_name,
    write_shard,
)
from lcm.data.statistics import SAMPLE, fit, fit_normalizer, sample_vectors

if TYPE_CHECKING:
    from lcm.data.datamodule import ConceptData

__all__ = [
    "CONCEPTS",
    "MANIFEST",
    "SAMPLE",
    "SOURCE",
    "SPLITS",
    "UNFINISHED",
    "CodecInfo",
    "ConceptData",
    "DatasetInfo",
    "Encoded",
    "InputFile",
    "Manifest",
    "NormalizerInfo",
    "Position",
    "PreparedData",
    "Record",
    "RefusedRecord",
    "RemoteShard",
    "Shard",
    "ShardCache",
    "ShardRecord",
    "Unreachable",
    "fit",
    "fit_normalizer",
    "index_path",
    "is_url",
    "load_index",
    "local",
    "open_dataset",
    "read_documents",
    "read_sample",
    "read_shard",
    "sample_vectors",
    "shard_name",
    "shards_at",
    "verify",
    "write_shard",
]

_MODULES = {"ConceptData": "datamodule"}
"""Modules that import Lightning, which takes seconds: loaded when one of their names is asked for."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
