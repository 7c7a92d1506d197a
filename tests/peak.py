"""Peak memory of training runs, measured in processes of their own.

    python tests/peak.py RUN.yaml PEAK    in each process, as tests/ranks.py starts them

trains a tiny run, then this one, and writes how many bytes its peak is above the memory after the tiny one.
"""

import gc
import sys
import warnings
from pathlib import Path

import torch
from ranks import start, status, wait_together

from lcm.config import load_config, save_config
from lcm.training import run as training
from lcm.training.module import LCMModule

STEPS = 4
"""The peak counts up to the beginning of the last step; the model is saved after it."""


def measure(config):
    original, peak = LCMModule.training_step, []

    def training_step(self, batch, batch_idx):
        for stack in self.model.stacks():
            stack.dense_mask = True
        peak.append(status("VmHWM"))
        return original(self, batch, batch_idx)

    LCMModule.training_step = training_step
    model = config.model.model_copy(update={"width": 16, "heads": 2})
    run = config.run.model_copy(update={"dir": config.run.dir + "-warm-up"})
    training.train(config.model_copy(update={"model": model, "run": run}))
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the mark is now what is resident
    training.train(config)
    return peak[-1] - before


def peaks(config, folder, processes):
    """Peak memory of each rank, in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "run.yaml")
    command = [__file__, str(folder / "run.yaml"), str(folder / "RANK.peak")]
    # glibc gives every piece back at once: what is free does not count.
    settings = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    wait_together(start(command, folder, processes, **settings), folder)
    return [int((folder / f"{rank}.peak").read_text()) for rank in range(processes)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    Path(sys.argv[2]).write_text(str(measure(load_config(sys.argv[1]))))
