"""Text in, text out: `lcm.load` and `lcm generate`.

Read pipeline (`LCM`), then loop (concept after concept, and when to stop), pieces (documents longer than the slots,
batches) and nearest (real sentences beside decoded ones). rows and resume are for files of many texts. Nothing here
scores a model.
"""

from lcm.inference.nearest import Bank
from lcm.inference.options import Task
from lcm.inference.pieces import Long
from lcm.inference.pipeline import LCM, load
from lcm.inference.texts import Generation, Text, wishes_for

__all__ = ["LCM", "Bank", "Generation", "Long", "Task", "Text", "command", "load", "wishes_for"]
