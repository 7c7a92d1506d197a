"""The `lcm prepare` command: read this file from top to bottom, it is the whole of a preparation.

Documents go to shards in input order, and worker processes make one shard each. A run that is killed at any moment and
started again continues; the folder then equals an uninterrupted run's, byte for byte, for any number of workers.
"""

import argparse
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from lcm.codec import Codec, load_codec
from lcm.codec.text import RULE, SatSettings, SplitterSettings, check_language, load_sat
from lcm.data.manifest import MANIFEST, SPLITS, UNFINISHED, CodecInfo, Manifest, local_folder, open_dataset
from lcm.data.shards import fit_normalizer
from lcm.errors import UserError, in_one_line
from lcm.files import disk_errors
from lcm.ledger import Ledger, described
from lcm.options import add_options, options_from
from lcm.prepare import resume
from lcm.prepare.discovery import find_inputs
from lcm.prepare.hub import DatasetRows
from lcm.prepare.inputs import Inputs
from lcm.prepare.options import PrepareOptions, devices_for, kind_of, workers_for
from lcm.prepare.resume import Finished, FolderLocked, Request
from lcm.prepare.script import end_while_imported
from lcm.prepare.sharding import PrepareProgress, Sharding
from lcm.prepare.sources import Sources
from lcm.prepare.worker import Embedder, Pool


@in_one_line()
def prepare(options: PrepareOptions, load: Callable[..., Any] | None = None) -> Manifest | None:
    """Make a data set, resume one, or find it finished. Returns None while other parts are still to be made.

    load: another encoder than lcm.codec's: `load(name, device=…)` is called here and in each worker process, so it must
          be importable; docs/codec.md lists the members that its result needs
    Raises UserError for anything that a person can put right; finished shards are kept.
    """
    end_while_imported()
    folder = local_folder(options.output, "--output")
    with disk_errors(folder):
        sources = _sources(options)
        resume.check_folder(folder)
        options = options.sized_for(sources.total_bytes)
        devices = devices_for(options.devices)
        codec = (load or load_codec)(options.codec, device="cpu")
        in_order = sources.info is None
        inputs = resume.fingerprints(sources.files, resume.read_request(folder), in_order)
        request = _request(options, sources, inputs, codec, kind_of(devices[0]))
        if (folder / MANIFEST).is_file():
            return _finished(folder, request)
        starts = [partial(Embedder, options, request.splitter, folder, device, load) for device in devices]
        progress = PrepareProgress(sources.total_bytes)
        with closing(progress), Pool(starts, workers_for(options.workers, devices), progress.report) as pool:
            # The last bits of a vector depend on the device, so a worker encodes "End of text." before the first shard.
            request = request.with_end_of_text(pool.info())
            sharding = Sharding(sources, inputs, options, request, progress)
            if options.part:
                return _make_part(folder, request, options.part, sharding, pool)
            with resume.claimed(folder, request) as (begun_with, notes):
                if notes:
                    print(f"lcm prepare: resuming in {folder}, where {len(notes)} shards are done", file=sys.stderr)
                _make_shards(sharding, pool, notes)
                return _save_manifest(folder, begun_with, sharding)


def _sources(options: PrepareOptions) -> Sources | DatasetRows:
    if options.dataset is not None:
        return DatasetRows(options)
    if not options.input:
        raise UserError("--input: expected files, folders or globs; or name a data set by --dataset")
    passed = Ledger()
    files = find_inputs(options.input, audio=True, passed=passed, output=options.output)
    return Sources(files, options.columns, options.lang, options.file_documents, passed)


def _request(
    options: PrepareOptions, sources: Sources | DatasetRows, inputs: Inputs, codec: Codec, device: str
) -> Request:
    """Collect all that decides the bytes, except the vector of "End of text.", without weights. device: cpu or cuda"""
    if options.lang not in codec.languages:
        known = ", ".join(codec.languages[:10])
        raise UserError(f"--lang={options.lang}: not a language of codec '{options.codec}'; it knows {known}")
    return Request(
        options=options.recorded | ({} if device == "cpu" else {"devices": device}),
        inputs=inputs.files,
        ctimes=inputs.ctimes,
        codec=CodecInfo(
            name=options.codec,
            fingerprint=codec.fingerprint,
            dim=codec.dim,
            lang=options.lang,
            stop_threshold=codec.stop_threshold,
            end_of_text="",
        ),
        splitter=_splitter(options),
        dataset=sources.info,
        rule=RULE,
    )


