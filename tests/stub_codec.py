"""A codec without weights for the tests of data preparation; run as a script, it is `lcm prepare` with that codec.

A vector depends on its sentence and, a little, on its place in the call. So it is with real codecs, whose last bits
depend on the batch: sentences that reach the codec in other company get other bytes.
"""

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lcm.codec import Codec
from lcm.prepare import command, worker
from lcm.prepare.worker import Pool


class StubCodec(Codec):
    """Four channels, English; sentences of at most 40 words. Some words make it misbehave."""

    dim = 4
    languages = ("eng_Latn",)
    stop_threshold = 0.9
    max_pieces = 40

    def __init__(self, name: str, fingerprint: str = "stub-1", delay: float = 0.0) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.delay = delay

    def fits(self, sentence: str, lang: str = "eng_Latn") -> bool:
        return len(sentence.split()) <= self.max_pieces

    def encode(
        self, sentences: Sequence[str], lang: str = "eng_Latn", *, progress: Callable[[int], None] | None = None
    ) -> Tensor:
        text = " ".join(sentences)
        if "DIE" in text:
            os.kill(os.getpid(), 9)
        if "CRASH" in text:
            raise RuntimeError("the stub crashed")
        for _ in sentences if self.delay else ():
            time.sleep(self.delay)
            if progress:
                progress(1)
        digests = b"".join(hashlib.md5(sentence.encode()).digest()[: self.dim] for sentence in sentences)
        vectors = torch.tensor(list(digests)).reshape(-1, self.dim) / 256
        vectors += torch.arange(len(vectors))[:, None] * 1e-3
        vectors[["HUGE" in sentence for sentence in sentences]] = 1e6
        if progress and not self.delay:
            progress(len(sentences))
        return vectors

    def decode(self, vectors: Tensor, lang: str = "eng_Latn") -> list[str]:
        return [f"sentence {i}" for i in range(len(vectors))]


def load_stub(name: str, *, device: str = "cpu", compile_encoder: bool = False) -> StubCodec:
    return StubCodec(name, delay=float(os.environ.get("STUB_DELAY", "0")))


def load_another(name: str, *, device: str = "cpu", compile_encoder: bool = False) -> StubCodec:
    return StubCodec(name, fingerprint="stub-2")


class Polyglot(StubCodec):
    """English and French: a vector depends on its language, too, and an unknown one is an error."""

    languages = ("eng_Latn", "fra_Latn")

    def encode(
        self, sentences: Sequence[str], lang: str = "eng_Latn", *, progress: Callable[[int], None] | None = None
    ) -> Tensor:
        return super().encode(sentences, lang, progress=progress) + self.languages.index(lang)


def load_polyglot(name: str, *, device: str = "cpu", compile_encoder: bool = False) -> Polyglot:
    return Polyglot(name)


class InlinePool(Pool):
    """A pool without processes: every task is done here and at once."""

    def __init__(self, starts, count, progress):
        self.starts, self.progress = starts, progress

    def __exit__(self, *_: object) -> None:
        pass

    def info(self):
        self.work = self.starts[0]()
        return self.work.info

    def run(self, tasks):
        for task in tasks:
            yield self.work(task, self.progress)


class StubPool(Pool):
    """Processes whose workers load their codec as `command` does here."""

    def __init__(self, starts, count, progress):
        super().__init__([partial(start_with, command.load_codec, start) for start in starts], count, progress)


def start_with(load, start):
    worker.load_codec = load
    return start()


def use_codec(monkeypatch, load=load_stub, pool=InlinePool) -> None:
    """Let `lcm prepare` load its codec by `load`, here and in its workers."""
    monkeypatch.setattr(command, "load_codec", load)
    monkeypatch.setattr(worker, "load_codec", load)
    monkeypatch.setattr(command, "Pool", pool)


def main(words: Sequence[str]) -> None:
    """`lcm prepare` with this codec, in a process of its own."""
    from lcm import cli

    command.load_codec, command.Pool = load_stub, StubPool
    sys.exit(cli.main(["prepare", *words]))


def main_of_a_group(words: Sequence[str]) -> None:
    """Run `main` as the first of a group of processes, which an interrupt reaches."""
    os.setsid()
    # What a shell starts in the background ignores interrupts, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(words)


if __name__ == "__main__":
    main(sys.argv[1:])
