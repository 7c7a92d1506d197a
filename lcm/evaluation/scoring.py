"""Teacher-forced scores: every sentence predicted from the true ones before it (paper §2.4.1), beside two controls.

Shapes.  B rows · S slots · D concept width · n concepts of one piece · N sentences that are predicted
         c sentences that they are told from · E ends of documents
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.nn.utils.rnn import pad_sequence

from lcm.batch import PAD, Batch
from lcm.config import CodecRecord
from lcm.evaluation.examples import Example
from lcm.evaluation.metrics import Interval, bootstrap, contrastive_accuracy, l2, par
from lcm.models import ConceptModel, Sampling

METRICS = ("l2", "l2_roundtrip", "contrastive_accuracy", "par")
ROWS = 16
"""Pieces of one forward pass."""
POSITIONS = (1, 2, 4, 8, 16, 32, 64, 128)
WORDS = (1, 6, 11, 16, 21, 26)
"""Where the groups of by_position and by_length begin."""

Scores = Mapping[str, Float[Tensor, " N"]]
"""A number for each target under each of METRICS; NaN where it was not taken or is not defined."""
RoundTrip = Callable[[Float[Tensor, "n D"]], Float[Tensor, "n D"]]
"""encode(decode(vectors))"""


@dataclass(frozen=True)
class Piece:
    """What the model reads at once: a document, or as much of one as has room, as in training.

    example: number of the document or pair
    first:   the first slot whose prediction counts: 1, or where a pair's answer begins
    """

    example: int
    sentences: Sequence[str]
    vectors: Float[Tensor, "n D"]
    first: int


@dataclass(frozen=True)
class Targets:
    """The sentences that are predicted, and all those that they are told from. No marker is among either.

    candidates: the true sentences, piece after piece; `piece` numbers these
    place:      where among them each target is
    predicted:  the model's x̂_n
    previous:   x_{n-1} as the model saw it
    pos:        how many concepts the model had read: 1, 2, …
    words:      in the sentence
    example:    number of the document or pair
    at_ends:    x̂ where the document was over
    """

    candidates: Float[Tensor, "c D"]
    piece: Int[Tensor, " c"]
    place: Int[Tensor, " N"]
    predicted: Float[Tensor, "N D"]
    previous: Float[Tensor, "N D"]
    pos: Int[Tensor, " N"]
    words: Int[Tensor, " N"]
    example: Int[Tensor, " N"]
    at_ends: Float[Tensor, "E D"]

    @property
    def truth(self) -> Float[Tensor, "N D"]:
        return self.candidates[self.place]


def pieces_of(examples: Sequence[Example], slots: int) -> list[Piece]:
    """Documents cut as in training: a long pair loses prompt concepts before its suffix, the rest is cut at `slots`."""
    pieces = []
    for number, example in enumerate(examples):
        sentences, vectors, prompt = example.sentences, example.vectors, example.source_length
        answer = len(sentences) - prompt + 1  # with the suffix that announces it
        if prompt and len(sentences) > slots >= answer:
            kept = slots - answer
            sentences = sentences[:kept] + sentences[prompt - 1 :]
            vectors, prompt = torch.cat([vectors[:kept], vectors[prompt - 1 :]]), kept + 1
        for start in range(0, len(sentences), slots):
            part = slice(start, start + slots)
            pieces.append(Piece(number, sentences[part], vectors[part], max(1, prompt - start)))
    return pieces


def predict(model: ConceptModel, pieces: Sequence[Piece], sampling: Sampling) -> list[Float[Tensor, "_ D"]]:
    """What the model expects at every slot of every piece, from the true concepts before it."""
    predicted: dict[int, Float[Tensor, "_ D"]] = {}
    order = sorted(range(len(pieces)), key=lambda i: len(pieces[i].vectors))
    for start in range(0, len(order), ROWS):
        chosen = order[start : start + ROWS]
        vectors = [pieces[i].vectors for i in chosen]
        lengths = torch.tensor([len(v) for v in vectors])
        slot = torch.arange(int(lengths.max())).expand(len(chosen), -1)
        real = slot < lengths[:, None]
        batch = Batch(
            emb=pad_sequence(vectors, batch_first=True),
            doc=torch.where(real, 0, PAD),
            pos=torch.where(real, slot, 0),
            is_target=real,
            row=torch.tensor(chosen),
            step_targets=real.sum(),
        )
        rows = model.predict(batch.to(model.end_of_text.device), sampling).float().cpu()
        predicted |= {i: row[:n] for i, row, n in zip(chosen, rows, lengths.tolist(), strict=True)}
    return [predicted[i] for i in range(len(pieces))]


def targets_of(pieces: Sequence[Piece], predicted: Sequence[Float[Tensor, "_ D"]], record: CodecRecord) -> Targets:
    """Everything that is scored, side by side."""
    slot = [torch.arange(len(piece.vectors)) for piece in pieces]
    ends = [torch.tensor([s == record.end_of_text for s in piece.sentences]) for piece in pieces]
    marks = [
        end | torch.tensor([s == record.prompt_suffix for s in piece.sentences])
        for end, piece in zip(ends, pieces, strict=True)
    ]
    counts = [place >= piece.first for place, piece in zip(slot, pieces, strict=True)]
    all_slots, mark, counted = torch.cat(slot), torch.cat(marks), torch.cat(counts)
    vectors, guesses = torch.cat([piece.vectors for piece in pieces]), torch.cat(list(predicted))
    number = torch.repeat_interleave(torch.arange(len(pieces)), torch.tensor([len(place) for place in slot]))
    words = torch.tensor([len(sentence.split()) for piece in pieces for sentence in piece.sentences])
    is_target = counted & ~mark
    return Targets(
        candidates=vectors[~mark],
        piece=number[~mark],
        place=((~mark).cumsum(0) - 1)[is_target],
        predicted=guesses[is_target],
        previous=vectors.roll(1, dims=0)[is_target],
        pos=all_slots[is_target],
        words=words[is_target],
        example=torch.tensor([piece.example for piece in pieces])[number[is_target]],
        at_ends=guesses[counted & torch.cat(ends)],
    )


def measure(
    guess: Float[Tensor, "N D"], targets: Targets, round_trip: RoundTrip, sample: Bool[Tensor, " N"]
) -> dict[str, Float[Tensor, " N"]]:
    """METRICS of one guess a target. Only those in `sample` go through the codec and back, which takes its time."""
    truth = targets.truth
    distinct, back = torch.unique(guess[sample], dim=0, return_inverse=True)
    again = torch.full((len(guess),), torch.nan)
    again[sample] = l2(round_trip(distinct)[back], truth[sample])
    ratio = torch.full((len(guess),), torch.nan)
    piece = targets.piece[targets.place]
    for number in sorted(set(piece.tolist())):
        rows, sequence = piece == number, targets.piece == number
        first = int(sequence.nonzero()[0, 0])
        ratio[rows] = par(guess[rows], targets.candidates[sequence], targets.place[rows] - first)
    closer = contrastive_accuracy(guess, targets.candidates, targets.piece, targets.place)
    return {"l2": l2(guess, truth), "l2_roundtrip": again, "contrastive_accuracy": closer, "par": ratio}


def means(scores: Scores, targets: Targets, samples: int, seed: int) -> dict[str, Interval]:
    """The mean over all targets that have a score, and its interval over documents drawn again."""
    return {name: mean_of(scores[name], targets.example, samples, seed) for name in METRICS}


def mean_of(values: Float[Tensor, " N"], example: Int[Tensor, " N"], samples: int, seed: int) -> Interval:
    known = ~values.isnan()
    number = example[known].numpy()
    totals = np.bincount(number, weights=values[known].double().numpy()).astype(np.float64)
    return bootstrap(totals, np.bincount(number).astype(np.float64), samples, seed)


def by_group(systems: Mapping[str, Scores], key: Int[Tensor, " N"], edges: Sequence[int]) -> list[dict[str, Any]]:
    """The means of all systems among targets whose `key` lies from one edge to below the next. No empty groups."""
    rows = []
    for low, high in pairwise((*edges, 10**9)):
        inside = (key >= low) & (key < high)
        if inside.any():
            row: dict[str, Any] = {"from": low, "to": min(high - 1, int(key[inside].max())), "count": int(inside.sum())}
            row |= {name: {m: float(scores[m][inside].nanmean()) for m in METRICS} for name, scores in systems.items()}
            rows.append(row)
    return rows


def ends(targets: Targets, end_of_text: Float[Tensor, " D"], threshold: float) -> dict[str, float | int]:
    """How often the model would have stopped: where the document was over, and where it was not."""
    found, false = (
        cosine_similarity(guesses, end_of_text.cpu(), dim=1) >= threshold
        for guesses in (targets.at_ends, targets.predicted)
    )
    return {
        "ends": len(found),
        "found": float(found.float().mean()),
        "sentences": len(false),
        "stopped_early": float(false.float().mean()),
    }


def by_example(scores: Scores, targets: Targets, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """A row for each document and pair that has targets: the model's means over them."""
    rows = []
    for number in sorted(set(targets.example.tolist())):
        inside = targets.example == number
        kind = "pair" if examples[number].source_length else "document"
        row = {"kind": kind, "id": examples[number].id, "sentences": int(inside.sum())}
        rows.append(row | {m: float(scores[m][inside].nanmean()) for m in METRICS})
    return rows
