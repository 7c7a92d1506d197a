"""Prepared data: the files on disk, the order in which they are read, and the batches they become.

Read manifest and shards (the files), dataset (several folders as one), packing, order and mixture (which documents make
a row, which rows a step, which sets give how many), then loader and datamodule (rows as tensors). Shards behind a URL:
remote, shard_cache, prefetch. Beside these: verify. Nothing here knows text, a codec's network or a model; datamodule
alone needs Lightning.
"""

__all__ = ["datamodule", "dataset", "manifest", "mixture", "remote", "shard_cache", "shards", "verify"]
