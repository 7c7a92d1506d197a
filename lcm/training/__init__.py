"""A training run: `lcm train` and `lcm export`.

Read run (configuration → model, data, Trainer → fit), then module (one step), then checkpoint and callbacks (what is
saved, and when a run stops). engine and deepspeed hold the strategies by which ranks share a model, and what each does
differently. Nothing here knows a model family by name, and nothing here is needed to generate.
"""

__all__ = ["checkpoint", "engine", "loggers", "module", "run", "signals"]
