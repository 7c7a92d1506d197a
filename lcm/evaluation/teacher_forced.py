"""Teacher-forced scores of a model and its controls, as results.json has them (paper §2.4.1).

Shapes.  N sentences that are predicted
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from lcm.data.shards import Shard
from lcm.errors import UserError
from lcm.evaluation import scoring
from lcm.evaluation.examples import Example, mean_vector
from lcm.evaluation.information import contexts, information
from lcm.inference import LCM
from lcm.models import Sampling
from lcm.scores import Asked


@dataclass(frozen=True)
class Forcing:
    """Settings of these scores. roundtrip: sentences that go through the codec; samples: of a bootstrap"""

    sampling: Sampling
    roundtrip: int
    samples: int
    seed: int


def teacher_forced(
    lcm: LCM, examples: Sequence[Example], train: Sequence[Shard], forcing: Forcing, mi: Sequence[Asked] = ()
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score the model and two controls on every sentence that has one before it; with a row for each example.

    mi: the language model of mutual information, where it was asked for
    Raises UserError where no document has a second sentence.
    """
    pieces = scoring.pieces_of(examples, lcm.config.data.slots)
    predicted = scoring.predict(lcm.model, pieces, forcing.sampling)
    predictions = scoring.predictions_of(pieces, predicted, lcm.record, lcm.lang)
    total = len(predictions.place)
    if not total:
        raise UserError("--data: no document has a second sentence; nothing can be predicted")
    sample = torch.zeros(total, dtype=torch.bool)
    sample[torch.randperm(total, generator=torch.Generator().manual_seed(forcing.seed))[: forcing.roundtrip]] = True
    mean = mean_vector(train, lcm.model.dim) if train else lcm.model.normalizer.location.cpu()
    guesses = {"model": predictions.predicted, "mean": mean.expand(total, -1), "previous": predictions.previous}
    systems = {name: scoring.measure(guess, predictions, lcm.round_trip, sample) for name, guess in guesses.items()}
    intervals = {
        name: {
            metric: asdict(scoring.mean_of(scores[metric], predictions.example, forcing.samples, forcing.seed))
            for metric in scoring.METRICS
        }
        for name, scores in systems.items()
    }
    if mi:
        entry = _information(lcm, mi[0], pieces, predictions, sample, forcing)
        intervals["model"]["mi"] = entry["model"]
    values = {name: {m: interval["value"] for m, interval in found.items()} for name, found in intervals.items()}
    return {
        "teacher_forced": values.pop("model"),
        "controls": values,
        "intervals": intervals,
        "mean_of": "training vectors" if train else "the normalizer's medians, as there is no training data here",
        "end_of_text": scoring.stop_rates(predictions, lcm.model.end_of_text, lcm.record.stop_threshold),
        **({"mutual_information": entry} if mi else {}),
        "by_position": scoring.by_group(systems, predictions.pos, scoring.POSITIONS),
        "by_length": scoring.by_group(systems, predictions.words, scoring.WORDS),
        "targets": {"sentences": total, "candidates": len(predictions.candidates), "roundtrip": int(sample.sum())},
    }, scoring.by_example(systems["model"], predictions, examples)


def _information(
    lcm: LCM,
    asked: Asked,
    pieces: Sequence[scoring.Piece],
    predictions: scoring.Predictions,
    sample: Bool[Tensor, " N"],
    forcing: Forcing,
) -> dict[str, Any]:
    """Mutual information of the model's decoded sentences and of the true ones, of those that are in the sample."""
    sentences, before = contexts(pieces, lcm.record)
    chosen = predictions.place[sample].tolist()
    texts = {
        "model": lcm.codec.decode(predictions.predicted[sample], lang=lcm.lang),
        "truth": [sentences[place] for place in chosen],
    }
    past, example = [before[place] for place in chosen], predictions.example[sample]
    found = information(asked, texts, past, example, forcing.samples, forcing.seed)
    return {**found, "sentences": len(chosen), **asked.record()}
