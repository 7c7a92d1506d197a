"""What a worker does: documents → sentences → vectors → one finished shard, and a note that says so."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from lcm.codec import END_OF_TEXT, PROMPT_SUFFIX, SatSettings, SonarSpeech, Splitter, SplitterSettings
from lcm.data import UNFINISHED, CodecInfo, Encoded, Record, RefusedRecord, ShardRecord, write_shard
from lcm.errors import UserError
from lcm.files import atomic, disk_errors
from lcm.prepare.pool import Tell
from lcm.prepare.rows import Document, Refused
from lcm.prepare.speech import MAX_SECONDS, Listener, LoadSpeech, Segment


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


LoadEncoder = Callable[..., SentenceEncoder]
"""`load(name, device=…)`: a function that a spawned process can import, such as lcm.codec.load_codec."""


@dataclass(frozen=True)
class Recipe:
    """How text becomes vectors: the same in every worker."""

    codec: str
    lang: str
    splitter: SplitterSettings | SatSettings
    max_seconds: float = MAX_SECONDS
    speech_encoder: str | None = None
    """Card of sonar-space; None: that of each document's language."""


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
    emojis: int = 0
    """Taken out by the splitter."""

    @property
    def sentences(self) -> int:
        """Of the text: what `prepare` appends is not counted."""
        return self.shard.concepts - self.shard.documents - self.shard.pairs if self.shard else 0


class Embedder:
    """Makes shards in `folder`. The bytes depend on a task's documents alone, not on the process or its other tasks."""

    def __init__(
        self,
        load: LoadEncoder,
        recipe: Recipe,
        folder: Path,
        device: str = "cpu",
        load_speech: LoadSpeech = SonarSpeech,
    ) -> None:
        self._recipe, self._device, self._load_speech = recipe, device, load_speech
        name, lang = recipe.codec, recipe.lang
        self.codec = load(name, device=device)
        if lang not in self.codec.languages:
            known = ", ".join(list(self.codec.languages)[:10])
            raise UserError(f"--lang={lang}: not a language of codec '{name}'; it knows {known}")
        self.lang = lang
        self.folder = folder
        self.splitter = Splitter(recipe.splitter, lambda sentence: self.codec.fits(sentence, lang), device)
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
        emojis_before = self.splitter.emojis
        with disk_errors(self.folder):
            documents = list(self._encoded(task, refused, tell))
            shard = write_shard(self.folder / task.name, documents, scratch) if documents else None
            characters = sum(document.characters for _, document in task.documents)
            emojis = self.splitter.emojis - emojis_before
            finished = Finished(name=task.name, shard=shard, refused=refused, characters=characters, emojis=emojis)
            with atomic(note_path(self.folder, task.name), scratch=scratch) as file:
                file.write(finished.model_dump_json().encode("utf-8"))
        return finished

    def _encoded(self, task: ShardTask, refused: dict[str, RefusedRecord], tell: Tell) -> Iterator[Encoded]:
        """The documents with their vectors; those that cannot be stored are counted in `refused`."""
        cut: list[tuple[int, Document, _Part, _Part]] = []
        for number, document in task.documents:
            langs = (document.lang, document.summary_lang or document.lang)
            if unknown := [lang for lang in langs if lang not in self.codec.languages]:
                count(refused, "unknown language", f"{document.id}: {unknown[0]}")
                continue
            text = self._heard(document, refused) if document.audio else self._cut(document.text, langs[0])
            if text:
                cut.append((number, document, text, self._cut(document.summary or "", langs[1])))
        self._encode([part for _, _, text, summary in cut for part in (text, summary)], tell)
        for number, document, text, summary in cut:
            is_pair = document.summary is not None
            suffix = ([PROMPT_SUFFIX], self.prompt_suffix) if is_pair else ([], self.prompt_suffix[:0])
            stored = torch.cat([text.vectors, suffix[1], summary.vectors, self.end_of_text])
            if not text.sentences or (is_pair and not summary.sentences):
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
                    sentences=[*text.sentences, *suffix[0], *summary.sentences, END_OF_TEXT],
                    source_length=len(text.sentences) + 1 if is_pair else 0,
                    vectors=stored.numpy(),
                )

    def _cut(self, text: str, lang: str) -> "_Part":
        return _Part(self.splitter.split(text), lang)

    def _heard(self, document: Document, refused: dict[str, RefusedRecord]) -> "_Part | None":
        """The segments of a document that is spoken; None where it is refused."""
        found = self.listener.hear(document.audio, document.lang)
        if isinstance(found, Refused):
            count(refused, found.reason, f"{document.id}: {found.example}")
            return None
        return _Part([str(segment) for segment in found], document.lang, segments=found)

    @cached_property
    def listener(self) -> Listener:
        """Loaded for the first document that is spoken: most corpora have none."""
        return Listener(self._load_speech(self._recipe.speech_encoder, device=self._device), self._recipe.max_seconds)

    def _encode(self, parts: Sequence["_Part"], tell: Tell) -> None:
        """Give the parts their vectors, each in its own language: one call of the codec a language."""
        for spoken, lang in dict.fromkeys((part.segments is not None, part.lang) for part in parts):
            chosen = [part for part in parts if (part.segments is not None, part.lang) == (spoken, lang)]
            if spoken:
                segments = [segment for part in chosen for segment in part.segments or ()]
                vectors = self.listener.encode(segments, lang, self.codec.dim, tell).half()
            else:
                sentences = [sentence for part in chosen for sentence in part.sentences]
                vectors = self.codec.encode(sentences, lang=lang, progress=tell).half()
            lengths = [len(part.sentences) for part in chosen]
            for part, own in zip(chosen, torch.split(vectors, lengths), strict=True):
                part.vectors = own


@dataclass
class _Part:
    """A document or a summary: its sentences, and in the end their vectors. segments: where it is spoken."""

    sentences: list[str]
    lang: str
    segments: Sequence[Segment] | None = None
    vectors: Float[Tensor, "n D"] = field(default_factory=lambda: torch.empty(0, 0))


def note_path(folder: Path, shard: str) -> Path:
    return folder / UNFINISHED / f"{shard}.json"


def count(refused: dict[str, RefusedRecord], reason: str, example: str, times: int = 1) -> None:
    """So many more refused for `reason`; the first example of each stays."""
    before = refused.get(reason, RefusedRecord(count=0, first=example))
    refused[reason] = RefusedRecord(count=before.count + times, first=before.first)
