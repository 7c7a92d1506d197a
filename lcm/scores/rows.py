"""The row of everything that is judged: a document, what people wrote of it, and what a system wrote."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from lcm.ledger import Ledger


@dataclass(frozen=True)
class Row:
    """One text to judge. document: the source, empty where there is none; references: texts of people, maybe several"""

    id: str
    document: str
    references: tuple[str, ...]
    prediction: str


Score = Callable[[Sequence[Row], Ledger], Float64[np.ndarray, " n"]]
"""One number a row; NaN for a row that cannot be scored, which the ledger counts."""


@dataclass(frozen=True)
class Measure:
    """A score in words, as results.json records it. better: the direction that is good for a summary, if one is"""

    source: str
    measures: str
    better: Literal["higher", "lower", "neither"] = "higher"
    range: str = "0 to 1"
