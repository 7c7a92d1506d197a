"""Prepared data: the files on disk, the order in which they are read, and the batches they become.

Read manifest and shards (the files), dataset (several folders as one), packing and order (which documents make a row,
and which rows a step), then loader and datamodule (rows as tensors). Shards behind a URL: remote, shard_cache,
prefetch. Beside these: statistics (the normalizer) and verify. Nothing here knows text, a codec's network or a model;
Lightning is imported with `ConceptData` only.
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
from lcm.data.remote import Unreachable, is_url, local_folder
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
    "local_folder",
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
"""Names whose module imports Lightning, which takes seconds: loaded at first use."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
