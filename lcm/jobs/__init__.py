"""`lcm submit` and `lcm runs`: jobs of a Slurm cluster, from the queue to a table of results.

Read submit (code and configuration are copied before a job is queued), then grid (a sweep), and runs (the table).
"""

__all__ = ["runs", "submit"]
