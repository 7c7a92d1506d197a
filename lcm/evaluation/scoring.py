"""Teacher-forced scores: every sentence predicted from the true ones before it (paper §2.4.1). First the metrics.

Shapes.  B rows · S slots · D concept width · n concepts of one piece · s concepts of one document
         N predicted sentences · c candidates, that each is compared with · E ends of documents
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from torch.nn.utils.rnn import pad_sequence

from lcm.batch import PAD, Batch
from lcm.config import CodecRecord
from lcm.evaluation.examples import Example
from lcm.models import ConceptModel, Sampling
from lcm.scores import Interval, bootstrap, tokens_of

METRICS = ("l2", "l2_roundtrip", "l2_gap", "contrastive_accuracy", "par")
PAR_FLOOR = 0.1
"""Smallest cosine that PAR divides by; below it the ratio says more about the cosine than about the prediction."""
BLOCK = 1024
"""Predictions whose distances to all candidates are in memory at once."""
ROWS = 16
"""Pieces in a batch."""
POSITIONS = (1, 2, 4, 8, 16, 32, 64, 128)
WORDS = (1, 6, 11, 16, 21, 26)
"""Lower edges of the groups in by_position and by_length."""
Scores = Mapping[str, Float[Tensor, " N"]]
"""One number per predicted sentence under each of METRICS; NaN if it was not measured or is not defined."""
RoundTrip = Callable[[Float[Tensor, "n D"]], Float[Tensor, "n D"]]
"""encode(decode(vectors))"""


def l2(predicted: Float[Tensor, "N D"], truth: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """‖x̂_n − x_n‖ (paper §2.4.1); the round-trip L2 if x̂_n was decoded and encoded again first."""
    return (predicted - truth).norm(dim=-1)


def contrastive_accuracy(
    predicted: Float[Tensor, "N D"],
    candidates: Float[Tensor, "c D"],
    document: Int[Tensor, " c"],
    place: Int[Tensor, " N"],
) -> Float[Tensor, " N"]:
    """Share of the candidates that are farther from x̂_n than x_n is, without x_n and its two neighbours (§2.4.1).

    candidates: the true concepts of the test set, document after document; x_n is the one at `place`

    A candidate equal to x_n is not farther. NaN if no candidate is left. Memory: BLOCK × c distances, never c × c × D.
    """
    everything = candidates.double()
    squared = everything.square().sum(dim=1)
    # Equal vectors may come out of a matrix product with different last digits: these are ties, not victories.
    tie = 1e-9 * squared.max().clamp(min=1e-12)
    shares = []
    for rows, own in zip(torch.split(predicted.double(), BLOCK), torch.split(place, BLOCK), strict=True):
        # ‖x̂‖² is left out: it is the same on both sides of every comparison.
        distance = squared - 2 * rows @ everything.T
        allowed = torch.ones_like(distance, dtype=torch.bool)
        for step in (-1, 0, 1):
            other = (own + step).clamp(0, len(candidates) - 1)
            same = document[other] == document[own]
            allowed[same.nonzero().squeeze(1), other[same]] = False
        farther = (distance > distance.gather(1, own[:, None]) + tie) & allowed
        shares.append(farther.sum(dim=1) / allowed.sum(dim=1))
    return torch.cat(shares).float()


def par(
    predicted: Float[Tensor, "N D"], sequence: Float[Tensor, "s D"], place: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """max_{m<n} cos(x̂_n, x_m) / max_{m<n} cos(x_n, x_m): above 1, closer to its past than the true sentence (§2.4.1).

    sequence: the true concepts of one document; x_n is the one at `place`
    NaN for n = 0, and where the denominator is below PAR_FLOOR.
    """
    past = torch.arange(len(sequence)) < place[:, None]
    directions = normalize(sequence.float(), dim=1)
    ours = (normalize(predicted.float(), dim=1) @ directions.T).masked_fill(~past, -torch.inf).amax(dim=1)
    theirs = (directions[place] @ directions.T).masked_fill(~past, -torch.inf).amax(dim=1)
    return torch.where(theirs >= PAR_FLOOR, ours / theirs, torch.nan)


@dataclass(frozen=True)
class Piece:
    """A document, or a part of it that fits the model's slots: cut as in training.

    example: index of the document or pair
    first:   first slot whose prediction counts: 1, or where a pair's answer begins
    """

    example: int
    sentences: Sequence[str]
    vectors: Float[Tensor, "n D"]
    first: int


@dataclass(frozen=True)
class Predictions:
    """The predicted sentences beside the true ones; neither contains a marker.

    candidates: all true sentences, piece after piece
    piece:      the piece of each candidate
    place:      index of each predicted sentence among the candidates
    predicted:  the model's x̂_n
    previous:   x_{n-1}, the last concept that the model read
    pos:        number of concepts that the model had read: 1, 2, …
    words:      words of the true sentence; characters in languages without blanks
    example:    index of the document or pair
    at_ends:    the model's x̂ where the document was over
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


def pieces_of(examples: Sequence[Example], slots: int) -> list[Piece]:
    """Cut as in training: a long pair loses prompt concepts before its suffix; documents are cut every `slots`."""
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
    """Predict every slot of every piece from the true concepts before it."""
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


