"""`lcm export` takes no more memory for a bigger checkpoint: its tensors go from one file into the other."""

import subprocess
import sys
from pathlib import Path

import torch
from synthetic import tiny_config

from lcm.config import BaseLCMConfig
from lcm.models import MODEL, build_model, load_model
from lcm.training.checkpoint import AtomicCheckpointIO

EXPORTING = """
import sys, threading, time
from pathlib import Path
from lcm.training.checkpoint import export

def own():  # in bytes, without what is only mapped
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

def look():
    while not over.wait(0.001):
        seen.append(own())

seen, over = [own()], threading.Event()
looking = threading.Thread(target=look)
looking.start()
export(sys.argv[1], sys.argv[2])
over.set()
looking.join()
print(len(seen), max(seen) - seen[0])
"""


def test_an_export_holds_a_fraction_of_the_model(tmp_path):
    config = tiny_config(tmp_path, tmp_path / "run")
    config = config.model_copy(update={"model": BaseLCMConfig(kind="base", dim=64, width=512, heads=8, layers=8)})
    torch.manual_seed(0)
    model = build_model(config.model)
    moments = {i: {"exp_avg": torch.zeros_like(p)} for i, p in enumerate(model.parameters())}
    checkpoint = {
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer_states": [{"state": moments}],
        "config": config.model_dump(mode="json"),
        "global_step": 1,
        "metrics": {},
        "versions": {},
    }
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    command = [sys.executable, "-c", EXPORTING, str(tmp_path / "last.ckpt"), str(tmp_path / "out")]
    looked, grew = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    size = Path(tmp_path, "out", MODEL).stat().st_size
    assert size > 90e6
    assert looked > 20
    assert grew < 0.3 * size, "the largest tensor is a thirtieth of the model"
    torch.testing.assert_close(load_model(tmp_path / "out")[0].state_dict(), model.state_dict(), rtol=0, atol=0)
