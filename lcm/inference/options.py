"""The options of a continuation, of `lcm generate` and `LCM.generate` alike."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypedDict

from lcm.errors import UserError
from lcm.inference.pieces import CONCEPTS, Long
from lcm.models import Sampling
from lcm.options import Option, check_fields, refuse_idle

Decode = Literal["codec", "nearest", "both"]
Task = Literal["continue", "answer"]


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Settings of a continuation. Raises UserError for a number out of range."""

    max_sentences: Annotated[int | None, Option(least=1)] = None
    """Sentences to write at most (default: 16, or half of the model's slots if that is less; with --length, half of the
    slots)."""
    min_sentences: Annotated[int, Option(least=0)] = 1
    """Sentences to write at least."""
    length: Annotated[float | None, Option("R", least=0.01, most=10)] = None
    """Length to ask for, as a share of the document's sentences, for models tuned on pairs of lcm prepare --lengths;
    also the limit."""
    long: Long | None = None
    """Part of a document longer than the model's slots that is read: head, tail, head+tail, or chunks, which are
    answered one by one (default: head for answers, tail for continuations)."""
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
    batch_concepts: Annotated[int, Option(least=1)] = CONCEPTS
    """Memory of a batch, in concepts: prompts × (the longest of them + what may be written)."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.decode == "nearest":
            idle = "means nothing to --decode nearest, which decodes nothing; take codec or both"
            refuse_idle(self, ("beam", "output_lang"), idle)
        if self.max_sentences is not None and self.min_sentences > self.max_sentences:
            most = f"expected at most --max-sentences={self.max_sentences}"
            raise UserError(f"--min-sentences={self.min_sentences}: {most}")
        if self.task == "continue":
            refuse_idle(self, ("length",), "asks for the length of an answer; take --task answer, or --max-sentences")


class GenerateKeywords(TypedDict, total=False):
    """The fields of `GenerateOptions` as keyword arguments."""

    max_sentences: int | None
    min_sentences: int
    length: float | None
    long: Long | None
    sampling: Sampling
    samples: int
    decode: Decode
    beam: int
    task: Task | None
    lang: str | None
    output_lang: str | None
    batch_concepts: int
