"""Prompts that fit the model's slots: what is read of a document that is longer, and batches within a memory budget.

Shapes.  D concept width · n concepts of one prompt or continuation
"""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lcm.errors import UserError
from lcm.inference.loop import Generated, StopRules
from lcm.models import Prompts

CONCEPTS = 8192
"""Default of the memory of a batch, in concepts: 64 prompts for a model of 128 slots."""
Long = Literal["head", "tail", "head+tail", "chunks"]


@dataclass(frozen=True)
class Pieces:
    """Prompts that fit the model's slots: one for each text, or several chunks.

    limits:  most sentences to write after each prompt
    keys:    the seed of each prompt's noise; None leaves it to the prompt's last concept
    counts:  prompts of each text
    dropped: concepts of each text that no prompt has
    """

    prompts: list[Float[Tensor, "_ D"]]
    limits: list[int]
    keys: list[int] | None
    counts: list[int]
    dropped: list[int]

    def joined(self, results: Sequence[Generated]) -> list[Generated]:
        """One continuation for each text: those of its chunks in order, which end as the last one does."""
        parts, rest = [], iter(results)
        for count in self.counts:
            chunks = [next(rest) for _ in range(count)]
            parts.append(Generated(torch.cat([chunk.vectors for chunk in chunks]), chunks[-1].reason))
        return parts

    def means(self, values: Sequence[float | None]) -> list[float | None]:
        """The mean over the prompts of each text; None where one has none."""
        means: list[float | None] = []
        rest = iter(values)
        for count in self.counts:
            known = [value for _ in range(count) if (value := next(rest)) is not None]
            means.append(sum(known) / count if len(known) == count else None)
        return means


def limit_of(sentences: int, stop: StopRules, length: float | None) -> int:
    """The most sentences to write for a document of so many; length: share of them that was asked for."""
    asked = stop.max_sentences if length is None else max(1, stop.min_sentences, math.ceil(length * sentences))
    return min(stop.max_sentences, asked)


def check_long(long: Long | None, answers: bool) -> None:
    """Raise UserError for a part of a document after which no continuation can come."""
    if long in ("head", "chunks") and not answers:
        raise UserError(f"--long={long}: goes with answers; a text is continued from its end: take tail or head+tail")


def fit(
    prompts: Prompts,
    limit_of: Callable[[int], int],
    slots: int,
    marks: tuple[int, int],
    long: Long | None = None,
    keys: Sequence[int] | None = None,
) -> Pieces:
    """Make each prompt leave room in the model's slots for what may be written.

    limit_of: the most sentences to write, by the number that a prompt has; it never falls
    marks:    concepts at the beginning and at the end of each prompt that are not of the text, and stay
    """
    found = Pieces([], [], None if keys is None else [], [], [])
    before, after = marks
    for number, prompt in enumerate(prompts):
        text = prompt[before : len(prompt) - after]
        room = slots - limit_of(len(text)) - before - after
        parts = [text] if len(text) <= room else _parts(text, room, long or ("head" if after else "tail"))
        found.prompts.extend(torch.cat([prompt[:before], part, prompt[len(prompt) - after :]]) for part in parts)
        found.limits.extend(limit_of(len(part) if len(parts) > 1 else len(text)) for part in parts)
        found.counts.append(len(parts))
        found.dropped.append(len(text) - sum(map(len, parts)))
        if keys is not None and found.keys is not None:
            found.keys.extend(key_of(f"{keys[number]}/{i}") if i else keys[number] for i in range(len(parts)))
    return found


def _parts(text: Float[Tensor, "n D"], room: int, long: Long) -> list[Float[Tensor, "_ D"]]:
    match long:
        case "head":
            return [text[:room]]
        case "tail":
            return [text[-room:]]
        case "head+tail":
            return [torch.cat([text[: room - room // 2], text[len(text) - room // 2 :]])]
        case "chunks":  # as equal as they can be: a last one of a sentence or two would be answered as a document
            return list(torch.tensor_split(text, -(-len(text) // room)))


def key_of(text: str) -> int:
    """The seed of the noise of a prompt: a function of its text alone, whatever is encoded or drawn beside it."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def batches(sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices by size, the smallest first, in batches of number × largest size ≤ budget; at least one in each."""
    batch: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        if batch and (len(batch) + 1) * sizes[index] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
