"""Shared parts of the tests on a GPU."""

import os
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS starts: what determinism needs of it

import pytest
import torch

CUDA = "cuda"
TESTS = Path(__file__).parent
SEARCHED = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
"""PYTHONPATH by which other processes find the tests' modules and lcm."""
needs_cuda = [
    pytest.mark.cuda,
    # Said where the first product of a process is one of a backward pass; autograd's threads then set the context.
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),
]


def exact_products() -> bool:
    """True where fp32 products do not use TensorFloat-32: torch's default."""
    return torch.get_float32_matmul_precision() == "highest"
