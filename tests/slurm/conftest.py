"""A cluster for all tests of this folder, and a checkout on it."""

import shutil
import sys
from pathlib import Path

import lab
import pytest

ROOT = Path(__file__).parents[2]
NODES = 2


@pytest.fixture(scope="session")
def cluster():
    """Short paths: a socket's may have 108 characters."""
    folder = Path("/tmp/lcm-slurm-lab")
    lab.up(folder, NODES)
    yield folder
    lab.down(folder)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A checkout with its slurm/env.sh edited."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    environment = f'export PATH="{Path(sys.executable).parent}:$PATH" PYTHONPATH="{ROOT}" OMP_NUM_THREADS=1\n'
    (folder / "slurm/env.sh").write_text(environment)
    return folder
