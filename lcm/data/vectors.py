"""Vectors in a file: read at an offset, whole and finite, or an error that names the file.

Shapes.  n concepts · D concept width
"""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Float16

from lcm.errors import UserError

_NO_NUMBER = np.uint16(0x7C00)
"""The bits of a float16 that are all set in NaN and infinity, and in no number."""


class OpenFile:
    """A file that is closed when nothing refers to it any more."""

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        """descriptor: of the file, if it is open already. Raises UserError if it cannot be opened."""
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY) if descriptor is None else descriptor
        except OSError as error:
            raise UserError(
                f"{path}: {error.strerror}, but the manifest names it; 'lcm verify {path.parent}' says what is broken"
            ) from error

    def fill(self, memory: memoryview, offset: int) -> None:
        """Fill the memory with the bytes from `offset` on. Raises UserError if the file ends too early."""
        while (got := os.preadv(self.descriptor, (memory,), offset)) < len(memory):
            memory, offset = memory[got:], offset + got
            if not got:
                raise UserError(
                    f"{self.path}: truncated: it ends at byte {offset:,}, {len(memory):,} bytes too early; "
                    f"'lcm verify {self.path.parent}' says what is broken, 'lcm prepare' writes it again"
                )

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def are_finite(vectors: Float16[np.ndarray, "n D"]) -> bool:
    """True without NaN and infinity. By the bits, because np.isfinite converts each float16 first."""
    return not (vectors.view(np.uint16) & _NO_NUMBER == _NO_NUMBER).any()


def check_finite(vectors: Float16[np.ndarray, "n D"], path: Path) -> None:
    """Raise UserError, naming the shard, for NaN or infinity among its vectors."""
    if not are_finite(vectors):
        raise UserError(f"{path}: a vector is not finite; 'lcm verify {path.parent}' says what is broken")
