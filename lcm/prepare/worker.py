"""Worker processes: what each does (documents → sentences → vectors → a finished shard and its note), and their pool.

The pool is the standard library's, so arranged that no worker outlives it or its parent process.

Shapes.  n sentences of a part · D concept width
"""

import hashlib
import multiprocessing as mp
import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import RLock, Thread
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lcm.codec import Codec, Progress, SonarSpeech, load_codec
from lcm.codec.text import END_OF_TEXT, PROMPT_SUFFIX, SatSettings, Splitter, SplitterSettings, check_language
from lcm.data.manifest import UNFINISHED
from lcm.data.shards import Encoded, write_shard
from lcm.errors import UserError
from lcm.files import disk_errors
from lcm.ledger import Ledger
from lcm.prepare.options import PrepareOptions
from lcm.prepare.resume import Finished, ShardTask
from lcm.prepare.rows import Document, Refused, wish_for
from lcm.prepare.script import IMPORTS_SCRIPT, script_hidden
from lcm.prepare.speech import MAX_SECONDS, Listener, Segment

INTERVAL = 0.2
"""Seconds between two looks at the workers' progress."""
_FEWER = "run the same command with fewer --workers and it continues"
Start = Callable[[], Any]
"""Makes, in a worker, the object that does the tasks: `work(task, progress)`. Its attribute `info` describes it."""


@dataclass
class _Part:
    """A document or a summary: its sentences, then their vectors. segments: of a recording."""

    sentences: list[str]
    lang: str
    segments: Sequence[Segment] | None = None
    vectors: Float[Tensor, "n D"] = field(default_factory=lambda: torch.empty(0, 0))


class Embedder:
    """Makes shards in `folder`. Their bytes depend on the task's documents alone, not on the process or other tasks.

    load: in place of `load_codec` (see lcm.prepare.prepare)
    """

    def __init__(
        self,
        options: PrepareOptions,
        splitter: SplitterSettings | SatSettings,
        folder: Path,
        device: str,
        load: Callable[..., Any] | None,
    ) -> None:
        self.options, self.folder, self.device = options, folder, device
        load = load or load_codec
        load = partial(load, compile_encoder=True) if options.compile else load
        self.codec: Codec = load(options.codec, device=device)
        self.splitter = Splitter(splitter, lambda sentence: self.codec.fits(sentence, options.lang), device)
        self.marks = (options.end_of_text or END_OF_TEXT, options.prompt_suffix or PROMPT_SUFFIX)
        self._encoded_alone = cache(lambda sentence: self.codec.encode([sentence], lang=options.lang).half())
        # Each is encoded in a batch of its own, so that its bits are equal in all documents of all shards.
        self.end_of_text, self.prompt_suffix = (self._encoded_alone(mark) for mark in self.marks)

    @property
    def info(self) -> str:
        """sha256 of the vector that ends every document, as float16."""
        return hashlib.sha256(self.end_of_text.numpy().tobytes()).hexdigest()

    def __call__(self, task: ShardTask, progress: Progress) -> Finished:
        """Write the shard, then its note: a process killed in between makes the same shard again."""
        refused = Ledger()
        emojis_before, blocks_before = self.splitter.emojis, self.splitter.blocks
        with disk_errors(self.folder):
            documents = list(self._encoded(task, refused, progress))
            shard = write_shard(self.folder / task.name, documents, self.folder / UNFINISHED) if documents else None
            note = Finished(
                name=task.name,
                shard=shard,
                refused=refused.entries,
                characters=sum(document.characters for _, document in task.documents),
                emojis=self.splitter.emojis - emojis_before,
                blocks=self.splitter.blocks - blocks_before,
                origin=task.origin,
            )
            note.save(self.folder)
        return note

    def _encoded(self, task: ShardTask, refused: Ledger, progress: Progress) -> Iterator[Encoded]:
        """The documents with their vectors; those that cannot be stored are counted in `refused`."""
        cut: list[tuple[int, Document, _Part, _Part]] = []
        for number, document in task.documents:
            langs = (document.lang, document.summary_lang or document.lang)
            if unknown := [lang for lang in langs if lang not in self.codec.languages]:
                refused.add("unknown language", f"{document.id}: {unknown[0]}")
                continue
            if document.text and (wrong := _without_stops(self.splitter.settings, langs)):
                refused.add("language without stops, see --splitter sat", f"{document.id}: {wrong}")
                continue
            segments = self.listener.segments(document.audio, document.lang) if document.audio else None
            if isinstance(segments, Refused):
                refused.add(segments.reason, f"{document.id}: {segments.example}")
                continue
            sentences = self.splitter.split(document.text) if segments is None else list(map(str, segments))
            summary = _Part(self.splitter.split(document.summary or ""), langs[1])
            cut.append((number, document, _Part(sentences, langs[0], segments), summary))
        self._encode([part for _, _, *parts in cut for part in parts], progress)
        end, suffix = self.marks
        for number, document, text, summary in cut:
            is_pair = document.summary is not None
            wish = wish_for(document, len(text.sentences), len(summary.sentences)) if self.options.lengths else []
            before = [self._encoded_alone(sentence) for sentence in wish]
            vectors = torch.cat(
                [*before, text.vectors, self.prompt_suffix[:is_pair], summary.vectors, self.end_of_text]
            )
            if not text.sentences or (is_pair and not summary.sentences):
                refused.add("no sentences", document.id)
            elif not vectors.isfinite().all():
                refused.add("vectors not finite", document.id)
            else:
                yield Encoded(
                    number=number,
                    id=document.id,
                    title=document.title,
                    source=document.source,
                    lang=document.lang,
                    sentences=[*wish, *text.sentences, *[suffix] * is_pair, *summary.sentences, end],
                    source_length=len(wish) + len(text.sentences) + 1 if is_pair else 0,
                    vectors=vectors.numpy(),
                )

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
            own = torch.split(vectors, [len(part.sentences) for part in chosen])
            for part, vectors in zip(chosen, own, strict=True):
                part.vectors = vectors


