"""Recordings → concepts: cut at their longest pauses, a segment as a sentence.

The rule, over frames of 20 ms. A frame is quiet where it is 30 dB below the loud ones (95% of all are less loud), and a
pause is 0.2 s of quiet. What is longer than the cap is cut in the middle of its longest pause, the one nearest to its
own middle where several are as long; without a pause, at the quietest frame of its middle third; and so on with both
parts. Quiet at the ends of a part goes, up to a tenth of a second. A recording under -60 dB has nothing to say.

Shapes.  F frames · n segments · D concept width
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lcm.errors import UserError
from lcm.prepare.pool import Tell
from lcm.prepare.rows import Refused

RATE = 16_000
"""Samples a second: what SONAR's speech encoders were trained on."""
FRAME = RATE // 50
MAX_SECONDS = 15.0
SILENCE, BELOW_LOUD = -60.0, 30.0
PAUSE, MARGIN = 10, 5
"""Frames: of the shortest pause, and of the quiet that stays around a segment."""
BATCH = 16
"""Segments that are encoded together."""


@runtime_checkable
class SpeechEncoder(Protocol):
    """Recordings at 16 kHz as vectors of a codec's space; lcm.codec.sonar_space has SONAR's."""

    def knows(self, lang: str) -> bool: ...
    def encode(self, recordings: Sequence[Float[Tensor, " samples"]], lang: str) -> Float[Tensor, "n D"]: ...


LoadSpeech = Callable[..., SpeechEncoder]
"""`load(card, device=…)`, card: None for that of the language."""


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
    """The segments of a file, each at most so long; or why it cannot be used. Holds a few seconds of it at a time."""
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
    """Of each frame, in dB below full scale."""
    energies = [np.zeros(0)]
    for block in blocks:
        padded = np.pad(block.astype(np.float64), (0, -len(block) % FRAME))
        energies.append((padded.reshape(-1, FRAME) ** 2).mean(axis=1))
    return 10 * np.log10(np.concatenate(energies) + 1e-12)


def cut_at_pauses(levels: Float[np.ndarray, " F"], most: int) -> list[tuple[int, int]]:
    """[start, end) of each segment, in frames and in order, none longer than `most`. No loud frame is left out."""
    if not len(levels) or (loud := np.quantile(levels, 0.95)) < SILENCE:
        return []
    quiet = levels < loud - BELOW_LOUD
    spans, waiting = [], [(0, len(levels))]
    while waiting:
        start, end = _trimmed(quiet, *waiting.pop())
        if end - start > most:
            place = _best_place(levels, quiet, start, end)
            waiting += [(place, end), (start, place)]
        elif start < end:
            spans.append((start, end))
    return spans


def _trimmed(quiet: Bool[np.ndarray, " F"], start: int, end: int) -> tuple[int, int]:
    loud = np.flatnonzero(~quiet[start:end])
    if not len(loud):
        return start, start
    return max(start, start + int(loud[0]) - MARGIN), min(end, start + int(loud[-1]) + 1 + MARGIN)


def _best_place(levels: Float[np.ndarray, " F"], quiet: Bool[np.ndarray, " F"], start: int, end: int) -> int:
    edges = np.flatnonzero(np.diff(quiet[start:end].astype(np.int8), prepend=0, append=0))
    pauses = [(start + int(a), start + int(b)) for a, b in edges.reshape(-1, 2)]
    inner = [(a, b) for a, b in pauses if a > start and b < end and b - a >= PAUSE]
    if inner:
        a, b = max(inner, key=lambda pause: (pause[1] - pause[0], -abs(sum(pause) - start - end)))
        return (a + b) // 2
    third = max(1, (end - start) // 3)
    return start + third + int(levels[start + third : end - third].argmin())


class Listener:
    """Documents' recordings → segments and their vectors, in batches over document borders."""

    def __init__(self, encoder: SpeechEncoder, max_seconds: float) -> None:
        self.encoder, self.max_seconds = encoder, max_seconds

    def hear(self, paths: Sequence[str], lang: str) -> list[Segment] | Refused:
        """The segments of a document, or why there are none."""
        if not self.encoder.knows(lang):
            return Refused("no speech encoder", lang)
        heard: list[Segment] = []
        for path in paths:
            found = segments(Path(path), self.max_seconds)
            if isinstance(found, Refused):
                return found
            heard += found
        return heard

    def encode(self, heard: Sequence[Segment], lang: str, dim: int, tell: Tell) -> Float[Tensor, "n {dim}"]:
        """fp32 vectors. Raises UserError where the encoder's are not as wide as the codec's."""
        vectors = torch.empty(len(heard), dim)
        order = sorted(
            range(len(heard)), key=lambda i: heard[i].start - heard[i].end
        )  # alike in length: little padding
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            found = self.encoder.encode([heard[i].samples() for i in batch], lang)
            if found.shape[1] != dim:
                raise UserError(
                    f"--codec: its vectors have {dim} channels, those of SONAR's speech encoder {found.shape[1]}; "
                    "speech goes with --codec sonar"
                )
            vectors[batch] = found
            tell(len(batch))
        return vectors


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise UserError("reading audio needs soundfile: pip install 'lcm-train[sonar]'") from error
    return soundfile
