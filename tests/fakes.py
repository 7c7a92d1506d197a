"""Stand-ins with known answers: a codec of random vectors, and a model that recites one story."""

import hashlib
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lcm.codec import Codec
from lcm.codec.text import END_OF_TEXT, PROMPT_SUFFIX, SplitterSettings
from lcm.config import BaseLCMConfig, CodecRecord, Config, DataConfig
from lcm.data.manifest import CodecInfo, Manifest, NormalizerInfo
from lcm.data.shards import Encoded, shard_name, write_shard
from lcm.inference.pipeline import LCM
from lcm.models.interface import ConceptModel


class FakeCodec(Codec):
    """Encodes a sentence to a random vector; decodes to the closest of the sentences encoded so far."""

    fingerprint = "fake"
    languages = ("eng_Latn", "fra_Latn", "deu_Latn", "tha_Thai")

    def __init__(self, dim: int = 32) -> None:
        self.name, self.dim, self.stop_threshold = "fake", dim, 0.95
        self.known: dict[str, Tensor] = {}

    def fits(self, sentence: str, lang: str = "eng_Latn") -> bool:
        return len(sentence) <= 60

    def encode(self, sentences, lang="eng_Latn", *, progress=None):
        for sentence in sentences:
            generator = torch.Generator().manual_seed(zlib.crc32(sentence.encode()))
            self.known[sentence] = torch.randn(self.dim, generator=generator).half().float()
        return torch.stack([self.known[sentence] for sentence in sentences]) if sentences else torch.zeros(0, self.dim)

    def decode(self, vectors, lang="eng_Latn", *, beam=1, progress=None):
        if not len(vectors):
            return []
        names, table = list(self.known), torch.stack(list(self.known.values()))
        return [names[i] for i in torch.cdist(vectors, table).argmin(dim=1).tolist()]


class History(list[Tensor]):
    """The context of a Reciter: the concepts of each row so far."""

    @property
    def lengths(self):
        return torch.tensor([len(row) for row in self])

    def select(self, rows):
        return History(self[i] for i in rows.tolist())


class Reciter(ConceptModel):
    """Recites one story: after each of its concepts predicts the next one, and after the last the end of text."""

    predicts_first = False

    def __init__(self, story: Tensor, end: Tensor) -> None:
        super().__init__(len(end))
        self.end_of_text.copy_(end)
        self.story = torch.cat([story, end[None]])
        self.batch_sizes: list[int] = []
        """Rows of each call of `next`."""
        self.extend_calls = 0

    def after(self, concepts: Tensor) -> Tensor:
        place = (concepts[:, None] - self.story).norm(dim=2).argmin(dim=1)
        return self.story[(place + 1).clamp(max=len(self.story) - 1)]

    def prefill(self, prompts):
        return History(prompts)

    def next(self, context, sampling):
        self.batch_sizes.append(len(context))
        return self.after(torch.stack([row[-1] for row in context]))

    def extend(self, context, concepts):
        self.extend_calls += 1
        return History(torch.cat([row, concept[None]]) for row, concept in zip(context, concepts, strict=True))

    def predict(self, batch, sampling):
        guesses = torch.stack([self.after(row) for row in batch.emb.float()])
        return batch.before(guesses)

    def loss(self, batch):
        raise NotImplementedError


def reciting(
    story: list[str], codec: FakeCodec | None = None, slots: int = 16, data: tuple[str, ...] = (), **record
) -> LCM:
    """An LCM whose model is a Reciter of these sentences."""
    codec = codec or FakeCodec()
    facts = {
        "name": "fake", "fingerprint": "fake", "dim": codec.dim, "lang": "eng_Latn", "splitter": {},
        "stop_threshold": 0.95, **record,
    }  # fmt: skip
    config = Config(
        model=BaseLCMConfig(kind="base", dim=codec.dim, width=32, heads=2, layers=1),
        data=DataConfig(path=data, slots=slots),
        codec=CodecRecord(**facts),
    )
    return LCM(Reciter(codec.encode(story), codec.encode([END_OF_TEXT])[0]), codec, config)


def write_dataset(folder: Path, codec: Codec, splits: dict[str, list[list[str] | tuple[list[str], list[str]]]]) -> None:
    """A prepared folder with one shard a split: documents as lists of sentences, pairs as (document, summary)."""
    folder.mkdir(parents=True, exist_ok=True)
    records, number = {}, 0
    for split, texts in splits.items():
        documents = []
        for text in texts:
            prompt = [*text[0], PROMPT_SUFFIX] if isinstance(text, tuple) else []
            sentences = [*prompt, *(text[1] if isinstance(text, tuple) else text), END_OF_TEXT]
            vectors = codec.encode(sentences).numpy().astype(np.float16)
            documents.append(Encoded(number, f"{split} {number}", "", "", "eng_Latn", sentences, len(prompt), vectors))
            number += 1
        records[split] = (write_shard(folder / shard_name(split, 0), documents),)
    end_of_text = hashlib.sha256(codec.encode([END_OF_TEXT]).numpy().astype(np.float16).tobytes()).hexdigest()
    info = {"name": codec.name, "fingerprint": codec.fingerprint, "dim": codec.dim, "lang": "eng_Latn"}
    Manifest(
        codec=CodecInfo(**info, stop_threshold=codec.stop_threshold, end_of_text=end_of_text),
        splitter=SplitterSettings(),
        options={},
        inputs=(),
        refused={},
        splits=records,
        normalizer=NormalizerInfo(location=(0.0,) * codec.dim, scale=(1.0,) * codec.dim),
    ).save(folder)
