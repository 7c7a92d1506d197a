"""Shards on disk: webdataset tars with an index beside each, read by offset.

A sample is a document: `<key>.json` = {id, sentences, title, source, lang, source_length}, and `<key>.npy` = (n, D)
float16 vectors as the codec made them.

Shapes.  n concepts of one document · D concept width · N documents of one shard
"""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from jaxtyping import Float16, Int64

from lcm.data.manifest import SAMPLE, SPLITS, NormalizerInfo, ShardRecord, open_dataset
from lcm.data.vectors import OpenFile, check_finite
from lcm.errors import UserError
from lcm.files import atomic, sha256

KEY = "{:09d}"
"""A sample's key: the document's number in input order. Not its id, because webdataset cuts keys at the first dot."""
FIELDS = ("id", "sentences", "title", "source", "lang", "source_length")
"""The fields of <key>.json, in this order."""
OFFSET, CONCEPTS, SOURCE = range(3)
"""Columns of an index: the byte at which a document's vectors start, their number, and how many of them are prompt."""
_HEADER = 128
"""Bytes before the numbers of a two-dimensional .npy: of vectors, asserted by `_npy`, and of an index."""


@dataclass(frozen=True)
class Encoded:
    """One encoded document.

    sentences:     one for each vector, including "[MODEL]:" and "End of text."
    source_length: concepts of a pair's prompt, including its suffix; 0 if the document is not a pair
    """

    number: int
    id: str
    title: str
    source: str
    lang: str
    sentences: list[str]
    source_length: int
    vectors: Float16[np.ndarray, "n D"]


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:06d}.tar"


def index_path(tar_path: Path) -> Path:
    """train-000000.tar → train-000000.index.npy"""
    return tar_path.with_suffix(".index.npy")


def write_shard(path: Path, documents: Iterable[Encoded], scratch: Path | None = None) -> ShardRecord:
    """Write a tar and its index, each atomically (lcm.files.atomic). The bytes are a function of the documents."""
    with (
        atomic(path, scratch=scratch) as file,
        wds.TarWriter(file, user="lcm", group="lcm", mtime=0, encoder=False) as tar,
    ):
        for document in documents:
            assert len(document.sentences) == len(document.vectors), "one sentence a vector"
            card = json.dumps({name: getattr(document, name) for name in FIELDS}, ensure_ascii=False).encode("utf-8")
            tar.write({"__key__": KEY.format(document.number), "json": card, "npy": _npy(document.vectors)})
    index = build_index(path)
    with atomic(index_path(path), scratch=scratch) as file:
        np.save(file, index)
    count, pairs, concepts = totals(index)
    return ShardRecord(
        name=path.name, documents=count, pairs=pairs, concepts=concepts, bytes=path.stat().st_size, sha256=sha256(path)
    )


def totals(index: Int64[np.ndarray, "N 3"]) -> tuple[int, int, int]:
    """The numbers of documents, pairs and concepts in an index."""
    return len(index), int((index[:, SOURCE] > 0).sum()), int(index[:, CONCEPTS].sum())


def _npy(vectors: Float16[np.ndarray, "n D"]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(vectors), version=(1, 0))
    assert len(buffer.getvalue()) == _HEADER + vectors.nbytes, "numpy pads the header to 128 bytes"
    return buffer.getvalue()


def build_index(tar_path: Path) -> Int64[np.ndarray, "N 3"]:
    """The index of a tar, which is read from end to end. Raises UserError if it is truncated or not a shard."""
    rows = []
    with _opened(tar_path) as tar:
        for card, vectors in _samples(tar, tar_path):
            n, _ = _npy_shape(_bytes(tar, vectors, _HEADER))
            rows.append((vectors.offset_data + _HEADER, n, json.loads(_bytes(tar, card))["source_length"]))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def load_index(tar_path: Path) -> Int64[np.ndarray, "N 3"]:
    """The index beside a tar; made, and stored if the folder is writable, if there is none. Raises UserError."""
    try:
        data = index_path(tar_path).read_bytes()
        documents = (len(data) - _HEADER) // 24
        if data[:_HEADER] == _header(documents):  # np.load spends three quarters of its time on the header
            return np.frombuffer(data, "<i8", 3 * documents, _HEADER).reshape(-1, 3)
        return np.load(io.BytesIO(data), allow_pickle=False)
    except FileNotFoundError:
        index = build_index(tar_path)
        with suppress(OSError), atomic(index_path(tar_path)) as file:
            np.save(file, index)
        return index
    except (ValueError, EOFError) as error:
        raise UserError(f"{index_path(tar_path)}: not an index; delete it and it is made anew") from error


