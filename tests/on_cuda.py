"""What the tests on a GPU share."""

import os
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS starts: what determinism needs of it

import pytest
import torch

CUDA = "cuda"
TESTS = Path(__file__).parent
SEARCHED = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
"""Where other processes find the tests' modules and lcm."""
needs_cuda = [
    pytest.mark.cuda,
    # Said where the first product of a process is one of a backward pass; autograd's threads then set the context.
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),
]


def exact_products() -> bool:
    """Whether products of fp32 are products of fp32, without TensorFloat-32: torch's default."""
    return torch.get_float32_matmul_precision() == "highest"
