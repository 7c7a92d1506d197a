"""What the trainer, the generator and the evaluator may assume of any concept model.

Shapes.  B rows · S slots · D concept width · N targets in the batch

Every vector that crosses these methods is a raw codec vector. Inside, all mathematics lives in normalized space.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from lcm.batch import Batch
from lcm.errors import UserError
from lcm.models.normalizer import Normalizer
from lcm.models.transformer import Stack, count_parameters
from lcm.options import Option, check_bounds, option_name


@dataclass(frozen=True)
class Losses:
    """per_target: summed over channels, one number a target. meters: further numbers a target, only to be logged."""

    per_target: Float[Tensor, " N"]
    meters: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next concept is drawn: arguments of `next` and `predict`; a model keeps no such state.

    None stands for the default of the model's family. A setting that the family does not have is refused. The noise of
    a prompt depends on (seed, prompt, position) alone, so a batch draws what single rows do.
    """

    seed: Annotated[int, Option(least=0)] = 0
    """Seed of everything that is drawn."""
    temperature: Annotated[float | None, Option(least=0)] = None
    """Base: spread of the noise added to the prediction (0); Quant: of the choice among units (d: 1, c: 0.005)."""
    top_k: Annotated[int | None, Option(least=1)] = None
    """Quant: units to choose among (d: 3, c: 5)."""
    guidance: Annotated[float | None, Option(least=0)] = None
    """How far to go from the prediction without context towards the one with it, and beyond; 1 is no guidance
    (diffusion: 3, d: 1, c: 1.5)."""
    rescale: Annotated[float | None, Option(least=0, most=1)] = None
    """diffusion: how much of the larger spread that guidance causes is taken back, 0 to 1 (0.7)."""
    steps: Annotated[int | None, Option(least=1)] = None
    """diffusion: calls of the denoiser (40)."""
    sampler: Literal["ddim", "dpm"] | None = None
    """diffusion: ddim, or dpm for DPM-Solver++ (ddim)."""
    initial_noise: Annotated[float | None, Option(least=0)] = None
    """diffusion: spread of the noise to start from (0.6)."""
    epsilon_scaling: float | None = None
    """diffusion, ddim: λ_ε, what the noise is divided by at every step (1.00045)."""
    eta: Annotated[float | None, Option(least=0)] = None
    """diffusion, ddim: noise added on the way, 1 as much as in training (0)."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.epsilon_scaling is not None and not self.epsilon_scaling > 0:
            raise UserError(f"--epsilon-scaling={self.epsilon_scaling}: expected more than 0")


T = TypeVar("T")


def settle(sampling: Sampling, defaults: T) -> T:
    """A family's settings, a dataclass: its defaults, and on top what was given.

    Raises UserError for a setting that the family does not have.
    """
    given = {field.name: getattr(sampling, field.name) for field in fields(sampling) if field.name != "seed"}
    known = {field.name for field in fields(defaults)}  # type: ignore[arg-type]  # no bound says "a dataclass"
    for name in sorted(given.keys() - known):
        if given[name] is not None:
            has = ", ".join(option_name(n) for n in sorted(known))
            raise UserError(f"{option_name(name)}={given[name]}: means nothing to this kind of model, which has {has}")
    return replace(defaults, **{n: v for n, v in given.items() if v is not None})  # type: ignore[type-var]


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

    defaults: ClassVar[Any] = Sampling()
    """The settings of `Sampling` that the family has, in a dataclass of its own."""

    dim: int
    """Width of the concepts: the codec's dimension."""

    normalizer: Normalizer
    end_of_text: Float[Tensor, " D"]
    """The codec's vector of "End of text.": a buffer, so a checkpoint knows when to stop."""

    def read_fitted(self, codec: str) -> None:
        """Read the files that the configuration names, fitted to vectors of the codec with this fingerprint.

        Called once before training, when the normalizer is set; they become buffers, so a checkpoint needs no file.
        """

    def stacks(self) -> list[Stack]:
        """The towers: one transformer, or a contextualizer and a denoiser."""
        return [part for part in self.modules() if isinstance(part, Stack)]

    def blocks(self) -> list[nn.Module]:
        """The blocks of every stack: the unit of compiling, recomputing and sharding."""
        return [block for stack in self.stacks() for block in stack.blocks]

    def training_flops(self, slots: int) -> int:
        """Floating-point operations of one concept in rows of `slots`, forward and backward.

        6 a parameter and 12 · width · slots an attention layer (Chowdhery et al. 2022, appendix B): neither recomputed
        activations nor empty slots count.
        """
        stacks = self.stacks()
        elsewhere = count_parameters(self) - sum(count_parameters(stack) for stack in stacks)
        return 6 * elsewhere + sum(stack.training_flops(slots) for stack in stacks)

    def forward(self, batch: Batch) -> "Losses":
        """`loss`: what is called in training, so that whoever slices the model sees its calls."""
        return self.loss(batch)

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
