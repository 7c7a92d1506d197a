"""Recordings → concepts: a recording is cut at its longest pauses, and each segment is a sentence.

The rule works on frames of 20 ms. A frame is quiet if it is 30 dB below the 95th percentile of the frames' levels; a
pause is 0.2 s of quiet. A part longer than the cap is cut in the middle of its longest pause (of several equally long
ones, the one nearest to the middle of the part) or, without a pause, at the quietest frame of its middle third; then
both halves are treated likewise. Quiet at the ends of a part is trimmed to a tenth of a second. A recording whose 95th
percentile is under -60 dB has no segments.

Shapes.  F frames · n segments · D concept width
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lcm.codec import Progress, SonarSpeech
from lcm.errors import UserError, optional_import
from lcm.prepare.rows import Refused

RATE = 16_000
"""Samples per second, as SONAR's speech encoders expect."""
FRAME = RATE // 50
"""Samples in a frame."""
MAX_SECONDS = 15.0
SILENCE, BELOW_LOUD = -60.0, 30.0
"""Level of silence in dB below full scale; distance of a quiet frame from the loud ones in dB."""
PAUSE, MARGIN = 10, 5
"""Frames in the shortest pause; frames of quiet left around a segment."""
BATCH = 16
"""Segments in a batch of the encoder."""


@dataclass(frozen=True)
class Segment:
    """Samples `start` to `end` of a file."""

    path: Path
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.path.name} {self.start / RATE:.2f}–{self.end / RATE:.2f} s"

    def samples(self) -> Float[Tensor, " samples"]:
        samples, _ = _soundfile().read(self.path, start=self.start, stop=self.end, dtype="float32")
        return torch.from_numpy(samples)


def segments(path: Path, max_seconds: float) -> list[Segment] | Refused:
    """The segments of a file, each at most `max_seconds` long, or why it cannot be used. Memory holds some seconds."""
    soundfile = _soundfile()
    try:
        with soundfile.SoundFile(path) as file:
            if (file.samplerate, file.channels) != (RATE, 1):
                fix = f"ffmpeg -i {path} -ar {RATE} -ac 1 {path.with_suffix('')}-16k{path.suffix}"
                return Refused("not 16 kHz mono", f"{path}: {file.samplerate} Hz, {file.channels} channels; {fix}")
            levels = _levels(file.blocks(FRAME * 1000, dtype="float32"))
            samples = file.frames
    except (soundfile.SoundFileError, OSError) as error:
        return Refused("damaged audio", f"{path}: {error}")
    spans = cut_at_pauses(levels, int(max_seconds * RATE / FRAME))
    return [Segment(path, start * FRAME, min(end * FRAME, samples)) for start, end in spans]


def _levels(blocks: Iterator[Any]) -> Float[np.ndarray, " F"]:
    """Level of each frame, in dB below full scale."""
    energies = [np.zeros(0)]
    for block in blocks:
        padded = np.pad(block.astype(np.float64), (0, -len(block) % FRAME))
        energies.append((padded.reshape(-1, FRAME) ** 2).mean(axis=1))
    return 10 * np.log10(np.concatenate(energies) + 1e-12)


def cut_at_pauses(levels: Float[np.ndarray, " F"], most: int) -> list[tuple[int, int]]:
    """[start, end) of the segments in frames, in order, none longer than `most`. Every loud frame is in one of them."""
    if not len(levels) or (loud := np.quantile(levels, 0.95)) < SILENCE:
        return []
    quiet = levels < loud - BELOW_LOUD
    spans, waiting = [], [(0, len(levels))]
    while waiting:
        start, end = _trimmed(quiet, *waiting.pop())
        if end - start > most:
            place = start + _best_place(levels[start:end], quiet[start:end])
            waiting += [(place, end), (start, place)]
        elif start < end:
            spans.append((start, end))
    return spans


def _trimmed(quiet: Bool[np.ndarray, " F"], start: int, end: int) -> tuple[int, int]:
    loud = np.flatnonzero(~quiet[start:end])
    if not len(loud):
        return start, start
    return max(start, start + int(loud[0]) - MARGIN), min(end, start + int(loud[-1]) + 1 + MARGIN)


def _best_place(levels: Float[np.ndarray, " F"], quiet: Bool[np.ndarray, " F"]) -> int:
    edges, end = np.flatnonzero(np.diff(quiet.astype(np.int8), prepend=0, append=0)), len(quiet)
    if inner := [(a, b) for a, b in edges.reshape(-1, 2).tolist() if a > 0 and b < end and b - a >= PAUSE]:
        a, b = max(inner, key=lambda pause: (pause[1] - pause[0], -abs(sum(pause) - end)))
        return (a + b) // 2
    third = max(1, end // 3)
    return third + int(levels[third : end - third].argmin())


class Listener:
    """Recordings → segments → vectors. A batch holds segments of several documents."""

    def __init__(self, encoder: SonarSpeech, max_seconds: float) -> None:
        self.encoder, self.max_seconds = encoder, max_seconds

    def segments(self, paths: Sequence[str], lang: str) -> list[Segment] | Refused:
        """The segments of a document's files, or the first reason why there are none."""
        if not self.encoder.knows(lang):
            return Refused("no speech encoder", lang)
        all_segments: list[Segment] = []
        for path in paths:
            of_file = segments(Path(path), self.max_seconds)
            if isinstance(of_file, Refused):
                return of_file
            all_segments += of_file
        return all_segments

    def encode(self, pieces: Sequence[Segment], lang: str, dim: int, progress: Progress) -> Float[Tensor, "n {dim}"]:
        """fp32 vectors of segments. Raises UserError where the speech encoder's width is not the codec's."""
        vectors = torch.empty(len(pieces), dim)
        # Batches of segments of similar length need little padding.
        order = sorted(range(len(pieces)), key=lambda i: pieces[i].start - pieces[i].end)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            encoded = self.encoder.encode([pieces[i].samples() for i in batch], lang)
            if encoded.shape[1] != dim:
                theirs = f"those of SONAR's speech encoder {encoded.shape[1]}; speech goes with --codec sonar"
                raise UserError(f"--codec: its vectors have {dim} channels, {theirs}")
            vectors[batch] = encoded
            progress(len(batch))
        return vectors


def _soundfile() -> Any:
    return optional_import("soundfile", "reading audio needs soundfile: pip install 'lcm-train[sonar]'")
