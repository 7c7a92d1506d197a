"""Text files → shards: documents are dealt out in input order, and worker processes make a shard each.

Killed at any moment and started again, it continues; the folder then equals, byte for byte, that of a run which was
never killed, whatever the number of workers.
"""

import argparse
import os
import shutil
import sys
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

from lcm.codec import load_codec
from lcm.dealer import Dealer, describe
from lcm.embedder import Embedder, LoadEncoder
from lcm.errors import UserError
from lcm.fitting import fit_normalizer
from lcm.inputs import KINDS, find_inputs
from lcm.manifest import MANIFEST, UNFINISHED, Manifest, disk_errors, open_dataset
from lcm.pool import Pool
from lcm.progress import PrepareProgress, Writer
from lcm.sources import SPLITS, Columns, Sources
from lcm.text import SplitterSettings
from lcm.workspace import Asked, asked_of, check_folder, claimed, fingerprints, read_asked


def _processors() -> int:
    """Those that this process may use, where the system can tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What `lcm prepare` is asked for; each field is an option of the same name."""

    input: tuple[str, ...]
    output: str
    codec: str = "mini"
    workers: int = field(default_factory=_processors)
    lang: str = "eng_Latn"
    text_column: str = "text"
    id_column: str = "id"
    title_column: str = "title"
    split_column: str = "split"
    pairs: bool = False
    document_column: str = "document"
    summary_column: str = "summary"
    file_documents: bool = False
    max_characters: int = 256
    shard_documents: int = 10_000
    shard_characters: int = 0
    """A shard is full when it has either. 0: a 64th of the input's bytes, at least 100,000 and at most 1,000,000."""

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("max_characters", 1), ("shard_documents", 1), ("shard_characters", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')}={getattr(self, name)}: expected {least} or more")

    @property
    def decisive(self) -> dict[str, str | int | bool]:
        """Those that decide what is in the shards."""
        return {name: value for name, value in asdict(self).items() if name not in ("input", "output", "workers")}

    def sized_for(self, total_bytes: int) -> "PrepareOptions":
        """With a number for `shard_characters`: small inputs give work to several workers, big ones big shards."""
        return replace(self, shard_characters=self.shard_characters or min(max(total_bytes // 64, 100_000), 1_000_000))

    @property
    def columns(self) -> Columns:
        text, summary = (self.document_column, self.summary_column) if self.pairs else (self.text_column, None)
        return Columns(text=text, id=self.id_column, title=self.title_column, split=self.split_column, summary=summary)


def prepare(options: PrepareOptions, load: LoadEncoder = load_codec, out: Writer | None = None) -> Manifest:
    """Make the data set, go on with it, or find that it is there.

    load: what gives a worker process its codec; a function that it can import
    out:  where progress goes; stderr if not told otherwise
    Raises UserError for anything a person can put right; what is done until then is kept.
    """
    folder, out = Path(options.output), out or sys.stderr
    with disk_errors(folder):
        files = find_inputs(options.input)
        check_folder(folder)
        total_bytes = sum(path.stat().st_size for path in files)
        options = options.sized_for(total_bytes)
        splitter = SplitterSettings(max_characters=options.max_characters)
        start = partial(Embedder, load, options.codec, options.lang, splitter, folder)
        progress = PrepareProgress(out, total_bytes)
        dealer = Dealer(options.shard_documents, options.shard_characters, progress)
        with closing(progress), Pool(start, options.workers, dealer.finished, progress.told) as pool:
            inputs, mtimes = fingerprints(files, read_asked(folder))
            asked = Asked(options=options.decisive, inputs=inputs, codec=pool.first_info(), mtimes=mtimes)
            if (folder / MANIFEST).is_file():
                return _found(folder, asked, out)
            with claimed(folder, asked) as (first_asked, notes):
                if notes:
                    print(f"lcm prepare: going on in {folder}, where {len(notes)} shards are done", file=out)
                sources = Sources(files, options.columns, options.lang, options.file_documents)
                dealer.deal(sources, notes, pool)
                manifest = _manifest(folder, first_asked, splitter, dealer)
                manifest.save(folder, scratch=folder / UNFINISHED)
    return manifest


def _manifest(folder: Path, asked: Asked, splitter: SplitterSettings, dealer: Dealer) -> Manifest:
    splits = dealer.splits()
    return Manifest(
        codec=asked.codec,
        splitter=splitter,
        options=asked.options,
        inputs=asked.inputs,
        refused=dealer.all_refused(),
        splits=splits,
        normalizer=fit_normalizer(folder, splits, asked.codec.dim),
    )


def _found(folder: Path, asked: Asked, out: Writer) -> Manifest:
    """The data set that is there already, if it is the one that is asked for."""
    manifest = open_dataset(folder)
    if difference := asked_of(manifest).difference(asked):
        raise UserError(f"--output={folder}: holds a finished data set, made with {difference}; give another --output")
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # of a run that was killed in its last moment
    print(f"lcm prepare: {folder} is finished already; nothing to do", file=out)
    return manifest


def run(args: argparse.Namespace) -> int:
    """`lcm prepare`: what was made on stdout, the rest on stderr."""
    options = options_from(args)
    manifest = prepare(options)
    if manifest.refused:
        print(f"lcm prepare: {describe(manifest.refused)}", file=sys.stderr)
    print(f"{options.output}: {summary(manifest)}")
    return 0


def summary(manifest: Manifest) -> str:
    """'135 documents (118 train, 10 validation, 7 test), 9,212 concepts in 5 shards'"""
    counts = {split: sum(shard.documents for shard in manifest.shards(split)) for split in SPLITS}
    of_splits = ", ".join(f"{n:,} {split}" for split, n in counts.items())
    shards = sum(len(manifest.shards(split)) for split in SPLITS)
    return f"{manifest.documents:,} documents ({of_splits}), {manifest.concepts:,} concepts in {shards:,} shards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lcm prepare`. Those not given are left to PrepareOptions."""
    add, default = parser.add_argument, PrepareOptions
    add("--input", nargs="+", required=True, metavar="F", help=f"files ({KINDS}), folders, globs")
    add("--output", required=True, metavar="DIR", help="folder of the data set: new, or one to go on with")
    add("--codec", metavar="NAME", help=f"'mini' or a codec's folder (default: {default.codec})")
    add("--workers", type=int, metavar="N", help="processes (default: one a processor); the result is the same")
    add("--lang", metavar="CODE", help=f"FLORES code of the text's language (default: {default.lang})")
    add("--text-column", metavar="C", help=f"of .jsonl and .parquet (default: {default.text_column})")
    add("--id-column", metavar="C", help=f"default: {default.id_column}; rows without one get FILE:ROW")
    add("--title-column", metavar="C", help=f"default: {default.title_column}")
    add("--split-column", metavar="C", help=f"train, validation or test (default: {default.split_column}; else by id)")
    add("--pairs", action="store_true", default=None, help="each row is a document and its summary")
    add("--document-column", metavar="C", help=f"of pairs (default: {default.document_column})")
    add("--summary-column", metavar="C", help=f"of pairs (default: {default.summary_column})")
    add("--file-documents", action="store_true", default=None, help=".txt: each file is one document")
    add("--max-characters", type=int, metavar="N", help=f"longest sentence (default: {default.max_characters})")
    add("--shard-documents", type=int, metavar="N", help=f"documents a shard (default: {default.shard_documents:,})")
    add("--shard-characters", type=int, metavar="N", help="characters a shard (default: by the input's size)")


def options_from(args: argparse.Namespace) -> PrepareOptions:
    """The options that were given on the command line."""
    given = {f.name: getattr(args, f.name) for f in fields(PrepareOptions) if getattr(args, f.name) is not None}
    return PrepareOptions(**{**given, "input": tuple(args.input)})
