"""`lcm plan`: memory, time and disk of a training run before it starts, without a GPU.

Read command, then simulation (one step on the meta device) and memory (what each rank holds).
"""

__all__ = ["command"]
