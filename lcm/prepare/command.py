"""Text files → shards: documents are dealt out in input order, and worker processes make a shard each.

Killed at any moment and started again, it continues; the folder then equals, byte for byte, that of a run which was
never killed, whatever the number of workers.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from lcm.codec import AnySplitter, SatSettings, SonarSpeech, SplitterSettings, load_codec, load_sat
from lcm.data import MANIFEST, SPLITS, UNFINISHED, DatasetInfo, Manifest, fit_normalizer, local, open_dataset
from lcm.errors import UserError
from lcm.files import disk_errors
from lcm.prepare.hub import Dataset, DatasetRows
from lcm.prepare.inputs import find_inputs
from lcm.prepare.options import PrepareOptions, add_arguments, devices_for, kind_of, options_from, workers_for
from lcm.prepare.pool import Pool
from lcm.prepare.progress import PrepareProgress, Writer
from lcm.prepare.resume import Asked, Occupied, asked_of, check_folder, claimed, fingerprints, read_asked, shared
from lcm.prepare.rows import Rows
from lcm.prepare.sharding import Dealer, describe
from lcm.prepare.sources import Sources
from lcm.prepare.speech import MAX_SECONDS, LoadSpeech
from lcm.prepare.worker import Embedder, LoadEncoder, Recipe

__all__ = ["PrepareOptions", "add_arguments", "options_from", "prepare", "run", "summary"]


def prepare(
    options: PrepareOptions,
    load: LoadEncoder = load_codec,
    out: Writer | None = None,
    load_speech: LoadSpeech = SonarSpeech,
) -> Manifest | None:
    """Make the data set, go on with it, or find that it is there. None: parts of it are still to be made elsewhere.

    load, load_speech: what gives a worker process its codec, and its speech encoder; functions that it can import; with
                       options.compile, `load` is asked for compile_encoder=True
    out: where progress goes; stderr if not told otherwise
    Raises UserError for anything a person can put right; what is done until then is kept.
    """
    folder, out = local(options.output, "--output"), out or sys.stderr
    with disk_errors(folder):
        rows, files, dataset, total_bytes = _rows(options)
        check_folder(folder)
        options = options.sized_for(total_bytes)
        splitter = _settled_splitter(options, out)
        devices = devices_for(options.devices)
        recipe = Recipe(
            options.codec, options.lang, splitter, options.max_seconds or MAX_SECONDS, options.speech_encoder
        )
        load = partial(load, compile_encoder=True) if options.compile else load
        starts = [partial(Embedder, load, recipe, folder, device, load_speech) for device in devices]
        workers = workers_for(options.workers, devices)
        progress = PrepareProgress(out, total_bytes)
        dealer = Dealer(options.shard_documents, options.shard_characters, progress, options.share)
        with closing(progress), Pool(starts, workers, dealer.finished, progress.report) as pool:
            inputs, mtimes = fingerprints(files, read_asked(folder))
            asked = Asked(
                options=options.decisive | ({} if kind_of(devices[0]) == "cpu" else {"devices": kind_of(devices[0])}),
                inputs=inputs,
                codec=pool.first_info(),
                splitter=splitter,
                dataset=dataset,
                mtimes=mtimes,
            )
            if (folder / MANIFEST).is_file():
                return _found(folder, asked, out)
            if options.part:
                try:
                    with shared(folder, asked, options.part) as notes:
                        dealer.deal(rows, notes, pool)
                except Occupied:
                    if (folder / MANIFEST).is_file():
                        return open_dataset(folder)
                    raise
                return _completed(folder, asked, splitter, dealer)
            with claimed(folder, asked) as (first_asked, notes):
                if notes:
                    print(f"lcm prepare: going on in {folder}, where {len(notes)} shards are done", file=out)
                dealer.deal(rows, notes, pool)
                manifest = _manifest(folder, first_asked, splitter, dealer)
                manifest.save(folder, scratch=folder / UNFINISHED)
    return manifest


def _completed(folder: Path, asked: Asked, splitter: AnySplitter, dealer: Dealer) -> Manifest | None:
    """The manifest, by whichever part is the last to be done; None for the others."""
    try:
        with claimed(folder, asked) as (first_asked, notes):
            dealer.notes |= notes
            if dealer.lacking():
                raise Occupied("other parts are still to come")  # notes stay where there was an error
            manifest = _manifest(folder, first_asked, splitter, dealer)
            manifest.save(folder, scratch=folder / UNFINISHED)
    except Occupied:
        return open_dataset(folder) if (folder / MANIFEST).is_file() else None
    return manifest


def _rows(options: PrepareOptions) -> tuple[Rows, Sequence[Path], DatasetInfo | None, int]:
    """(what is read, the files whose hashes say whether it changed, the data set if it is one, bytes of it all)"""
    if options.dataset is None:
        if not options.input:
            raise UserError("--input: expected files, folders or globs; or name a data set by --dataset")
        files = find_inputs(options.input, audio=True)
        sources = Sources(files, options.columns, options.lang, options.file_documents)
        return sources, files, None, sum(path.stat().st_size for path in files)
    o = options
    dataset = Dataset(options.dataset, o.dataset_config, o.dataset_split, o.revision, o.streaming)
    rows = DatasetRows(dataset, options.columns, options.lang)
    return rows, dataset.files(), dataset.info, rows.total_bytes


def _settled_splitter(options: PrepareOptions, out: Writer) -> SplitterSettings | SatSettings:
    """The splitter that is used: SaT with the fingerprint of its model, or what is asked for in its place."""
    asked = options.asked_splitter
    if not isinstance(asked, SatSettings):
        return asked
    try:
        return asked.model_copy(update={"fingerprint": load_sat(asked).fingerprint})
    except UserError as error:
        if options.splitter != "sat-or-nupunkt":
            raise
        print(f"lcm prepare: splitting by nupunkt instead, as --splitter sat-or-nupunkt allows: {error}", file=out)
        return SplitterSettings(max_characters=options.max_characters)


def _manifest(folder: Path, asked: Asked, splitter: AnySplitter, dealer: Dealer) -> Manifest:
    splits = dealer.splits()
    return Manifest(
        codec=asked.codec,
        splitter=splitter,
        options=asked.options,
        inputs=asked.inputs,
        dataset=asked.dataset,
        emojis=dealer.emojis(),
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
    if manifest is None:
        print(f"{options.output}: part {options.part} is done, others are not")
        return 0
    if manifest.emojis:
        print(f"lcm prepare: {manifest.emojis:,} emojis removed by the splitter", file=sys.stderr)
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