def _header(documents: int) -> bytes:
    """The bytes that numpy writes before the numbers of an index."""
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({documents}, 3), }}"
    return b"\x93NUMPY\x01\x00v\x00" + text.ljust(_HEADER - 11).encode() + b"\n"


def _is_index(index: np.ndarray) -> bool:
    """True for rows that a tar can have: vectors behind headers, one document after another."""
    if index.dtype != np.int64 or index.ndim != 2 or index.shape[1:] != (3,):
        return False
    offset, concepts, source = index.T
    ok = (offset % tarfile.BLOCKSIZE == _HEADER) & (np.diff(offset, prepend=0) > 0)
    return bool((ok & (concepts > 0) & (source >= 0) & (source <= concepts)).all())


@dataclass(frozen=True)
class Shard:
    """One tar of a prepared folder."""

    folder: Path
    record: ShardRecord

    @property
    def path(self) -> Path:
        """The tar on this machine."""
        return self.folder / self.record.name

    @property
    def place(self) -> Path | str:
        """The data set: its folder or URL."""
        return self.folder

    def open(self, wait: bool = True) -> OpenFile | None:
        """The open file. Raises UserError if there is none."""
        return OpenFile(self.path)

    def fetch(self) -> Path:
        """The path, where the shard and its index are on this machine now. Raises UserError as `open`."""
        return self.path

    def load(self) -> Int64[np.ndarray, "N 3"]:
        """The index. Raises UserError if it does not agree with the manifest: documents would silently be lost."""
        index, record = load_index(self.path), self.record
        self.check(index)
        if (counts := totals(index)) != record.counts:
            raise UserError(
                f"{self.path}: the index lists {counts} documents, pairs and concepts, the manifest {record.counts}; "
                f"'lcm verify {self.place}' says what is broken"
            )
        return index

    def check(self, index: Int64[np.ndarray, "N 3"]) -> None:
        """Raise UserError where the tar is not the one of the manifest, by its size, or not that of the index."""
        if not _is_index(index):
            raise UserError(f"{index_path(self.path)}: not an index; delete it and it is made anew")
        if self.path.is_file() and (size := self.path.stat().st_size) != self.record.bytes:
            what = "truncated" if size < self.record.bytes else "longer than it was"
            raise UserError(
                f"{self.path}: {what}: {size:,} bytes, the manifest has {self.record.bytes:,}; "
                f"'lcm verify {self.place}' says what is broken"
            )

    def read(self, offset: int, concepts: int, dim: int) -> Float16[np.ndarray, "n D"]:
        """The vectors that start at this byte. Raises UserError as OpenFile, and for numbers that are not finite."""
        vectors = np.empty((concepts, dim), np.float16)
        OpenFile(self.fetch()).fill(vectors.data.cast("B"), offset)
        check_finite(vectors, self.path)
        return vectors


def read_shard(tar_path: Path, finite: bool = True) -> Iterator[Encoded]:
    """The documents of a shard in order. Does not use the index. finite: raise UserError for a number that is not"""
    for document in _all_of(tar_path):
        if finite:
            check_finite(document.vectors, tar_path)
        yield document


def _all_of(tar_path: Path) -> Iterator[Encoded]:
    with _opened(tar_path) as tar:
        for card, vectors in _samples(tar, tar_path):
            yield _encoded(tar, card, vectors)


