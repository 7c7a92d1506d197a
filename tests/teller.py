"""A model that tells stories by their truth, with a fault if it is given one."""

from random import Random

import torch
from fakes import FakeCodec, History

from lcm.codec.text import END_OF_TEXT, PROMPT_SUFFIX
from lcm.models import ConceptModel
from lcm.tales import Errand, follow, parse
from lcm.tales.grammar import END


class Teller(ConceptModel):
    """Reads the sentences before, and tells an event that may follow; `fault` changes its sentence."""

    predicts_first = False

    def __init__(self, codec: FakeCodec, fault=lambda sentence, story, random: sentence) -> None:
        super().__init__(codec.dim)
        self.codec, self.fault = codec, fault
        self.end_of_text.copy_(codec.encode([END_OF_TEXT])[0])

    def sentence(self, told: list[str], seed: int) -> str:
        random = Random(f"{seed} {told}")
        if PROMPT_SUFFIX in told:
            document, answer = told[: told.index(PROMPT_SUFFIX)], told[told.index(PROMPT_SUFFIX) + 1 :]
            gist = follow([parse(sentence) for sentence in document]).gist()
            return gist[0].wordings[0] if not answer else END_OF_TEXT
        events = [parse(sentence) for sentence in told]
        story = type(follow(events[:1]) or Errand())()
        for event in events:  # what cannot follow is passed over, as by the judge
            _ = event and story.take(event)
        event = story.next(random)
        return END_OF_TEXT if event == END else self.fault(event.sentence("eng_Latn", random), story, random)

    def prefill(self, prompts):
        return History(prompts)

    def next(self, context, sampling):
        told = [self.codec.decode(row) for row in context]
        return self.codec.encode([self.sentence(sentences, sampling.seed) for sentences in told])

    def extend(self, context, concepts):
        return History(torch.cat([row, concept[None]]) for row, concept in zip(context, concepts, strict=True))

    def predict(self, batch, sampling):
        return torch.zeros_like(batch.emb).float()

    def loss(self, batch):
        raise NotImplementedError
