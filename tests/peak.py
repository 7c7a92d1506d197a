"""The peak of memory of training runs, measured in processes of their own.

    python tests/peak.py RUN.yaml PEAK    in each process, as tests/ranks.py starts them

trains, after a tiny run of the same kind, and writes how many bytes more than then were resident at once.
"""

import gc
import os
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch

from lcm import train as training
from lcm.config import load_config, save_config
from lcm.interleaved import Interleaved
from lcm.module import LCMModule
from lcm.transformer import Transformer

STEPS = 4
"""The peak counts up to the beginning of the last one, after which the model is saved."""


def resident(name):
    """VmRSS: now; VmHWM: the most since it was reset."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def measure(config):
    original, peak = LCMModule.training_step, []

    def training_step(self, batch, batch_idx):
        for part in self.modules():
            if isinstance(part, Transformer | Interleaved):
                part.whole_rows = True
        peak.append(resident("VmHWM"))
        return original(self, batch, batch_idx)

    LCMModule.training_step = training_step
    model = config.model.model_copy(update={"width": 16, "heads": 2})
    run = config.run.model_copy(update={"dir": config.run.dir + "-warm-up"})
    training.train(config.model_copy(update={"model": model, "run": run}))
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the mark is now what is resident
    training.train(config)
    return peak[-1] - before


def peaks(config, folder, processes):
    """Of each process, in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "run.yaml")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    here = Path(__file__).parent
    # glibc gives every large piece back at once: what is free does not count.
    shared = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    shared |= {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    shared["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent)])
    if processes > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    started = []
    for rank in range(processes):
        environment = {**shared, "LOCAL_RANK": str(rank)} if processes > 1 else shared
        command = [sys.executable, __file__, str(folder / "run.yaml"), str(folder / f"{rank}.peak")]
        with (folder / f"{rank}.log").open("w") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    end = time.monotonic() + 400
    try:
        while any(process.poll() is None for process in started):
            assert time.monotonic() < end, "too slow"
            assert not any(process.poll() for process in started), "one process has failed"
            time.sleep(0.1)
    except AssertionError as error:
        logs = [(folder / f"{rank}.log").read_text()[-3000:] for rank in range(processes)]
        raise AssertionError("\n\n".join([str(error), *logs])) from error
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [int((folder / f"{rank}.peak").read_text()) for rank in range(processes)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    Path(sys.argv[2]).write_text(str(measure(load_config(sys.argv[1]))))
