"""Look into a data set: what it holds, how long its documents and sentences are, and one document decoded back.

python data_prep/inspect_shards.py data/corpus --output lengths.png --seed 7
"""

import argparse
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from lcm.cli import run_command, starting

with starting("inspect_shards"):
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from lcm.codec import load_codec
    from lcm.data.manifest import SPLITS, Manifest, local_folder, open_dataset
    from lcm.data.shards import CONCEPTS, Encoded, load_index, read_documents, read_sample
    from lcm.errors import UserError
    from lcm.files import atomic_result
    from lcm.options import Option, add_options, check_fields, options_from, writable_file

SENTENCE_SAMPLE = 2000
"""Documents whose sentences are measured."""


@dataclass(frozen=True, kw_only=True)
class Options:
    folder: Annotated[str, Option("DIR", place=True, positional=True)]
    """Data set, written by lcm prepare."""
    split: Literal["train", "validation", "test"] = "train"
    """Split whose lengths and document are shown."""
    output: Annotated[str, Option("F.png", place=True)] = "lengths.png"
    """File of the histograms."""
    seed: Annotated[int, Option(least=0)] = 1
    """Seed of the draw of a document."""
    sentences: Annotated[int, Option(least=0)] = 20
    """Sentences to decode at most."""

    def __post_init__(self) -> None:
        check_fields(self)


def document_lengths(folder: Path, manifest: Manifest, split: str) -> NDArray[np.int64]:
    """Concepts of every document; from the indexes alone."""
    indexes = [load_index(folder / shard.name)[:, CONCEPTS] for shard in manifest.shards(split)]
    return np.concatenate([np.empty(0, np.int64), *indexes])


def sentence_lengths(folder: Path, split: str) -> NDArray[np.int64]:
    """Characters of the sentences of the first documents, what `prepare` appended left out."""
    documents = islice(read_documents(folder, split), SENTENCE_SAMPLE)
    return np.array([len(sentence) for document in documents for sentence in own_sentences(document)], np.int64)


def own_sentences(document: Encoded) -> list[str]:
    constants = {document.source_length - 1, len(document.sentences) - 1}
    return [sentence for i, sentence in enumerate(document.sentences) if i not in constants]


def random_document(folder: Path, manifest: Manifest, split: str, seed: int) -> Encoded:
    """Any document of the split, all equally likely."""
    number = random.Random(seed).randrange(sum(shard.documents for shard in manifest.shards(split)))
    for shard in manifest.shards(split):
        if number < shard.documents:
            return read_sample(folder / shard.name, number)
        number -= shard.documents
    raise AssertionError("the number is below the sum")


def table(folder: Path, manifest: Manifest) -> str:
    """Counts by split."""
    lines = ["split        shards  documents  pairs    concepts  per document: median  mean   max"]
    for split in SPLITS:
        if shards := manifest.shards(split):
            lengths = document_lengths(folder, manifest, split)
            pairs, concepts = (sum(getattr(shard, name) for shard in shards) for name in ("pairs", "concepts"))
            spread = f"{np.median(lengths):22.0f} {lengths.mean():5.1f} {lengths.max():5d}"
            lines.append(f"{split:10} {len(shards):8,} {len(lengths):10,} {pairs:6,} {concepts:11,} {spread}")
    return "\n".join(lines)


def draw(documents: NDArray[np.int64], sentences: NDArray[np.int64], title: str, path: Path) -> None:
    """Two histograms side by side, as PNG. Raises UserError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("histograms need matplotlib; pip install 'lcm-train[plots]'") from error

    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    figure.suptitle(title)
    panels = (
        (
            axes[0],
            documents,
            "concepts a document",
            "documents",
            np.geomspace(documents.min(), documents.max() + 1, 40),
        ),
        (axes[1], sentences, "characters a sentence", "sentences", np.linspace(0, sentences.max() + 1, 52)),
    )
    for axis, lengths, xlabel, ylabel, bins in panels:
        axis.hist(lengths, bins=bins, color="#4477aa")
        median = np.median(lengths)
        axis.axvline(median, color="#aa3377", label=f"median {median:.0f}")
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.legend(frameon=False)
    axes[0].set_xscale("log")
    with atomic_result(path) as part:
        figure.savefig(part, dpi=120, format=path.suffix.removeprefix(".") or "png")


def side_by_side(document: Encoded, decoded: list[str]) -> str:
    """Each sentence above what its vector decodes to."""
    lines = [f"document {document.number} · {document.id} · {document.title or 'no title'}"]
    for i, (sentence, back) in enumerate(zip(document.sentences, decoded, strict=False)):
        lines += [f"{i:4}  {sentence}", "    = the same" if back == sentence else f"    → {back}"]
    if len(decoded) < len(document.sentences):
        lines.append(f"      … and {len(document.sentences) - len(decoded)} more")
    return "\n".join(lines)


def inspect(options: Options, load: Callable[[str], Any]) -> int:
    """Print the counts and one document, and draw the lengths."""
    folder, split, picture = local_folder(options.folder, "DIR"), options.split, writable_file(options.output)
    manifest = open_dataset(folder)
    if not manifest.shards(split):
        raise UserError(f"--split={split}: empty in {folder}; it has {', '.join(manifest.splits)}")
    print(table(folder, manifest))
    for reason, refused in manifest.refused.items():
        print(f"refused: {refused.count:,} {reason}, the first {refused.first}")
    documents, sentences = document_lengths(folder, manifest, split), sentence_lengths(folder, split)
    low, middle, high = np.quantile(sentences, [0.1, 0.5, 0.9])
    print(f"sentences of {split}: {low:.0f} characters (10%), {middle:.0f} (median), {high:.0f} (90%)")
    draw(documents, sentences, f"{folder.name}, {split}: {len(documents):,} documents", picture)
    print(f"lengths: {picture}\n")
    document = random_document(folder, manifest, split, options.seed)
    vectors = torch.from_numpy(document.vectors[: options.sentences]).float()
    decoded = load(manifest.codec.name).decode(vectors, lang=manifest.codec.lang)
    print(side_by_side(document, decoded))
    return 0


def main(argv: list[str] | None = None, load: Callable[[str], Any] | None = None) -> int:
    parser = argparse.ArgumentParser(description="look into a data set", allow_abbrev=False)
    add_options(parser, Options)
    opened = load or load_codec
    return run_command("inspect_shards", lambda: inspect(options_from(parser.parse_args(argv), Options), opened))


if __name__ == "__main__":
    sys.exit(main())
