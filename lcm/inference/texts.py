"""A text before and after: its sentences with their marks become a prompt, and concepts become its continuation.

Shapes.  D concept width
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lcm.codec import Codec
from lcm.codec.text import length_wish
from lcm.config import CodecRecord
from lcm.errors import UserError
from lcm.inference.loop import StopReason


@dataclass(frozen=True)
class Text:
    """A text to continue, as sentences, and the languages of both, as FLORES codes."""

    sentences: list[str]
    lang: str
    output_lang: str


@dataclass(frozen=True)
class Generation:
    """A continuation. `text` is its sentences, joined by spaces.

    sentences:  the decoder's; with decode="nearest" the bank's
    nearest:    the closest sentence of the bank to each concept; None with decode="codec"
    similarity: cosine of each concept and its nearest sentence (see Bank.nearest); None with decode="codec"
    roundtrip:  with several samples, the mean distance between a concept of the best and encode(decode(concept))
    dropped:    sentences of the text that the model did not read, for want of slots
    chunks:     pieces in which it was read
    """

    text: str
    sentences: list[str]
    nearest: list[str] | None
    similarity: list[float] | None
    stop_reason: StopReason
    roundtrip: float | None = None
    dropped: int = 0
    chunks: int = 1


def wishes_for(length: float | None, record: CodecRecord, answers: bool) -> list[str]:
    """The sentence that asks for an answer of this length, if any is given: it begins the prompt.

    Raises UserError where the model would not heed it.
    """
    if length is None:
        return []
    if not answers:
        raise UserError(f"--length={length}: asks for the length of an answer; take --task answer, or --max-sentences")
    if not record.lengths:
        raise UserError(
            f"--length={length}: the model was not tuned to lengths, and would not heed it; take --max-sentences, "
            "which cuts, or tune it on pairs of lcm prepare --lengths"
        )
    return [length_wish(length)]


def encode(texts: Sequence[Text], codec: Codec, record: CodecRecord, answers: bool) -> list[Float[Tensor, "_ D"]]:
    """Encode texts. answers: each ends with the suffix that asks for one, in the language of the training data"""
    after = [record.prompt_suffix] * answers
    flat = [sentence for text in texts for sentence in (*text.sentences, *after)]
    langs = [lang for text in texts for lang in (*[text.lang] * len(text.sentences), *[record.lang] * len(after))]
    return list(torch.split(codec.encode(flat, lang=langs), [len(text.sentences) + len(after) for text in texts]))
