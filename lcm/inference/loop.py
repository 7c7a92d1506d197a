"""Concepts → more concepts: the loop that every model's generation runs, and the rules that end it.

Shapes.  B rows still going · D concept width · n concepts of one prompt or continuation
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lcm.errors import UserError
from lcm.models import ConceptModel, Sampling

StopReason = Literal["end", "repetition", "length"]


@dataclass(frozen=True, kw_only=True)
class StopRules:
    """When a continuation is over (paper §2.3.1). Cosines are taken on raw codec vectors, as the paper does.

    max_sentences:        always wins
    min_sentences:        so many sentences before a concept may end the text; max_sentences wins where it is smaller
    end_threshold:        cosine to "End of text." from which a concept ends the text; it depends on the codec
    repetition_threshold: cosine to the concept before it from which a concept is a repetition; None: never. Of 61,154
                          neighbouring sentences of real text the embedded codec puts 39 there, equal ones among them
    """

    max_sentences: int
    end_threshold: float
    min_sentences: int = 1
    repetition_threshold: float | None = 0.9

    def __post_init__(self) -> None:
        if self.max_sentences < 1:
            raise UserError(f"max_sentences={self.max_sentences}: expected 1 or more")
        if self.min_sentences < 0:
            raise UserError(f"min_sentences={self.min_sentences}: expected 0 or more")


@dataclass(frozen=True)
class Generated:
    """What followed one prompt, and why it ended. Neither the end-of-text concept nor a repetition is part of it."""

    vectors: Float[Tensor, "n D"]
    reason: StopReason


@torch.no_grad()
def generate(
    model: ConceptModel, prompts: Sequence[Float[Tensor, "_ D"]], stop: StopRules, sampling: Sampling
) -> list[Generated]:
    """Continue prompts of any lengths side by side; each result is what its prompt alone would have given.

    Rows that are over leave the batch. Raises UserError where the model predicts NaN or infinity.
    """
    kept: list[list[Float[Tensor, " D"]]] = [[] for _ in prompts]
    reasons: list[StopReason] = ["length" for _ in prompts]
    device = model.end_of_text.device
    rows = torch.arange(len(prompts), device=device)  # the prompt of each row that is still going
    context = model.prefill(prompts)
    before = torch.stack([prompt[-1] for prompt in prompts]).to(device)
    for count in range(stop.max_sentences):
        concepts = model.next(context, sampling)
        if not concepts.isfinite().all():
            raise UserError(
                "the model predicts NaN or infinity: its training diverged; train with a lower optimizer.lr"
            )
        ends = cosine_similarity(concepts, model.end_of_text, dim=1) >= stop.end_threshold
        repeats = _repeats(concepts, before, stop)
        if count < stop.min_sentences:
            concepts = torch.where(ends[:, None], _without_end(concepts, model.end_of_text), concepts)
            going = torch.ones_like(ends)
        else:
            going = ~(ends | repeats)
        for row, concept, goes, end in zip(rows.tolist(), concepts, going.tolist(), ends.tolist(), strict=True):
            if goes:
                kept[row].append(concept)
            else:
                reasons[row] = "end" if end else "repetition"
        stay = going.nonzero().squeeze(1)
        if not len(stay) or count + 1 == stop.max_sentences:
            break
        if len(stay) < len(rows):
            context, concepts, rows = context.select(stay), concepts[stay], rows[stay]
        context, before = model.extend(context, concepts), concepts
    nothing = model.end_of_text.new_empty(0, model.dim)
    return [
        Generated(torch.stack(vectors) if vectors else nothing, reason)
        for vectors, reason in zip(kept, reasons, strict=True)
    ]


def _repeats(concepts: Float[Tensor, "B D"], before: Float[Tensor, "B D"], stop: StopRules) -> Bool[Tensor, " B"]:
    if stop.repetition_threshold is None:
        return torch.zeros(len(concepts), dtype=torch.bool, device=concepts.device)
    return cosine_similarity(concepts, before, dim=1) >= stop.repetition_threshold


def _without_end(concepts: Float[Tensor, "B D"], end_of_text: Float[Tensor, " D"]) -> Float[Tensor, "B D"]:
    """What is left of a concept without its end-of-text part: the counterpart of forbidding a token.

    Only for a text that wants to end before `min_sentences`.
    """
    end = end_of_text / end_of_text.norm()
    return concepts - (concepts @ end)[:, None] * end
