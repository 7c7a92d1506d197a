"""Every seed is derived here, from numbers that identify what is drawn: never from a rank, a worker or a batch."""

import hashlib

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def derive_seed(*numbers: int) -> int:
    """A generator's seed from several non-negative numbers, such as a run's seed and a step; none correlate."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def row_seed(seed: int, epoch: int, number: int) -> int:
    """The 63-bit seed of everything random about a row. It knows neither rank, worker nor micro-batch."""
    digest = hashlib.blake2b(b"%d/%d/%d" % (seed, epoch, number), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def text_seed(seed: int, purpose: str, text: str) -> int:
    """The 56-bit seed of everything that is drawn for `purpose` about a text, in whatever company it stands."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{purpose}|{text}".encode("utf-8", "surrogatepass")).digest()[:7])


def generators(seed: int, keys: Int[Tensor, "B k"]) -> list[torch.Generator]:
    """One generator for each row of keys, on the CPU whatever the device of the keys."""
    return [torch.Generator().manual_seed(derive_seed(seed, *key)) for key in keys.tolist()]
