"""What a worker does: documents → sentences → vectors → one finished shard, and a note that says so."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from lcm.errors import UserError
from lcm.manifest import UNFINISHED, CodecInfo, Record, RefusedRecord, ShardRecord, disk_errors, replacing
from lcm.pool import Tell
from lcm.shards import Encoded, write_shard
from lcm.sources import Document
from lcm.text import END_OF_TEXT, PROMPT_SUFFIX, Splitter, SplitterSettings


class SentenceEncoder(Protocol):
    """The part of a codec that makes vectors; lcm.codec.Codec is one."""

    @property
    def dim(self) -> int: ...
    @property
    def languages(self) -> Sequence[str]: ...
    @property
    def stop_threshold(self) -> float: ...
    @property
    def fingerprint(self) -> str: ...
    def fits(self, sentence: str, lang: str = ...) -> bool: ...
    def encode(
        self, sentences: Sequence[str], lang: str = ..., *, progress: Tell | None = ...
    ) -> Float[Tensor, "n D"]: ...


LoadEncoder = Callable[[str], SentenceEncoder]
"""A function that a spawned process can import, such as lcm.codec.load_codec."""


@dataclass(frozen=True)
class ShardTask:
    """One shard to be made: its documents with their numbers in input order."""

    name: str
    documents: tuple[tuple[int, Document], ...]


class Finished(Record):
    """The note that a shard is done. shard: None where every document was refused, and nothing written."""

    name: str
    shard: ShardRecord | None
    refused: dict[str, RefusedRecord]
    characters: int
    """Of the documents' text: for the time that is left."""

    @property
    def sentences(self) -> int:
        """Of the text: what `prepare` appends is not counted."""
        return self.shard.concepts - self.shard.documents - self.shard.pairs if self.shard else 0


class Embedder:
    """Makes shards in `folder`. The bytes depend on a task's documents alone, not on the process or its other tasks."""

    def __init__(self, load: LoadEncoder, name: str, lang: str, splitter: SplitterSettings, folder: Path) -> None:
        self.codec = load(name)
        if lang not in self.codec.languages:
            known = ", ".join(list(self.codec.languages)[:10])
            raise UserError(f"--lang={lang}: not a language of codec '{name}'; it knows {known}")
        self.lang = lang
        self.folder = folder
        self.splitter = Splitter(splitter, lambda sentence: self.codec.fits(sentence, lang))
        # Each in a batch of its own, so that they are the same bits in every document of every shard.
        self.end_of_text = self._constant(END_OF_TEXT)
        self.prompt_suffix = self._constant(PROMPT_SUFFIX)
        self.info = CodecInfo(
            name=name,
            fingerprint=self.codec.fingerprint,
            dim=self.codec.dim,
            lang=lang,
            stop_threshold=self.codec.stop_threshold,
            end_of_text=hashlib.sha256(self.end_of_text.numpy().tobytes()).hexdigest(),
        )

    def _constant(self, sentence: str) -> Float[Tensor, "1 D"]:
        return self.codec.encode([sentence], lang=self.lang).half()

    def __call__(self, task: ShardTask, tell: Tell) -> Finished:
        """Write the shard, then the note; a process killed in between makes the same shard again."""
        scratch = self.folder / UNFINISHED
        refused: dict[str, RefusedRecord] = {}
        with disk_errors(self.folder):
            documents = list(self._encoded(task, refused, tell))
            shard = write_shard(self.folder / task.name, documents, scratch) if documents else None
            characters = sum(document.characters for _, document in task.documents)
            finished = Finished(name=task.name, shard=shard, refused=refused, characters=characters)
            with replacing(note_path(self.folder, task.name), scratch) as file:
                file.write(finished.model_dump_json().encode("utf-8"))
        return finished

    def _encoded(self, task: ShardTask, refused: dict[str, RefusedRecord], tell: Tell) -> Iterator[Encoded]:
        """The documents with their vectors; those that cannot be stored are counted in `refused`."""
        split = [
            (self.splitter.split(document.text), self.splitter.split(document.summary or ""))
            for _, document in task.documents
        ]
        sentences = [sentence for text, summary in split for sentence in (*text, *summary)]
        vectors = self.codec.encode(sentences, lang=self.lang, progress=tell).half()
        parts = iter(torch.split(vectors, [len(part) for both in split for part in both]))
        for (number, document), (text, summary) in zip(task.documents, split, strict=True):
            text_vectors, summary_vectors = next(parts), next(parts)
            is_pair = document.summary is not None
            suffix = ([PROMPT_SUFFIX], self.prompt_suffix) if is_pair else ([], self.prompt_suffix[:0])
            stored = torch.cat([text_vectors, suffix[1], summary_vectors, self.end_of_text])
            if not text or (is_pair and not summary):
                count(refused, "no sentences", document.id)
            elif not stored.isfinite().all():
                count(refused, "vectors not finite", document.id)
            else:
                yield Encoded(
                    number=number,
                    id=document.id,
                    title=document.title,
                    source=document.source,
                    lang=document.lang,
                    sentences=[*text, *suffix[0], *summary, END_OF_TEXT],
                    source_length=len(text) + 1 if is_pair else 0,
                    vectors=stored.numpy(),
                )


def note_path(folder: Path, shard: str) -> Path:
    return folder / UNFINISHED / f"{shard}.json"


def count(refused: dict[str, RefusedRecord], reason: str, example: str, times: int = 1) -> None:
    """So many more refused for `reason`; the first example of each stays."""
    before = refused.get(reason, RefusedRecord(count=0, first=example))
    refused[reason] = RefusedRecord(count=before.count + times, first=before.first)
