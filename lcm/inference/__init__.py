"""Text in, text out: `lcm.load` and `lcm generate`.

Read pipeline (`LCM`), then loop (concept after concept, and when to stop) and nearest (real sentences beside decoded
ones). Nothing here scores a model.
"""

from lcm.inference.nearest import Bank
from lcm.inference.pipeline import LCM, Generation, Task, load
from lcm.inference.sampling import add_sampling_arguments, sampling_of

__all__ = ["LCM", "Bank", "Generation", "Task", "add_sampling_arguments", "command", "load", "sampling_of"]
