"""A training run: `lcm train` and `lcm export`.

Read run (configuration → model, data, Trainer → fit), then module (one step), then checkpoint and callbacks (what is
saved, and when a run stops). What is settled before anything starts: environment (who started this process), ownership
and start (who may write run.dir, and from where the run resumes). engine and deepspeed hold the strategies by which
ranks share a model; ranks, what is said when one is lost. Nothing here knows a model family by name, and nothing here
is needed to generate.
"""

__all__ = ["checkpoint", "engine", "environment", "loggers", "module", "ownership", "run", "signals"]