def _without_stops(settings: SplitterSettings | SatSettings, langs: Sequence[str]) -> str | None:
    """The first of these languages in which the splitter finds no sentences."""
    for lang in langs:
        try:
            check_language(settings, lang)
        except UserError:
            return lang
    return None


class Pool(AbstractContextManager["Pool"]):
    """At most `count` processes, each started when a task finds no idle one.

    starts:   worker i calls starts[i % len(starts)] before its first task
    progress: called in this process with the counts that the workers report while they work
    """

    def __init__(self, starts: Sequence[Start], count: int, progress: Progress) -> None:
        self.count, self.progress = count, progress
        context = mp.get_context("spawn")
        self._of_script = b"__main__" in pickle.dumps(list(starts))
        self._counts = context.RawArray("q", count)  # a cell per worker: no lock that a kill could leave held
        self._reported = 0
        self._processes: set[BaseProcess] = set()
        self._executor = ProcessPoolExecutor(count, context, _begin, (starts, context.Value("q"), self._counts))

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()  # a task may have minutes to go
        self._executor.shutdown(cancel_futures=True)

    def info(self) -> Any:
        return self._result(self._submit(_info))

    def run(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yield results in the order in which they are ready. At most one task is taken ahead of the workers.

        Raises UserError where a worker raises it or dies, and whatever else a worker raises.
        """
        running: set[Future[Any]] = set()
        for task in tasks:
            running.add(self._submit(_perform, task))
            yield from self._ready(running, 0.0)
            while len(running) > self.count:
                yield from self._ready(running, INTERVAL)
        while running:
            yield from self._ready(running, INTERVAL)

    def _ready(self, running: "set[Future[Any]]", timeout: float) -> list[Any]:
        """Remove the futures that are done from `running`, and return their results."""
        done, _ = wait(running, timeout, FIRST_COMPLETED)
        running -= done
        reported, self._reported = self._reported, sum(self._counts)
        if self._reported > reported:
            self.progress(self._reported - reported)
        return [self._result(future) for future in done]

    def _submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        # Ctrl-C reaches every process of the terminal; this one alone answers it, and the mask is inherited.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        before = mp.active_children()
        try:
            with nullcontext() if self._of_script else script_hidden():
                return self._executor.submit(function, *arguments)
        except BrokenProcessPool as error:
            raise self._obituary() from error
        finally:
            self._processes.update(set(mp.active_children()) - set(before))
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _result(self, future: "Future[Any]") -> Any:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise self._obituary() from error
        except MemoryError as error:
            raise UserError(f"memory ran out in a worker; {_FEWER}") from error

    def _obituary(self) -> UserError:
        """Why a worker died. The executor then terminates the others."""
        self._executor.shutdown()
        codes = {process.exitcode or 0 for process in self._processes} - {0, -signal.SIGTERM}
        if IMPORTS_SCRIPT in codes:
            guard = 'if __name__ == "__main__":'
            why = "each worker imports your script for `load`, and the script then prepares again"
            return UserError(f"{why}; put the call under {guard}")
        if codes <= {-signal.SIGKILL}:
            return UserError(f"a worker was killed, most likely because memory ran out; {_FEWER}")
        return UserError(f"a worker ended with status {min(codes)}; run the same command again and it continues")


class _Worker:
    """The state of a worker process. work: makes the object that does the tasks, once."""

    work: Start
    progress: Progress


def _begin(starts: Sequence[Start], started: Any, counts: Any) -> None:
    """Initialize a worker process. The work itself starts with the first task: its errors then reach the parent."""
    Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # so that results are the same bits for any number of workers
    with suppress(ImportError):  # torch.compile shows its progress: tqdm's own lock would outlive a killed worker
        from tqdm import tqdm  # type: ignore[import-untyped]

        tqdm.set_lock(RLock())
    with started.get_lock():
        number = started.value
        started.value += 1

    def progress(count: int) -> None:
        counts[number] += count

    _Worker.work, _Worker.progress = cache(starts[number % len(starts)]), progress


def _exit_with_parent() -> None:
    parent = mp.parent_process()
    assert parent
    wait_for([parent.sentinel])
    os._exit(1)


def _info() -> Any:
    return _Worker.work().info


def _perform(task: Any) -> Any:
    return _Worker.work()(task, _Worker.progress)
