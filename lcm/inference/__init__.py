"""Text in, text out: `lcm.load` and `lcm generate`.

Read pipeline (`LCM` and its options), then loop (concept after concept, and when to stop) and nearest (real sentences
beside decoded ones). Nothing here scores a model.
"""

from lcm.inference.nearest import Bank
from lcm.inference.pipeline import LCM, Generation, Task, load

__all__ = ["LCM", "Bank", "Generation", "Task", "command", "load"]
