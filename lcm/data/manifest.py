"""`manifest.json`: the description of a data set, with checksums. Written last, so its data set is complete."""

import json
import re
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from lcm.codec.text import AnySplitter
from lcm.data.remote import Unreachable, read
from lcm.errors import UserError
from lcm.files import RETRIES, atomic, read_text
from lcm.ledger import Entries

FORMAT = 1
SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.json"
QUARTILES = (0.25, 0.75)
"""Quantiles as fractions. The reference passes them to an API that takes percentages, and so fits the extreme tail."""
SAMPLE = 200_000
"""Vectors that the normalizer is fitted to: the quartiles are then off by half a percent of a standard deviation."""
UNFINISHED = ".unfinished"
"""Folder inside a data set that is being prepared, for partial files and records of finished shards."""


def is_url(folder: str | Path) -> bool:
    """True for anything that fsspec takes; also after a detour through Path, which drops one of the slashes."""
    return re.match(r"[a-z][a-z0-9+.-]*:(:|/)", str(folder)) is not None


def local_folder(folder: str | Path, option: str) -> Path:
    """The folder as a Path. Raises UserError, naming the option, if it is a URL."""
    if is_url(folder):
        raise UserError(f"{option}={folder}: expected a local folder; copy the data set here, or there when it is done")
    return Path(folder)


def join(url: str, name: str) -> str:
    """The URL of a file in a folder's URL, whose query (a signature, a token) stays at the end."""
    folder, mark, query = split_query(url)
    return f"{folder.rstrip('/')}/{name}{mark}{query}"


def split_query(url: str) -> tuple[str, str, str]:
    """(URL, "?", query); only HTTP has queries, and elsewhere a question mark is part of a name."""
    return url.partition("?") if re.match(r"(\w+::)*https?:/", url) else (url, "", "")


class Record(BaseModel, extra="forbid", frozen=True):
    """A part of the manifest. Frozen; unknown keys are errors."""


class CodecInfo(Record):
    """The codec that made the vectors. end_of_text: sha256 of the vector that ends every document, as float16."""

    name: str
    fingerprint: str
    dim: int
    lang: str
    stop_threshold: float
    end_of_text: str

    def __str__(self) -> str:
        return f"codec '{self.name}' (fingerprint {self.fingerprint}, {self.dim} channels)"


class NormalizerInfo(Record):
    """Median and scaled interquartile range of each channel, by `location_and_scale`."""

    location: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def fitted(cls, vectors: Float[Tensor, "n D"]) -> "NormalizerInfo":
        """Fitted to these vectors; with the fewest digits that give the same float32 back."""
        fitted = location_and_scale(vectors)
        location, scale = (tuple(float(str(value)) for value in values.numpy()) for values in fitted)
        return cls(location=location, scale=scale)


class InputFile(Record):
    path: str
    bytes: int
    sha256: str


class DatasetInfo(Record):
    """A Hugging Face data set used as input. commit: of the hub's repository; empty for a local folder."""

    name: str
    config: str
    split: str
    commit: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.name, self.config, self.split, self.commit) if part)


class ShardRecord(Record):
    """One tar. concepts: the number of its vectors; bytes, sha256: of the file."""

    name: str
    documents: int
    pairs: int
    concepts: int
    bytes: int
    sha256: str

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.documents, self.pairs, self.concepts


class Manifest(Record):
    """A data set. It holds no time stamps: the same input gives the same bytes."""

    format: int = FORMAT
    codec: CodecInfo
    splitter: AnySplitter
    """The splitter that was used; `--splitter sat-or-nupunkt` leaves it open until then."""
    options: dict[str, str | int | float | bool]
    """The options of `lcm prepare` that change the contents of shards."""
    inputs: tuple[InputFile, ...]
    dataset: DatasetInfo | None = None
    emojis: int = 0
    """Emojis that the splitter removed; nupunkt keeps them."""
    blocks: int = 0
    """Cuts of the splitter in the middle of a sentence too long, for want of any separator."""
    refused: Entries
    """The ledger of what was passed over: documents, and files of folders and globs."""
    splits: dict[str, tuple[ShardRecord, ...]] = Field(default_factory=dict)
    normalizer: NormalizerInfo

    def shards(self, split: str) -> tuple[ShardRecord, ...]:
        """The shards of train, validation or test, in input order; none if the split is empty."""
        return self.splits.get(split, ())

    @property
    def documents(self) -> int:
        return sum(shard.documents for shards in self.splits.values() for shard in shards)

    @property
    def pairs(self) -> int:
        return sum(shard.pairs for shards in self.splits.values() for shard in shards)

    @property
    def concepts(self) -> int:
        return sum(shard.concepts for shards in self.splits.values() for shard in shards)

    def save(self, folder: str | Path, scratch: Path | None = None) -> None:
        """Write `folder`/manifest.json atomically. scratch: as in lcm.files.atomic."""
        idle = None if self.blocks else {"blocks"}  # so that the same text makes the same file as in older versions
        with atomic(Path(folder) / MANIFEST, scratch=scratch) as file:
            file.write(indented(self.model_dump(mode="json", exclude=idle)).encode("utf-8"))


