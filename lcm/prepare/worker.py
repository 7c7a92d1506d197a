"""One worker process: documents → sentences → vectors → a finished shard and its note.

Shapes.  n sentences of a part · D concept width
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lcm.codec import Codec, Progress, SonarSpeech, load_codec
from lcm.codec.text import END_OF_TEXT, PROMPT_SUFFIX, SatSettings, Splitter, SplitterSettings
from lcm.data.manifest import UNFINISHED, RefusedRecord
from lcm.data.shards import Encoded, write_shard
from lcm.files import disk_errors
from lcm.prepare.options import PrepareOptions
from lcm.prepare.resume import Finished, ShardTask, count
from lcm.prepare.rows import Document, Refused
from lcm.prepare.speech import MAX_SECONDS, Listener, Segment


@dataclass
class _Part:
    """A document or a summary: its sentences, then their vectors. segments: of a recording."""

    sentences: list[str]
    lang: str
    segments: Sequence[Segment] | None = None
    vectors: Float[Tensor, "n D"] = field(default_factory=lambda: torch.empty(0, 0))


class Embedder:
    """Makes shards in `folder`. Their bytes depend on the task's documents alone, not on the process or other tasks."""

    def __init__(
        self,
        options: PrepareOptions,
        splitter: SplitterSettings | SatSettings,
        folder: Path,
        device: str,
        load: Callable[..., Any] | None,
    ) -> None:
        """load: in place of `load_codec` (see lcm.prepare.prepare)."""
        self.options, self.folder, self.device, self.lang = options, folder, device, options.lang
        load = load or load_codec
        load = partial(load, compile_encoder=True) if options.compile else load
        self.codec: Codec = load(options.codec, device=device)
        self.splitter = Splitter(splitter, lambda sentence: self.codec.fits(sentence, self.lang), device)
        # Each is encoded in a batch of its own, so that its bits are equal in all documents of all shards.
        self.end_of_text = self._constant(END_OF_TEXT)
        self.prompt_suffix = self._constant(PROMPT_SUFFIX)

    @property
    def info(self) -> str:
        """sha256 of the vector that ends every document, as float16."""
        return hashlib.sha256(self.end_of_text.numpy().tobytes()).hexdigest()

    def _constant(self, sentence: str) -> Float[Tensor, "1 D"]:
        return self.codec.encode([sentence], lang=self.lang).half()

    def __call__(self, task: ShardTask, progress: Progress) -> Finished:
        """Write the shard, then its note: a process killed in between makes the same shard again."""
        refused: dict[str, RefusedRecord] = {}
        emojis_before = self.splitter.emojis
        with disk_errors(self.folder):
            documents = list(self._encoded(task, refused, progress))
            shard = write_shard(self.folder / task.name, documents, self.folder / UNFINISHED) if documents else None
            note = Finished(
                name=task.name,
                shard=shard,
                refused=refused,
                characters=sum(document.characters for _, document in task.documents),
                emojis=self.splitter.emojis - emojis_before,
            )
            note.save(self.folder)
        return note

    def _encoded(self, task: ShardTask, refused: dict[str, RefusedRecord], progress: Progress) -> Iterator[Encoded]:
        """The documents with their vectors; those that cannot be stored are counted in `refused`."""
        cut: list[tuple[int, Document, _Part, _Part]] = []
        for number, document in task.documents:
            langs = (document.lang, document.summary_lang or document.lang)
            if unknown := [lang for lang in langs if lang not in self.codec.languages]:
                count(refused, "unknown language", f"{document.id}: {unknown[0]}")
                continue
            text = self._segmented(document, refused) if document.audio else self._split(document.text, langs[0])
            if text:
                cut.append((number, document, text, self._split(document.summary or "", langs[1])))
        self._encode([part for _, _, text, summary in cut for part in (text, summary)], progress)
        for number, document, text, summary in cut:
            is_pair = document.summary is not None
            suffix = ([PROMPT_SUFFIX], self.prompt_suffix) if is_pair else ([], self.prompt_suffix[:0])
            vectors = torch.cat([text.vectors, suffix[1], summary.vectors, self.end_of_text])
            if not text.sentences or (is_pair and not summary.sentences):
                count(refused, "no sentences", document.id)
            elif not vectors.isfinite().all():
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
                    vectors=vectors.numpy(),
                )

    def _split(self, text: str, lang: str) -> _Part:
        return _Part(self.splitter.split(text), lang)

    def _segmented(self, document: Document, refused: dict[str, RefusedRecord]) -> _Part | None:
        """The segments of a recording; None where it is refused."""
        segments = self.listener.segments(document.audio, document.lang)
        if isinstance(segments, Refused):
            count(refused, segments.reason, f"{document.id}: {segments.example}")
            return None
        return _Part([str(segment) for segment in segments], document.lang, segments)

    @cached_property
    def listener(self) -> Listener:
        """Loaded for the first recording: most corpora have none."""
        encoder = SonarSpeech(self.options.speech_encoder, device=self.device)
        return Listener(encoder, self.options.max_seconds or MAX_SECONDS)

    def _encode(self, parts: Sequence[_Part], progress: Progress) -> None:
        """Fill in the vectors of all parts: one call of the encoder for text, and one for speech, per language."""
        for spoken, lang in dict.fromkeys((part.segments is not None, part.lang) for part in parts):
            chosen = [part for part in parts if (part.segments is not None, part.lang) == (spoken, lang)]
            if spoken:
                segments = [segment for part in chosen for segment in part.segments or ()]
                vectors = self.listener.encode(segments, lang, self.codec.dim, progress).half()
            else:
                sentences = [sentence for part in chosen for sentence in part.sentences]
                vectors = self.codec.encode(sentences, lang=lang, progress=progress).half()
            lengths = [len(part.sentences) for part in chosen]
            for part, own in zip(chosen, torch.split(vectors, lengths), strict=True):
                part.vectors = own
