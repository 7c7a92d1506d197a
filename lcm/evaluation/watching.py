"""Texts that a model writes while it is trained, always for the same held-out examples, and their scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from lcm.codec import Codec, load_codec
from lcm.config import Config
from lcm.errors import UserError
from lcm.evaluation.examples import Example, answer_lengths, from_folders, shards_of
from lcm.evaluation.gists import judge_gists
from lcm.evaluation.summaries import Lengths, Writer, rows_of
from lcm.evaluation.truth import continuations
from lcm.evaluation.truth_judge import PROMPT, Tale, TruthJudge, read_story, read_tales
from lcm.inference import LCM
from lcm.models import Sampling, build_model
from lcm.scores import rouge_scores
from lcm.tales.judging import judge as judge_tale

SEED = 0
"""Seed of the choice of examples and of what is drawn, whatever the run's own."""


@dataclass(frozen=True)
class HeldOut:
    """Examples that a model writes for: pairs whose documents it sums up, and stories that it continues.

    most: sentences of the longest summary, from the training pairs
    """

    codec: Codec
    config: Config
    pairs: list[Example]
    stories: list[Tale]
    most: int

    @staticmethod
    def open(config: Config) -> "HeldOut":
        """Choose `trainer.write_rows` pairs, and as many stories, of the validation split, or else of the test split.

        Raises UserError where the codec cannot be loaded, or where `trainer.watch` has nothing to score.
        """
        assert config.codec, "the data says by which codec"
        trainer, folders = config.trainer, config.data.folders
        codec = load_codec(config.codec.name, device="cuda" if torch.cuda.is_available() else "cpu")
        with torch.device("meta"):
            lcm = LCM(build_model(config.model), codec, config)
        split = "validation" if shards_of(folders, lcm, "validation") else "test"
        found = from_folders(folders, lcm, split, 4 * trainer.write_rows, SEED)
        fit = (pair for pair in found.pairs if len(pair.vectors) <= config.data.slots)
        pairs = list(islice(fit, trainer.write_rows))
        stories = read_tales(found.documents, config.data.slots)[: trainer.write_rows]
        lengths = Lengths.of(answer_lengths(shards_of(folders, lcm, "train")), config.data.slots)
        held_out = HeldOut(codec, config, pairs, stories, lengths.most)
        held_out._check(split)
        return held_out

    def _check(self, split: str) -> None:
        """Raises UserError where there is nothing to write, or the score to watch needs what is not there."""
        slots, trainer = self.config.data.slots, self.config.trainer
        kind, _, score = trainer.watch.partition(".")
        gists = any(read_story(pair.document) for pair in self.pairs)
        needs = {"summaries": (self.pairs, "pairs"), "truth": (self.stories, "stories of data_prep/make_tales.py")}
        there, what = (gists, "stories with gists") if score == "gist" else needs.get(kind, (True, ""))
        if not there:
            raise UserError(
                f"trainer.watch={trainer.watch}: the {split} split has no {what} that fit data.slots={slots}; "
                "expected some, or another score to watch"
            )
        if not self.pairs and not self.stories:
            raise UserError(
                f"trainer.write_every={trainer.write_every}: the {split} split has neither pairs nor stories that fit "
                f"data.slots={slots}, so no text can be scored; expected some, or trainer.write_every=0"
            )

    def scores(self, state: Mapping[str, Tensor], device: torch.device) -> dict[str, float]:
        """Scores by their names in `trainer.watch`, of a model with these tensors."""
        model = build_model(self.config.model)
        model.load_state_dict(state)
        lcm = LCM(model.to(device), self.codec, self.config)
        return {**self._summaries(lcm), **self._truth(lcm)}

    def describe(self) -> str:
        """A line for the beginning of training."""
        counts = {"pairs": len(self.pairs), "stories": len(self.stories)}
        kinds = " and ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        trainer = self.config.trainer
        return f"writing for {kinds} every {trainer.write_every:,} steps; the best model by {trainer.watch}"

    def _summaries(self, lcm: LCM) -> dict[str, float]:
        if not self.pairs:
            return {}
        writer = Writer(lcm, None, lcm.sampling(Sampling(seed=SEED)))
        written = writer.write(self.pairs, [pair.source_length for pair in self.pairs], "answer", self.most)
        rouge = rouge_scores(rows_of(self.pairs, [line["model"] for line in written]), lcm.record.lang)
        return {f"summaries.{name}": float(np.nanmean(v)) for name, v in rouge.items() if not np.isnan(v).all()}

    def _truth(self, lcm: LCM) -> dict[str, float]:
        judge = TruthJudge(lcm, lcm.sampling(Sampling(seed=SEED)), 1, SEED)
        found = dict[str, float]()
        if self.stories:
            texts = zip(self.stories, continuations(judge, self.stories), strict=True)
            judged = [judge_tale(tale.sentences[:PROMPT], text, ended) for tale, (text, ended) in texts]
            total = sum(max(1, len(one.verdicts)) for one in judged)
            for name in ("grammatical", "consistent"):
                good = sum(one.share(name) * max(1, len(one.verdicts)) for one in judged)
                found[f"truth.{name}"] = good / total
        if "gist" in (gists := judge_gists(judge, self.pairs, len(self.pairs))):
            found["truth.gist"] = gists["gist"]["word_for_word"]["value"]
        return found
