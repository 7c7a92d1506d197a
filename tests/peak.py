"""Peak memory of training runs, measured in processes of their own."""

import gc
import os
import warnings
from pathlib import Path

from ranks import start, status, wait_together

from lcm.config import load_config, save_config
from lcm.training import run as training
from lcm.training.module import LCMModule

STEPS = 4
"""The peak counts up to the beginning of the last step; the model is saved after it."""


def measure(config):
    """Peak of resident bytes beyond that of a tiny run of the same kind."""
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
    wait_together(start(write_peak, folder, folder, processes), folder)
    return [int((folder / f"{rank}.peak").read_text()) for rank in range(processes)]


def write_peak(folder):
    warnings.simplefilter("ignore")
    rank = os.environ["LOCAL_RANK"]  # of a single rank, training removes it
    peak = measure(load_config(folder / "run.yaml"))
    (folder / f"{rank}.peak").write_text(str(peak))
