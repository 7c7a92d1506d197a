"""Text, pairs or speech → shards: `lcm prepare`.

Read command (the whole of it), then sources and rows (what is read), sharding (which document goes to which shard),
pool and worker (who encodes it), resume (what is finished already). Nothing here is needed to train.
"""

from lcm.prepare.command import PrepareOptions, prepare
from lcm.prepare.inputs import DamagedFile, find_inputs, opened
from lcm.prepare.rows import Columns, Document, Refused
from lcm.prepare.sharding import split_of
from lcm.prepare.sources import Sources

__all__ = [
    "Columns",
    "DamagedFile",
    "Document",
    "PrepareOptions",
    "Refused",
    "Sources",
    "command",
    "find_inputs",
    "opened",
    "prepare",
    "split_of",
]
