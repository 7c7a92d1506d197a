"""The generation loop: concept after concept, for any model, and the rules that stop it.

Shapes.  B unfinished rows · D concept width · n concepts of one prompt or continuation
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lcm.errors import UserError
from lcm.models import ConceptModel, Prompts, Sampling
from lcm.options import Option, check_fields

StopReason = Literal["end", "repetition", "length"]


@dataclass(frozen=True, kw_only=True)
class StopRules:
    """When a continuation is over (paper §2.3.1). Cosines are those of raw codec vectors, as in the paper."""

    max_sentences: Annotated[int, Option(least=1)]
    """Most sentences of a continuation; wins over min_sentences."""
    end_threshold: float
    """Cosine to "End of text." from which a concept ends the text; depends on the codec."""
    min_sentences: Annotated[int, Option(least=0)] = 1
    """Sentences before a concept may end the text."""
    repetition_threshold: float | None = 0.9
    """Cosine to the previous concept from which a concept is a repetition; None for never. With the embedded codec, 39
    of 61,154 pairs of neighbouring sentences in real text are above 0.9, equal ones among them."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Generated:
    """The continuation of one prompt, without the end-of-text concept or repetition that ended it."""

    vectors: Float[Tensor, "n D"]
    reason: StopReason


@torch.no_grad()
def generate(
    model: ConceptModel,
    prompts: Prompts,
    stop: StopRules,
    sampling: Sampling,
    limits: Sequence[int] | None = None,
    keys: Sequence[int] | None = None,
) -> list[Generated]:
    """Continue a batch of prompts of any lengths; each result is what its prompt would give alone.

    limits: most sentences after each prompt, in place of `stop.max_sentences`
    keys:   the seed of each prompt's noise (default: its `prompt_number`)

    Finished rows leave the batch. A concept that would end a text before `min_sentences` loses its part in the
    direction of the end of text, as a language model is forbidden a token. Raises UserError if the model predicts NaN
    or infinity.
    """
    kept: list[list[Float[Tensor, " D"]]] = [[] for _ in prompts]
    reasons: list[StopReason] = ["length" for _ in prompts]
    device = model.end_of_text.device
    rows = torch.arange(len(prompts), device=device)  # the prompt of each unfinished row
    most = torch.tensor([stop.max_sentences] * len(prompts) if limits is None else list(limits), device=device)
    context = model.prefill(prompts)
    if keys is not None:
        context.prompt = torch.tensor(keys, device=device)
    previous = torch.stack([prompt[-1] for prompt in prompts]).to(device)
    end = model.end_of_text / model.end_of_text.norm()
    repetition = math.inf if stop.repetition_threshold is None else stop.repetition_threshold
    for count in range(int(most.max())):
        concepts = model.next(context, sampling)
        if not concepts.isfinite().all():
            raise UserError("the model predicts NaN or infinity: training diverged; train with a lower optimizer.lr")
        ends = cosine_similarity(concepts, model.end_of_text, dim=1) >= stop.end_threshold
        repeats = cosine_similarity(concepts, previous, dim=1) >= repetition
        if count < stop.min_sentences:
            concepts = torch.where(ends[:, None], concepts - (concepts @ end)[:, None] * end, concepts)
            going = torch.ones_like(ends)
        else:
            going = ~(ends | repeats)
        for row, concept, goes, is_end in zip(rows.tolist(), concepts, going.tolist(), ends.tolist(), strict=True):
            if goes:
                kept[row].append(concept)
            else:
                reasons[row] = "end" if is_end else "repetition"
        stay = (going & (most[rows] > count + 1)).nonzero().squeeze(1)
        if not len(stay):
            break
        if len(stay) < len(rows):
            context, concepts, rows = context.select(stay), concepts[stay], rows[stay]
        context, previous = model.extend(context, concepts), concepts
    vectors = [torch.stack(concepts) if concepts else end.new_empty(0, model.dim) for concepts in kept]
    return [Generated(*result) for result in zip(vectors, reasons, strict=True)]