def predictions_of(
    pieces: Sequence[Piece], predicted: Sequence[Float[Tensor, "_ D"]], record: CodecRecord, lang: str | None = None
) -> Predictions:
    """Gather what is scored: sentences from `first` on that are not markers.

    lang: their language, where it is not that of the training data
    """
    sentences = [sentence for piece in pieces for sentence in piece.sentences]
    vectors, guesses = torch.cat([piece.vectors for piece in pieces]), torch.cat(list(predicted))
    number = torch.repeat_interleave(torch.tensor([len(piece.vectors) for piece in pieces]))
    slot = torch.cat([torch.arange(len(piece.vectors)) for piece in pieces])
    counted = slot >= torch.tensor([piece.first for piece in pieces])[number]
    end = torch.tensor([sentence == record.end_of_text for sentence in sentences])
    mark = end | torch.tensor([sentence == record.prompt_suffix for sentence in sentences])
    is_target = counted & ~mark
    tokens = tokens_of(lang or record.lang)
    length = len if tokens is None else tokens.count
    return Predictions(
        candidates=vectors[~mark],
        piece=number[~mark],
        place=((~mark).cumsum(0) - 1)[is_target],
        predicted=guesses[is_target],
        previous=vectors.roll(1, dims=0)[is_target],
        pos=slot[is_target],
        words=torch.tensor([length(sentence) for sentence in sentences])[is_target],
        example=torch.tensor([piece.example for piece in pieces])[number[is_target]],
        at_ends=guesses[counted & end],
    )


def measure(
    guess: Float[Tensor, "N D"], predictions: Predictions, round_trip: RoundTrip, sample: Bool[Tensor, " N"]
) -> dict[str, Float[Tensor, " N"]]:
    """Score one guess for each predicted sentence: the model's x̂ or a control's.

    sample: guesses that go through the codec and back, the slow part; of the others, l2_roundtrip is NaN, and so is
    l2_gap = l2_roundtrip − l2, which says how far from any sentence a guess lies (§2.4.1)
    """
    truth = predictions.candidates[predictions.place]
    distinct, back = torch.unique(guess[sample], dim=0, return_inverse=True)
    again = torch.full((len(guess),), torch.nan)
    again[sample] = l2(round_trip(distinct)[back], truth[sample])
    ratio = torch.full((len(guess),), torch.nan)
    piece = predictions.piece[predictions.place]
    for number in torch.unique(piece).tolist():
        rows, sequence = piece == number, predictions.piece == number
        first = int(sequence.nonzero()[0, 0])
        ratio[rows] = par(guess[rows], predictions.candidates[sequence], predictions.place[rows] - first)
    closer = contrastive_accuracy(guess, predictions.candidates, predictions.piece, predictions.place)
    near = l2(guess, truth)
    return {"l2": near, "l2_roundtrip": again, "l2_gap": again - near, "contrastive_accuracy": closer, "par": ratio}


def mean_of(values: Float[Tensor, " N"], example: Int[Tensor, " N"], samples: int, seed: int) -> Interval:
    """The mean of the values that are not NaN, with a bootstrap interval over examples."""
    known = ~values.isnan()
    number = example[known].numpy()
    totals = np.bincount(number, weights=values[known].double().numpy()).astype(np.float64)
    return bootstrap(totals, np.bincount(number).astype(np.float64), samples, seed)


def by_group(systems: Mapping[str, Scores], key: Int[Tensor, " N"], edges: Sequence[int]) -> list[dict[str, Any]]:
    """The means of each system over sentences whose `key` lies between two edges; empty groups are absent."""
    rows = []
    for low, high in pairwise((*edges, 10**9)):
        inside = (key >= low) & (key < high)
        if inside.any():
            row: dict[str, Any] = {"from": low, "to": min(high - 1, int(key[inside].max())), "count": int(inside.sum())}
            row |= {name: {m: float(scores[m][inside].nanmean()) for m in METRICS} for name, scores in systems.items()}
            rows.append(row)
    return rows


def stop_rates(predictions: Predictions, end_of_text: Float[Tensor, " D"], threshold: float) -> dict[str, float | int]:
    """The share of documents whose end the model predicts, and of sentences before which it would have stopped."""
    found, false = (
        cosine_similarity(guesses, end_of_text.cpu(), dim=1) >= threshold
        for guesses in (predictions.at_ends, predictions.predicted)
    )
    return {
        "ends": len(found),
        "found": float(found.float().mean()),
        "sentences": len(false),
        "stopped_early": float(false.float().mean()),
    }


def by_example(scores: Scores, predictions: Predictions, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """A row for each document and pair with a predicted sentence: the means of its scores."""
    rows = []
    for number in torch.unique(predictions.example).tolist():
        inside = predictions.example == number
        kind = "pair" if examples[number].source_length else "document"
        row = {"kind": kind, "id": examples[number].id, "sentences": int(inside.sum())}
        rows.append(row | {m: float(scores[m][inside].nanmean()) for m in METRICS})
    return rows