def open_dataset(folder: str | Path, retries: int = RETRIES) -> Manifest:
    """The manifest of a folder, local or behind a URL. Raises UserError if this version cannot read one there."""
    path = join(str(folder), MANIFEST) if is_url(folder) else Path(folder) / MANIFEST
    text = _read_text(folder, retries)
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON; prepare the data set again") from error
    version = values.get("format") if isinstance(values, dict) else None
    if version != FORMAT:
        raise UserError(f"{path}: format {version!r}, but this version of lcm reads format {FORMAT}; prepare it again")
    try:
        manifest = Manifest.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place}: {first['msg'].lower()}; prepare the data set again") from error
    if problem := next(_problems(manifest), None):
        raise UserError(f"{path}: {problem}; prepare the data set again")
    return manifest


def _problems(manifest: Manifest) -> Iterator[str]:
    """Values of the right type that no data set has: each as its place, and what is wrong."""
    codec, normalizer = manifest.codec, manifest.normalizer
    if codec.dim < 1:
        yield f"codec.dim: {codec.dim}, expected 1 or more"
    if not isfinite(codec.stop_threshold):
        yield f"codec.stop_threshold: {codec.stop_threshold}, expected a number"
    checksums = {"codec.end_of_text": codec.end_of_text}
    checksums |= {f"inputs.{i}.sha256": file.sha256 for i, file in enumerate(manifest.inputs)}
    counts = {"emojis": manifest.emojis, "blocks": manifest.blocks}
    counts |= {f"inputs.{i}.bytes": file.bytes for i, file in enumerate(manifest.inputs)}
    counts |= {f"refused.{kind}.count": entry.count for kind, entry in manifest.refused.items()}
    for split, shards in manifest.splits.items():
        if split not in SPLITS:
            yield f"splits.{split}: expected {', '.join(SPLITS)}"
        for i, shard in enumerate(shards):
            place = f"splits.{split}.{i}"
            if not re.fullmatch(rf"{re.escape(split)}-\d{{6,}}\.tar", shard.name) or shard.name in checksums:
                yield f"{place}.name: {shard.name!r}, expected {split}-NNNNNN.tar, each once"
            if not 0 <= shard.pairs <= shard.documents <= shard.concepts:
                yield f"{place}: {shard.pairs} pairs, {shard.documents} documents, {shard.concepts} concepts"
            checksums |= {shard.name: shard.sha256}
            counts |= {f"{place}.bytes": shard.bytes}
    yield from (f"{place}: {count}, expected 0 or more" for place, count in counts.items() if count < 0)
    for place, checksum in checksums.items():
        if not re.fullmatch(r"[0-9a-f]{64}", checksum):
            yield f"{place}: {checksum!r}, expected a sha256"
    for name, numbers in (("location", normalizer.location), ("scale", normalizer.scale)):
        if len(numbers) != codec.dim:
            yield f"normalizer.{name}: {len(numbers)} channels, the codec {codec.dim}"
        if not all(map(isfinite, numbers)) or (name == "scale" and min(numbers) <= 0):
            yield f"normalizer.{name}: expected finite numbers{', above 0' if name == 'scale' else ''}"


def _read_text(folder: str | Path, retries: int) -> str:
    if isinstance(folder, str) and is_url(folder):
        try:
            return read(join(folder, MANIFEST), retries, lambda data: data.decode("utf-8", errors="replace"))
        except Unreachable as error:
            line = f"{error}; expected the URL of a folder written by lcm prepare"
            raise Unreachable(line, error.final) from error
    path = local_folder(folder, "data set") / MANIFEST
    if not path.is_file():
        if (Path(folder) / UNFINISHED).is_dir():
            raise UserError(f"{folder}: not finished; run the same lcm prepare command again and it continues")
        raise UserError(f"{folder}: no data set there (no {MANIFEST}); make one with lcm prepare --output {folder}")
    return read_text(path)


def indented(values: Any) -> str:
    """Indented JSON for people to read, with every list of numbers on one line."""
    text = json.dumps(values, indent=2, ensure_ascii=False)
    return re.sub(r"\[\n\s+(-?\d[^\[\]{}\"]*?)\n\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"


def location_and_scale(vectors: Float[Tensor, "n D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """(location, scale): the median, and the interquartile range over that of N(0, 1), which is σ for a Gaussian.

    A channel that never varies gets scale 1 instead of 0.
    """
    # In blocks of channels, because each is copied as float64.
    blocks = (vectors[:, start : start + 64].double().cpu().numpy() for start in range(0, vectors.shape[1], 64))
    quantiles = [np.quantile(block, (QUARTILES[0], 0.5, QUARTILES[1]), axis=0) for block in blocks]
    low, middle, high = torch.from_numpy(np.concatenate(quantiles, axis=1)).to(vectors.device)
    unit = NormalDist().inv_cdf(QUARTILES[1]) - NormalDist().inv_cdf(QUARTILES[0])
    scale = (high - low) / unit
    return middle.float(), torch.where(scale > 0, scale, torch.ones_like(scale)).float()