def read_documents(folder: str | Path, split: str) -> Iterator[Encoded]:
    """The documents of one split of a data set, in input order."""
    for shard in open_dataset(folder).shards(split):
        yield from read_shard(Path(folder) / shard.name)


def read_sample(tar_path: Path, i: int) -> Encoded:
    """The i-th document of a shard with its sentences, found through the index."""
    index = load_index(tar_path)
    start = 0
    if i > 0:  # it starts where the document before it ends, in whole blocks
        offset, n, _ = index[i - 1].tolist()
        with tar_path.open("rb") as file:
            _, dim = _npy_shape(os.pread(file.fileno(), _HEADER, offset - _HEADER))
        start = -(-(offset + n * dim * 2) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    with _opened(tar_path, start) as tar:
        sample = _encoded(tar, *next(_samples(tar, tar_path)))
    check_finite(sample.vectors, tar_path)
    return sample


@contextmanager
def _opened(tar_path: Path, start: int = 0) -> Iterator[tarfile.TarFile]:
    """A tar, read from byte `start` on. Turns the errors of a damaged tar into a UserError."""
    try:
        with tar_path.open("rb") as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                yield tar
    except FileNotFoundError as error:
        raise UserError(f"{tar_path}: missing; run lcm verify {tar_path.parent}") from error
    except (tarfile.TarError, EOFError, ValueError, KeyError, StopIteration) as error:
        raise UserError(f"{tar_path}: damaged; run lcm verify {tar_path.parent}") from error


def _samples(tar: tarfile.TarFile, path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarInfo]]:
    """The two files of each sample. Raises EOFError if the tar has no end-of-archive mark, which tarfile tolerates."""
    members = iter(tar)
    yield from zip(members, members, strict=True)
    if path.stat().st_size < tar.offset + 2 * tarfile.BLOCKSIZE:
        raise EOFError("no end of archive")


def _encoded(tar: tarfile.TarFile, card: tarfile.TarInfo, vectors: tarfile.TarInfo) -> Encoded:
    array = np.load(io.BytesIO(_bytes(tar, vectors)), allow_pickle=False)
    fields = json.loads(_bytes(tar, card))
    return Encoded(int(card.name.split(".")[0]), vectors=array, **{name: fields[name] for name in FIELDS})


def _npy_shape(header: bytes) -> tuple[int, int]:
    """(n, D), from the first bytes of a .npy."""
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.float16 or len(shape) != 2:
        raise ValueError("vectors are two-dimensional float16")
    return shape


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo, size: int = -1) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise ValueError("a sample is two files")
    return file.read(size)


def sample_vectors(shards: Sequence[Shard], dim: int, limit: int = SAMPLE) -> Float16[np.ndarray, "n D"]:
    """The vector of every k-th sentence, with the smallest k that gives at most `limit` vectors.

    Excludes the constants that `lcm prepare` appends, "[MODEL]:" and "End of text.". A function of the data set: it is
    read from finished shards, whatever the number of workers that wrote them.
    """
    total = sum(shard.record.concepts - shard.record.documents - shard.record.pairs for shard in shards)
    stride = max(1, -(-total // limit))
    sample = np.empty((-(-total // stride), dim), np.float16)
    seen = taken = 0
    for shard in shards:
        for offset, n, source_length in shard.load().tolist():
            sentences = [i for i in range(n - 1) if i != source_length - 1]
            chosen = sentences[-seen % stride :: stride]
            if chosen:
                sample[taken : taken + len(chosen)] = shard.read(offset, n, dim)[chosen]
            seen += len(sentences)
            taken += len(chosen)
    assert taken == len(sample), "shards hold what their records say"
    return sample


def fit_normalizer(
    folder: Path, splits: dict[str, tuple[ShardRecord, ...]], dim: int, limit: int = SAMPLE
) -> NormalizerInfo:
    """The normalizer of a data set, fitted to its train split; to validation or test if there is no other."""
    shards = [Shard(folder, record) for record in next(splits[name] for name in SPLITS if splits.get(name))]
    return NormalizerInfo.fitted(torch.from_numpy(sample_vectors(shards, dim, limit)))
