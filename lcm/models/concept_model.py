"""What the trainer, the generator and the evaluator may assume of any concept model.

Shapes.  B rows · S slots · D concept width · N targets in the batch

Every vector that crosses these methods is a raw codec vector. Inside, all mathematics lives in normalised space.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from lcm.batch import Batch
from lcm.normalizer import Normalizer


@dataclass(frozen=True)
class Losses:
    """per_target: summed over channels, one number a target. meters: further numbers a target, only to be logged."""

    per_target: Float[Tensor, " N"]
    meters: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next concept is drawn. Settings are arguments of `next` and `predict`; a model keeps no such state.

    temperature: spread of the Gaussian noise added to the prediction in normalised space; 0 is the prediction itself
    seed:        the noise of a prompt depends on (seed, prompt, position) alone, so a batch draws what single rows draw
    """

    temperature: float = 0.0
    seed: int = 0


@runtime_checkable
class Context(Protocol):
    """What a model remembers of the concepts so far, one document a row: caches and lengths."""

    @property
    def lengths(self) -> Int[Tensor, " B"]: ...

    def select(self, rows: Int[Tensor, " R"]) -> "Context":
        """The same context for these rows, in this order: drop finished rows, repeat for several samples, reorder."""
        ...


class ConceptModel(nn.Module, ABC):
    """A language model over concepts. Subclasses set `predicts_first` and implement five methods."""

    predicts_first: ClassVar[bool]
    """Whether the first concept of a document can be predicted (from nothing)."""

    dim: int
    """Width of the concepts: the codec's dimension."""

    normalizer: Normalizer
    end_of_text: Float[Tensor, " D"]
    """The codec's vector of "End of text.": a buffer, so a checkpoint knows when to stop."""

    @abstractmethod
    def loss(self, batch: Batch) -> Losses:
        """One number for every slot of `batch.targets(self.predicts_first)`, in row-major order."""

    @abstractmethod
    def predict(self, batch: Batch, sampling: Sampling) -> Float[Tensor, "B S D"]:
        """What follows from the context before each slot, teacher-forced. Slots that cannot be predicted are zero."""

    @abstractmethod
    def prefill(self, prompts: Sequence[Float[Tensor, "_ D"]]) -> Context:
        """Read one prompt a row, of any lengths."""

    @abstractmethod
    def next(self, context: Context, sampling: Sampling) -> Float[Tensor, "B D"]:
        """One new concept for every row. Does not change the context."""

    @abstractmethod
    def extend(self, context: Context, concepts: Float[Tensor, "B D"]) -> Context:
        """The context after one more concept in every row."""


def derive_seed(*numbers: int) -> int:
    """A generator's seed from several numbers, none negative, such as a run's seed and a row's; none correlate."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
