"""`Request`: all that decides the bytes of a data set. Two runs with equal requests make equal data sets."""

from collections.abc import Sequence
from pathlib import Path

from lcm.codec import AnySplitter
from lcm.data import CodecInfo, DatasetInfo, InputFile, Manifest, Record
from lcm.files import sha256

Inputs = tuple[tuple[InputFile, ...], tuple[int, ...]]
"""(inputs, mtimes) of a `Request`."""


class Request(Record):
    """Input, options, codec and splitter: all that decides the bytes. A run resumes another only with an equal request.

    codec:  with an empty `end_of_text` until a worker has encoded it
    mtimes: modification time of each input in nanoseconds; an input of the same time and size is not hashed again
    """

    options: dict[str, str | int | float | bool]
    inputs: tuple[InputFile, ...]
    codec: CodecInfo
    splitter: AnySplitter | None = None
    dataset: DatasetInfo | None = None
    mtimes: tuple[int, ...] = ()

    def with_end_of_text(self, digest: str) -> "Request":
        """A copy with the digest of the vector that ends every document."""
        return self.model_copy(update={"codec": self.codec.model_copy(update={"end_of_text": digest})})

    def difference(self, now: "Request") -> str | None:
        """The first difference of `now` from this earlier request, in words; None where the shards would be equal."""
        before, after = ([(Path(f.path).name, f.sha256) for f in request.inputs] for request in (self, now))
        for name, checksum in after:
            if (name, checksum) not in before:
                return f"other input: {name} is new or has changed"
        if before != after:
            return f"other input: {len(before)} files, now {len(after)} or in another order"
        if self.dataset != now.dataset:
            return f"data set {self.dataset}, now {now.dataset}"
        if self.codec.fingerprint != now.codec.fingerprint:
            return f"codec {self.codec.name!r} ({self.codec.fingerprint}), now {now.codec.fingerprint}"
        for name in self.options | now.options:
            old, new = (request.options.get(name, "not given") for request in (self, now))
            if old != new:
                return f"--{name.replace('_', '-')} {old}, now {new}"
        if self.codec != now.codec:
            return f"codec {self.codec.name!r}, which now gives another vector for the end of a text"
        if self.splitter not in (None, now.splitter):
            return f"splitter {self.splitter}, now {now.splitter}"
        return None


def request_of(manifest: Manifest) -> Request:
    """The request that a finished data set was made for."""
    return Request(
        options=manifest.options,
        inputs=manifest.inputs,
        codec=manifest.codec,
        splitter=manifest.splitter,
        dataset=manifest.dataset,
    )


def fingerprints(files: Sequence[Path], before: Request | None) -> Inputs:
    """(inputs, mtimes). A file of the same size and time as in `before` keeps its hash, and is not read."""
    known = {(f.path, f.bytes, t): f for f, t in zip(before.inputs, before.mtimes, strict=True)} if before else {}
    stats = [path.stat() for path in files]
    inputs = tuple(
        known.get((str(path), stat.st_size, stat.st_mtime_ns))
        or InputFile(path=str(path), bytes=stat.st_size, sha256=sha256(path))
        for path, stat in zip(files, stats, strict=True)
    )
    return inputs, tuple(stat.st_mtime_ns for stat in stats)
