"""Judges: the scores that need a model of others, by name, each loaded only when it is asked for.

    --judge cola bertscore=bert-base-multilingual-cased alignscore=judges/alignscore

Read judging: `asked_for` finds the weights of all, before anything starts; `judge` loads one after the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from lcm.errors import UserError
from lcm.files import sha256
from lcm.ledger import Ledger
from lcm.options import did_you_mean
from lcm.scores.rows import Measure, Row, Score
from lcm.scores.weights import Weights, find_weights


@dataclass(frozen=True, kw_only=True)
class Judge(Measure):
    """A score by a model of others. weights: the default; reads: beside the prediction"""

    weights: str
    reads: Literal["nothing", "document", "references"] = "nothing"


JUDGES: Mapping[str, Judge] = {
    "cola": Judge(
        "Krishna et al. 2020", "grammatical, by probability", weights="cointegrated/roberta-large-cola-krishna2020"
    ),
    "seahorse-q4": Judge(
        "Clark et al. 2023", "says what the document says, by probability",
        weights="google/seahorse-large-q4", reads="document",
    ),
    "seahorse-q5": Judge(
        "Clark et al. 2023", "has the document's main ideas, by probability",
        weights="google/seahorse-large-q5", reads="document",
    ),
    "bertscore": Judge(
        "Zhang et al. 2020", "F of matching a reference's tokens by their vectors", range="-1 to 1, mostly over 0.8",
        weights="roberta-large", reads="references",
    ),
    "coherence": Judge(
        "Jwalapuram et al. 2022", "sentences in a coherent order", weights="aisingapore/coherence-momentum"
    ),
    "perplexity": Judge(
        "Radford et al. 2019", "how surprising the text is to a language model", "lower", "1 and over",
        weights="gpt2-large",
    ),
    "alignscore": Judge(
        "Zha et al. 2023", "the document says so, by probability", weights="yzha/AlignScore", reads="document"
    ),
    "minicheck": Judge(
        "Tang et al. 2024", "the document supports it, by probability",
        weights="lytang/MiniCheck-Flan-T5-Large", reads="document",
    ),
    "mauve": Judge(
        "Pillutla et al. 2021", "texts are distributed as those of people", weights="gpt2-large", reads="references"
    ),
    "mi": Judge(
        "LCM paper §2.4.1", "nats a token that the sentences before a predicted one say of it",
        range="any, mostly 0 to 2", weights="gpt2",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A judge that was asked for, with its weights found. given: what results.json calls them"""

    name: str
    given: str
    weights: Weights

    def record(self) -> dict[str, Any]:
        """The entry of results.json: what the score is, and by which weights."""
        files = sorted(self.weights.folder.glob("*.safetensors"))
        sums = {file.name: sha256(file) for file in files}
        return {**asdict(JUDGES[self.name]), "weights": self.given, "sha256": sums}


def asked_for(texts: Sequence[str]) -> list[Asked]:
    """The judges of --judge, "NAME" or "NAME=FOLDER" or "NAME=NAME ON A HUB". Raises UserError, before anything starts,
    for an unknown name, a judge that is asked for twice, and weights that are not there.
    """
    asked: dict[str, Asked] = {}
    for text in texts:
        name, _, given = text.partition("=")
        if name not in JUDGES:
            known = ", ".join(JUDGES)
            raise UserError(
                f"--judge {name}: no such judge{did_you_mean(name, list(JUDGES))}; expected some of {known}"
            )
        if name in asked:
            raise UserError(f"--judge {name}: asked for twice; judge once for each of its weights")
        given = given or JUDGES[name].weights
        asked[name] = Asked(name, given, find_weights(name, given))
    return list(asked.values())


def score_of(asked: Asked) -> Score:
    """Load the judge of a text. Raises UserError for weights of another model."""
    from lcm.scores.acceptability import Cola
    from lcm.scores.alignscore import AlignScore
    from lcm.scores.bertscore import BertScore
    from lcm.scores.coherence import Coherence
    from lcm.scores.minicheck import MiniCheck
    from lcm.scores.perplexity import Perplexity
    from lcm.scores.seahorse import Seahorse

    match asked.name:
        case "cola":
            return Cola(asked.weights)
        case "seahorse-q4" | "seahorse-q5":
            return Seahorse(asked.weights)
        case "bertscore":
            return BertScore(asked.weights)
        case "coherence":
            return Coherence(asked.weights)
        case "perplexity":
            return Perplexity(asked.weights)
        case "alignscore":
            return AlignScore(asked.weights)
        case "minicheck":
            return MiniCheck(asked.weights)
        case _:
            raise AssertionError(f"{asked.name} does not judge single texts")


def judge(asked: Asked, systems: Mapping[str, Sequence[Row]], ledger: Ledger) -> dict[str, Float64[np.ndarray, " n"]]:
    """The numbers of one judge for each row of each system; NaN where it cannot judge, which the ledger counts.

    A row without the document or reference that the judge reads is not shown to it.
    """
    score, reads = score_of(asked), JUDGES[asked.name].reads
    found = {}
    for name, rows in systems.items():
        values = np.full(len(rows), np.nan)
        seen = [i for i, row in enumerate(rows) if can_read(row, reads)]
        if seen:
            values[seen] = score([rows[i] for i in seen], ledger)
        if missing := [row.id for i, row in enumerate(rows) if np.isnan(values[i])]:
            ledger.add(f"not judged by {asked.name}", missing[0], len(missing))
        found[name] = values
    return found


def can_read(row: Row, reads: Literal["nothing", "document", "references"]) -> bool:
    """True where the row has what the judge reads beside the prediction."""
    return bool(reads == "nothing" or (row.document.strip() if reads == "document" else any(row.references)))
