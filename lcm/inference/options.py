"""Options of `LCM.generate`, which are also those of `lcm generate`: each is written once, with its help."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypedDict

from lcm.models import Sampling
from lcm.options import Option, check_bounds

Decode = Literal["codec", "nearest", "both"]
Task = Literal["continue", "answer"]


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Settings of a continuation. Raises UserError for a number out of range."""

    max_sentences: Annotated[int | None, Option(least=1)] = None
    """Sentences to write at most (default: 16, or half of the model's slots if that is less)."""
    min_sentences: Annotated[int, Option(least=0)] = 1
    """Sentences to write at least."""
    sampling: Sampling = field(default_factory=Sampling)
    """Settings for drawing concepts; None stands for the default of the model's family."""
    samples: Annotated[int, Option(least=1)] = 1
    """Draw N continuations and keep the one whose concepts are nearest to real sentences: the smallest mean distance
    between a concept and encode(decode(concept))."""
    decode: Decode = "codec"
    """codec: the decoder's sentences; nearest: the closest real sentences of a bank; both: one beside the other."""
    beam: Annotated[int, Option(least=1)] = 1
    """Beams of the decoder; 1 is greedy."""
    task: Task | None = None
    """answer: write what follows the document of a pair, as in training (default: answer for a model trained on pairs
    alone, else continue)."""
    lang: Annotated[str | None, Option("CODE")] = None
    """FLORES code of the text (default: the training data's)."""
    output_lang: Annotated[str | None, Option("CODE")] = None
    """FLORES code of the continuation (default: the text's)."""

    def __post_init__(self) -> None:
        check_bounds(self)


class GenerateKeywords(TypedDict, total=False):
    """The fields of `GenerateOptions` as keyword arguments."""

    max_sentences: int | None
    min_sentences: int
    sampling: Sampling
    samples: int
    decode: Decode
    beam: int
    task: Task | None
    lang: str | None
    output_lang: str | None
