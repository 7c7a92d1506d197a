"""Prepared data: the files on disk, the order in which they are read, and the batches they become.

Read manifest and shards (the files), dataset (several folders as one), packing and order (which documents make a row,
and which rows a step), then loader and datamodule (rows as tensors). Shards behind a URL: remote, shard_cache,
prefetch. Beside these: verify. Nothing here knows text, a codec's network or a model; datamodule alone needs Lightning.
"""

__all__ = ["datamodule", "dataset", "manifest", "remote", "shard_cache", "shards", "verify"]
