"""Text, pairs or speech → shards: `lcm prepare`.

Read command (the whole of it), then discovery, sources and rows (input → documents), sharding (documents →
shards), worker (shards → files, in processes), resume (an interrupted run). Nothing here is needed to train.
"""

from lcm.prepare.command import prepare
from lcm.prepare.discovery import find_inputs
from lcm.prepare.options import PrepareOptions, share_of
from lcm.prepare.rows import Columns, Document, Refused, split_of
from lcm.prepare.sources import Sources, read_rows

__all__ = [
    "Columns",
    "Document",
    "PrepareOptions",
    "Refused",
    "Sources",
    "command",
    "find_inputs",
    "prepare",
    "read_rows",
    "share_of",
    "split_of",
]
