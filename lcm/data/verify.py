"""Check a data set against its manifest: read every byte, and name everything that is wrong."""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np

from lcm.data.manifest import SPLITS, Manifest, open_dataset
from lcm.data.remote import Unreachable
from lcm.data.shard_cache import ShardCache, shards_at
from lcm.data.shards import Encoded, Shard, build_index, index_path, read_shard, totals
from lcm.errors import UserError, in_one_line, refused_by_system, without_secrets
from lcm.files import expanded, sha256
from lcm.options import Option, add_options, check_fields, options_from


@dataclass(frozen=True)
class VerifyReport:
    """The result for one data set. problems: one line each, naming the file; empty if all is well."""

    folder: str
    problems: tuple[str, ...]
    documents: int
    pairs: int
    concepts: int
    shards: int


@in_one_line()
def verify(folder: str | Path) -> VerifyReport:
    """Check presence, size, sha256, counts, index and vectors of every shard.

    Remote shards are fetched one by one into a temporary folder, whatever the cache holds.
    Raises UserError if there is no readable manifest.
    """
    folder = expanded(folder, setting="DIR")
    manifest = open_dataset(folder)
    problems = []
    records = [record for split in SPLITS for record in manifest.shards(split)]
    with TemporaryDirectory() as scratch:
        cache = ShardCache(scratch, most=max((record.bytes for record in records), default=0))
        for shard in shards_at(folder, records, cache):
            problems += [f"{shard.record.name}: {line}" for line in _problems(shard, manifest)]
    counts = manifest.documents, manifest.pairs, manifest.concepts
    return VerifyReport(without_secrets(str(folder)), tuple(problems), *counts, len(records))


def _problems(shard: Shard, manifest: Manifest) -> Iterator[str]:
    record = shard.record
    try:
        path = shard.fetch()
    except Unreachable as error:
        yield str(error)
        return
    if not path.is_file():
        yield "missing"
        return
    size = path.stat().st_size
    if size != record.bytes:
        yield f"truncated: {size:,} bytes, expected {record.bytes:,}" if size < record.bytes else "longer than recorded"
        return
    try:
        if sha256(path) != record.sha256:
            yield "corrupt: its sha256 is not the recorded one"
        index = build_index(path)
        if totals(index) != record.counts:
            yield f"holds {totals(index)} documents, pairs and concepts, expected {record.counts}"
        if index_path(path).is_file() and not _holds(index_path(path), index):
            yield f"{index_path(path).name} does not match; delete it and it is made anew"
        for document in read_shard(path, finite=False):
            if problem := _document_problem(document, manifest):
                yield f"document {document.number}: {problem}"
                return  # one is enough to know that the shard is damaged
    except UserError:
        yield "damaged: not a readable tar of documents"
    except OSError as error:
        yield refused_by_system(error, path)


def _holds(path: Path, index: np.ndarray) -> bool:
    try:
        return np.array_equal(np.load(path, allow_pickle=False), index)
    except (ValueError, EOFError):
        return False


def _document_problem(document: Encoded, manifest: Manifest) -> str | None:
    n, dim = document.vectors.shape
    if dim != manifest.codec.dim:
        return f"{dim} channels, expected {manifest.codec.dim}"
    if n != len(document.sentences):
        return f"{n} vectors for {len(document.sentences)} sentences"
    if not np.isfinite(document.vectors).all():
        return "a vector is not finite"
    if hashlib.sha256(document.vectors[-1].tobytes()).hexdigest() != manifest.codec.end_of_text:
        return "does not end with the vector of the end of text"
    return None


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    folder: Annotated[str, Option("DIR", place=True, positional=True)]
    """Data set, written by lcm prepare; or its URL."""
    json: bool = False
    """Print the findings for a program."""

    def __post_init__(self) -> None:
        check_fields(self)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, VerifyOptions)


def run(args: argparse.Namespace) -> int:
    """`lcm verify`: status 0 if all is well, 1 with a line for everything that is not."""
    options = options_from(args, VerifyOptions)
    report = verify(options.folder)
    if options.json:
        print(json.dumps(asdict(report)))
    elif not report.problems:
        print(
            f"OK {report.folder}: {report.documents:,} documents ({report.pairs:,} pairs), "
            f"{report.concepts:,} concepts in {report.shards:,} shards"
        )
    for problem in report.problems:
        print(f"lcm verify: {report.folder}: {problem}", file=sys.stderr)
    return 1 if report.problems else 0
