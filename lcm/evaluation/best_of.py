"""Best of N: what a perfect choice among N summaries of each document would score, beside their mean.

The choice reads the reference, so it is no system that anybody could run: it says how much a ranker could gain.

Shapes.  n pairs · k summaries of each
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64

from lcm.batch import derive_seed
from lcm.evaluation.examples import Example
from lcm.evaluation.summaries import Lengths, Texts, Writer, rows_of
from lcm.scores import Convention, mean_of_texts, rouge_scores

CHOSEN_BY = "rougeL"


@dataclass(frozen=True)
class BestOf:
    """The summaries of each draw, and their ROUGE-L. A pair that is not scored has NaN, and its first summary."""

    draws: Sequence[Texts]
    scores: Float64[np.ndarray, "k n"]

    @property
    def oracle(self) -> Texts:
        """The best summary of each document."""
        best = np.nan_to_num(self.scores, nan=-1).argmax(axis=0)
        return [self.draws[k][i] for i, k in enumerate(best.tolist())]

    def record(self, samples: int, seed: int) -> dict[str, Any]:
        """The entry `best_of` of results.json: means of the first draw, of all, and of the best, with intervals."""
        kinds = {"first": self.scores[0], "mean": self.scores.mean(axis=0), "oracle": self.scores.max(axis=0)}
        intervals = {name: asdict(mean_of_texts(values, samples, seed)) for name, values in kinds.items()}
        return {"draws": len(self.draws), "by": CHOSEN_BY, **intervals}


def draw(
    writer: Writer, pairs: Sequence[Example], lengths: Lengths, first: Texts, count: int, convention: Convention
) -> BestOf:
    """Write `count` summaries of each document, with seeds of their own. first: those that are written already"""
    draws, prompts = [first], [pair.source_length for pair in pairs]
    for number in range(1, count):
        sampling = replace(writer.sampling, seed=derive_seed(writer.sampling.seed, 2, number))
        lines = replace(writer, bank=None, sampling=sampling).write(pairs, prompts, "answer", lengths.most)
        draws.append([line["model"] for line in lines])
    lang = writer.lcm.lang
    scores = [rouge_scores(rows_of(pairs, texts), lang, convention)[CHOSEN_BY] for texts in draws]
    return BestOf(draws, np.stack(scores))