def _splitter(options: PrepareOptions) -> SplitterSettings | SatSettings:
    """The splitter to use: SaT with the fingerprint of its model, or nupunkt where the options allow it instead."""
    nupunkt = SplitterSettings(max_characters=options.max_characters)
    if options.splitter == "nupunkt":
        if options.lang_column is None and options.audio_column is None:  # else each row has its own
            check_language(nupunkt, options.lang)
        return nupunkt
    sat = SatSettings(model=options.sat_model, threshold=options.sat_threshold, max_characters=options.max_characters)
    try:
        return sat.model_copy(update={"fingerprint": load_sat(sat).fingerprint})
    except UserError as error:
        if options.splitter != "sat-or-nupunkt":
            raise
        check_language(nupunkt, options.lang)
        instead = "splitting by nupunkt instead, as --splitter sat-or-nupunkt allows"
        print(f"lcm prepare: {instead}: {error}", file=sys.stderr)
        return nupunkt


def _finished(folder: Path, request: Request) -> Manifest:
    """The finished data set in `folder`. Raises UserError where another request made it.

    The vector of "End of text." is not compared: nothing is encoded here, and no worker needs to start.
    """
    manifest = open_dataset(folder)
    now = request.with_end_of_text(manifest.codec.end_of_text)
    if difference := Request.model_validate(manifest, from_attributes=True).difference(now):
        raise UserError(f"--output={folder}: holds a finished data set, made with {difference}; give another --output")
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # left by a run that was killed in its last moment
    print(f"lcm prepare: {folder} is finished already; nothing to do", file=sys.stderr)
    return manifest


def _make_shards(sharding: Sharding, pool: Pool, notes: dict[str, Finished]) -> None:
    """Have the workers make every shard that is not in `notes`. Raises UserError where no document is left."""
    sharding.progress.start()
    for note in pool.run(sharding.tasks(notes)):
        sharding.finished(note)
    sharding.inputs.check_recordings()
    sharding.check_not_empty()


def _make_part(folder: Path, request: Request, part: str, sharding: Sharding, pool: Pool) -> Manifest | None:
    """Make one part's shards; the part that ends last writes the manifest, for the others the result is None."""
    try:
        with resume.shared(folder, request, part) as notes:
            _make_shards(sharding, pool, notes)
    except FolderLocked:
        if (folder / MANIFEST).is_file():
            return open_dataset(folder)
        raise
    try:
        with resume.claimed(folder, request) as (begun_with, notes):
            sharding.notes |= notes
            if sharding.missing():
                raise FolderLocked("other parts are still to come")  # leaving by an error keeps the notes
            return _save_manifest(folder, begun_with, sharding)
    except FolderLocked:
        return open_dataset(folder) if (folder / MANIFEST).is_file() else None


def _save_manifest(folder: Path, request: Request, sharding: Sharding) -> Manifest:
    splits = sharding.splits()
    manifest = Manifest(
        **request.model_dump(exclude={"mtimes", "ctimes", "cut", "rule"}),
        emojis=sharding.emojis(),
        blocks=sharding.blocks(),
        refused=sharding.refused(),
        splits=splits,
        # From the shards as they are on disk, in their order: the same for any number of workers and resumes.
        normalizer=fit_normalizer(folder, splits, request.codec.dim),
    )
    manifest.save(folder, scratch=folder / UNFINISHED)
    return manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, PrepareOptions)


def run(args: argparse.Namespace) -> int:
    """`lcm prepare`: the summary on stdout, everything else on stderr."""
    options = options_from(args, PrepareOptions)
    manifest = prepare(options)
    if manifest is None:
        print(f"{options.output}: part {options.part} is done, others are not")
        return 0
    if manifest.emojis:
        print(f"lcm prepare: {manifest.emojis:,} emojis removed by the splitter", file=sys.stderr)
    if manifest.blocks:
        way_out = "sentences too long with nothing to cut at; a language without stops wants --splitter sat"
        print(f"lcm prepare: {manifest.blocks:,} cuts without a boundary: {way_out}", file=sys.stderr)
    if manifest.refused:
        print(f"lcm prepare: {described(manifest.refused)}", file=sys.stderr)
    print(f"{options.output}: {summary(manifest)}")
    return 0


def summary(manifest: Manifest) -> str:
    """'135 documents (118 train, 10 validation, 7 test), 9,212 concepts in 5 shards'"""
    counts = {split: sum(shard.documents for shard in manifest.shards(split)) for split in SPLITS}
    of_splits = ", ".join(f"{n:,} {split}" for split, n in counts.items())
    shards = sum(len(manifest.shards(split)) for split in SPLITS)
    return f"{manifest.documents:,} documents ({of_splits}), {manifest.concepts:,} concepts in {shards:,} shards"
