"""The interface of every concept model: all that training, generation and evaluation know of one.

Shapes.  B rows · S slots · D concept width · N targets in the batch · R selected rows · n vectors

Every vector that crosses these methods is a raw codec vector. Inside, all mathematics happens in normalized space.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from lcm.batch import Batch
from lcm.errors import UserError
from lcm.models.layers import KVCache
from lcm.models.transformer import Stack, count_parameters
from lcm.options import option_name
from lcm.sampling import Sampling, SamplingOptions


class Normalizer(nn.Module):
    """z = (x - location) / scale: each channel's median and scaled interquartile range (§2.3.1). Identity until set."""

    location: Float[Tensor, " D"]
    scale: Float[Tensor, " D"]

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("location", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def set(self, location: Float[Tensor, " D"], scale: Float[Tensor, " D"]) -> None:
        self.location.copy_(location)
        self.scale.copy_(scale)

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        """Raw codec vectors of any precision → normalized, in fp32."""
        return (x.float() - self.location) / self.scale

    def inverse(self, z: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        """Normalized → raw codec vectors, in fp32."""
        return z.float() * self.scale + self.location

    @torch.no_grad()
    def distance(self, a: Float[Tensor, "n D"], b: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
        """The distance between two normalized vectors as raw codec vectors: the meter of every family."""
        return (self.inverse(a) - self.inverse(b)).norm(dim=-1)


@dataclass(frozen=True)
class Losses:
    """per_target: each target's loss, summed over channels. meters: more numbers a target, which are only logged."""

    per_target: Float[Tensor, " N"]
    meters: Mapping[str, Float[Tensor, " N"]] = field(default_factory=dict)


T = TypeVar("T")


def resolve_sampling(sampling: SamplingOptions, defaults: T) -> T:
    """A family's settings, as a dataclass like its `defaults`, with the fields that `sampling` sets.

    Raises UserError for a setting that the family does not have.
    """
    chosen = {f.name: v for f in fields(SamplingOptions) if (v := getattr(sampling, f.name)) is not None}
    known = {field.name for field in fields(defaults)}  # type: ignore[arg-type]  # no bound says "a dataclass"
    for name in sorted(chosen.keys() - known):
        has = ", ".join(option_name(n) for n in sorted(known))
        raise UserError(f"{option_name(name)}={chosen[name]}: means nothing to this kind of model, which has {has}")
    return replace(defaults, **chosen)  # type: ignore[type-var]


Prompts = Sequence[Float[Tensor, "_ D"]]
"""Documents to continue, of any lengths, as raw codec vectors."""


def prompt_number(z: Float[Tensor, "B D"]) -> Int[Tensor, " B"]:
    """Identify each prompt by the signs of its last concept, which survive the rounding of another batch size."""
    signs = np.packbits((z > 0).cpu().numpy(), axis=1)
    return torch.tensor([zlib.crc32(row.tobytes()) for row in signs], device=z.device)


def read_prompts(
    prompts: Prompts, normalizer: Normalizer
) -> tuple[Float[Tensor, "B S D"], Int[Tensor, " B"], Int[Tensor, " B"]]:
    """Pad prompts of any lengths to one batch in normalized space; returns it, the lengths, and each `prompt_number`.

    There is at least one slot, even if all prompts are empty.
    """
    device = normalizer.location.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    padded = pad_sequence([prompt.to(device) for prompt in prompts], batch_first=True)
    z = normalizer(pad(padded, (0, 0, 0, max(0, 1 - padded.shape[1]))))
    last = z[torch.arange(len(prompts), device=device), (lengths - 1).clamp(min=0)]
    return z, lengths, prompt_number(last.where(lengths[:, None] > 0, 0))


C = TypeVar("C", bound="Context")


@dataclass
class Context:
    """The concepts so far, one document a row, in a key/value cache. `extend` writes into it, and so consumes it.

    A model's weights must not change while one of its contexts is in use: subclasses keep packed copies of them.

    prompt: `prompt_number` of each row, the seed of its noise; it follows the row through `select`
    """

    cache: KVCache
    prompt: Int[Tensor, " B"]
    consumed: bool = field(default=False, kw_only=True)

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        return self.cache.lengths

    @property
    def keys(self) -> Int[Tensor, "B 2"]:
        """The seed of each row's next concept."""
        return torch.stack([self.prompt, self.lengths], dim=1)

    def select(self: C, rows: Int[Tensor, " R"]) -> C:
        """A copy of these rows, in this order: drop finished rows, repeat for several samples, reorder."""
        chosen: dict[str, Any] = {"consumed": False}
        for name, part in vars(self).items():
            if isinstance(part, Tensor | KVCache):
                chosen[name] = part[rows] if isinstance(part, Tensor) else part.select(rows)
        return replace(self, **chosen)

    def consume(self) -> None:
        assert not self.consumed, "this context was extended before; select() makes a copy"
        self.consumed = True


class ConceptModel(nn.Module, ABC):
    """A language model over concepts. Subclasses set `predicts_first` and implement five methods."""

    predicts_first: ClassVar[bool]
    """True if the model can predict the first concept of a document, from nothing."""
    defaults: ClassVar[Any] = Sampling()
    """The settings of `Sampling` that the family has, as a dataclass of its own."""
    dim: int
    """Width of the concepts: the codec's dimension."""
    normalizer: Normalizer
    end_of_text: Float[Tensor, " D"]
    """The codec's vector of "End of text.", with which every document ends. A buffer, so it is in every checkpoint."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.normalizer = dim, Normalizer(dim)
        self.register_buffer("end_of_text", torch.zeros(dim))

    def load_fitted(self, fingerprint: str) -> None:
        """Read the files that the configuration names, fitted to vectors of the codec with this fingerprint.

        Called once before training, after the normalizer is set. Their tensors become buffers: no checkpoint needs the
        files again. Raises UserError for a file that is missing or fitted to something else.
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

    def forward(self, batch: Batch) -> Losses:
        """`loss`, by the call that the hooks of FSDP and DeepSpeed wait for."""
        return self.loss(batch)

    @abstractmethod
    def loss(self, batch: Batch) -> Losses:
        """One loss for every slot of `batch.targets(self.predicts_first)`, in row-major order."""

    @abstractmethod
    def predict(self, batch: Batch, sampling: Sampling) -> Float[Tensor, "B S D"]:
        """Predict every slot from the concepts before it, teacher-forced. Zero where that is not possible."""

    @abstractmethod
    def prefill(self, prompts: Prompts) -> Context:
        """Read one prompt a row, of any lengths."""

    @abstractmethod
    def next(self, context: Context, sampling: Sampling) -> Float[Tensor, "B D"]:
        """Draw one new concept for every row. Does not change the context."""

    @abstractmethod
    def extend(self, context: Context, concepts: Float[Tensor, "B D"]) -> Context:
        """The context after one more concept in every row."""
