"""The options of `lcm prepare`, each stated once: name, type, default, bounds, help, and whether shards depend on it.

To add one: a field with a default and a docstring, which is its help. Mark it `Kept.NOWHERE` if no byte of a shard
depends on it; otherwise the manifest records it, and its default must be None or empty, or older data sets would not be
recognized. Recorded fields keep their order: it is the order in the file.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Annotated, Literal, get_args, get_type_hints

import torch

from lcm.codec.text import is_length_wish
from lcm.errors import UserError
from lcm.options import Option, check_fields, option_name, refuse_idle
from lcm.prepare.rows import Columns, bound


class Kept(Enum):
    """Marks an option that is not among the recorded `options` of the manifest."""

    NOWHERE = "does not change the bytes of a shard"
    APART = "the manifest has a field for what was really used"


Column = Option("C")


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Options of `lcm prepare`."""

    input: Annotated[tuple[str, ...], Option("F", place=True), Kept.NOWHERE] = ()
    """Files, folders or globs: .txt (a blank line between documents), .jsonl, .parquet, each also with .gz, .xz, .zst;
    .wav, .flac."""
    output: Annotated[str, Option("DIR", place=True), Kept.NOWHERE]
    """Folder of the data set: new, or an unfinished one to resume."""
    codec: Annotated[str, Option("NAME", place=True, read=True)] = "mini"
    """'mini', 'sonar' or a codec's folder."""
    part: Annotated[str | None, Option("I/N"), Kept.NOWHERE] = None
    """Make every N-th shard, from the I-th on, for example 2/16 (default: all); the part that ends last completes the
    data set."""
    workers: Annotated[int | None, Option("N", least=1), Kept.NOWHERE] = None
    """Worker processes (default: one per GPU, else one per core)."""
    devices: Annotated[tuple[str, ...], Option("D,…", several="by commas"), Kept.NOWHERE] = ()
    """cpu, cuda or cuda:0,cuda:1; worker I gets device I modulo their number (default: all visible GPUs, else the
    CPU)."""
    compile: bool | None = None  # None, not False: a manifest without the option stays as it is
    """Compile the text encoder in each worker, for large corpora; changes the last bits of vectors."""
    lang: Annotated[str, Option("CODE")] = "eng_Latn"
    """FLORES code of the language of the text."""
    text_column: Annotated[str, Column] = "text"
    """Column with the text, in .jsonl and .parquet."""
    id_column: Annotated[str, Column] = "id"
    """Column with the id; rows without one get FILE:ROW."""
    title_column: Annotated[str, Column] = "title"
    """Column with the title."""
    split_column: Annotated[str, Column] = "split"
    """Column with train, validation or test; rows without one are split by their id."""
    pairs: bool = False
    """Each row is a document and its summary."""
    document_column: Annotated[str, Column] = "document"
    """Column with the document of a pair."""
    summary_column: Annotated[str, Column] = "summary"
    """Column with the summary of a pair."""
    lengths: bool | None = None  # None, not False: a manifest without the option stays as it is
    """Begin the prompts of half of the pairs, chosen by their ids, with the length of their answer, for lcm generate
    --length."""
    prompt_suffix: Annotated[str | None, Option("TEXT")] = None
    """Sentence that ends the prompt of a pair (default: "[MODEL]:")."""
    end_of_text: Annotated[str | None, Option("TEXT")] = None
    """Sentence that ends every document (default: "End of text.")."""
    lang_column: Annotated[str | None, Column] = None
    """Column with the FLORES code of each row's language, instead of --lang."""
    summary_lang_column: Annotated[str | None, Column] = None
    """Column with the language of the summary, where it differs from the document's."""
    audio_column: Annotated[str | None, Column] = None
    """Column with the path, or list of paths, of 16 kHz mono audio to read instead of a text."""
    max_seconds: Annotated[float | None, Option("X", least=1, most=60)] = None
    """Longest audio segment of one concept; longer ones are cut at pauses (default: 15)."""
    speech_encoder: Annotated[str | None, Option("CARD")] = None
    """Card of sonar-space (default: sonar_speech_encoder_LANG, of each row's language)."""
    drop_above: Annotated[tuple[str, ...], Option("C=X", several="repeated")] = ()
    """Refuse rows with more than X in column C; repeatable."""
    drop_below: Annotated[tuple[str, ...], Option("C=X", several="repeated")] = ()
    """Refuse rows with less than X in column C; repeatable."""
    file_documents: bool = False
    """Each .txt file is one document."""
    dataset: Annotated[str | None, Option("NAME", place=True, read=True), Kept.APART] = None
    """A Hugging Face data set, by name or folder, instead of --input."""
    dataset_config: Annotated[str | None, Column, Kept.APART] = None
    """Configuration of the data set, where it has several."""
    dataset_split: Annotated[str, Option("S"), Kept.APART] = "train"
    """Split of the data set to read."""
    revision: Annotated[str | None, Option("R"), Kept.APART] = None
    """Branch, tag or commit on the hub (default: the newest)."""
    streaming: Annotated[bool, Kept.NOWHERE] = True
    """Download the whole data set before reading it."""
    splitter: Annotated[Literal["nupunkt", "sat", "sat-or-nupunkt"], Kept.APART] = "nupunkt"
    """sat: the boundary model of the paper (§2.2), which also removes emojis; sat-or-nupunkt: nupunkt, with a line on
    stderr, where sat is not available."""
    sat_model: Annotated[str, Option("M", place=True), Kept.APART] = "sat-3l"
    """Name or folder of the sat model."""
    sat_threshold: Annotated[float, Option("P", least=0, most=1), Kept.APART] = 0.02
    """Probability from which sat ends a sentence."""
    max_characters: Annotated[int, Option("N", least=1)] = 256
    """Longest sentence, in characters."""
    shard_documents: Annotated[int, Option("N", least=1)] = 10_000
    """Documents in a full shard."""
    shard_characters: Annotated[int, Option("N", least=0)] = 0
    """Characters in a full shard (default: a 64th of the input's bytes, from 100,000 to 1,000,000)."""

    def __post_init__(self) -> None:
        check_fields(self)
        self._refuse_idle()
        for name in ("prompt_suffix", "end_of_text"):
            if (mark := getattr(self, name)) is not None and (not mark.strip() or is_length_wish(mark)):
                raise UserError(f"{option_name(name)}={mark}: expected a sentence that no prompt begins with")
        if self.input and self.dataset:
            raise UserError(f"--dataset={self.dataset}: expected either files (--input) or a data set, not both")
        self.columns  # noqa: B018 (raises for a bound that is none)
        self.share  # noqa: B018 (raises for a part that is none)

    def _refuse_idle(self) -> None:
        """Raise UserError for an option that nothing would come of, beside the others."""
        if self.splitter == "nupunkt":
            refuse_idle(self, ("sat_model", "sat_threshold"), "goes with --splitter sat")
        if self.dataset is None:
            refuse_idle(self, ("dataset_config", "dataset_split", "revision", "streaming"), "goes with --dataset")
        else:
            refuse_idle(self, ("file_documents",), "goes with --input")
        if self.pairs:
            refuse_idle(self, ("text_column",), "--pairs have --document-column and --summary-column")
        else:
            pairs = ("document_column", "summary_column", "summary_lang_column", "lengths", "prompt_suffix")
            refuse_idle(self, pairs, "only --pairs have them")

    @property
    def share(self) -> tuple[int, int]:
        """(index of the part, from 0, number of parts)"""
        return share_of(self.part)

    @property
    def recorded(self) -> dict[str, str | int | float | bool]:
        """The options that decide the bytes of the shards, in the form of the manifest; unused ones are left out."""
        hints = get_type_hints(type(self), include_extras=True).items()
        names = [name for name, hint in hints if not any(isinstance(mark, Kept) for mark in get_args(hint))]
        texts = {name: " ".join(v) if isinstance(v := getattr(self, name), tuple) else v for name in names}
        return {name: value for name, value in texts.items() if value not in (None, "")}

    def sized_for(self, total_bytes: int) -> "PrepareOptions":
        """Fill in `shard_characters`: small inputs still give work to several workers, large ones make large shards."""
        return replace(self, shard_characters=self.shard_characters or min(max(total_bytes // 64, 100_000), 1_000_000))

    @property
    def columns(self) -> Columns:
        text, summary = (self.document_column, self.summary_column) if self.pairs else (self.text_column, None)
        return Columns(
            text=text,
            id=self.id_column,
            title=self.title_column,
            split=self.split_column,
            summary=summary,
            lang=self.lang_column,
            summary_lang=self.summary_lang_column,
            audio=self.audio_column,
            drop=(
                *(bound(given, "above") for given in self.drop_above),
                *(bound(given, "below") for given in self.drop_below),
            ),
        )


def share_of(part: str | None) -> tuple[int, int]:
    """(index from 0, number of parts) of --part I/N; None is all. Raises UserError for anything else."""
    number, _, parts = ("1/1" if part is None else part).partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise UserError(f"--part={part}: expected I/N, for example 2/16, with I from 1 to N")
    return int(number) - 1, int(parts)


def devices_for(given: Sequence[str]) -> tuple[str, ...]:
    """Expand --devices: ("cuda",) to all visible GPUs, () to all visible GPUs or else the CPU.

    Raises UserError for a device that is not there, and for GPUs beside the CPU: their vectors differ in the last bits.
    """
    gpus = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    chosen = tuple(device for name in given for device in (gpus if name == "cuda" else (name,))) or gpus or ("cpu",)
    if given and not gpus and "cpu" not in given:
        raise UserError(f"--devices={','.join(given)}: no GPU is visible here; omit the option, or say cpu")
    if unknown := [device for device in chosen if device not in ("cpu", *gpus)]:
        known = ", ".join(("cpu", *gpus))
        raise UserError(f"--devices={','.join(given)}: no device '{unknown[0]}'; expected one or more of {known}")
    if len({kind_of(device) for device in chosen}) > 1:
        raise UserError(f"--devices={','.join(given)}: expected the CPU or GPUs, not both")
    return chosen


def kind_of(device: str) -> str:
    """'cuda' for 'cuda:1'."""
    return device.partition(":")[0]


def workers_for(given: int | None, devices: Sequence[str]) -> int:
    """--workers, or one per GPU, or one per core that this process may use, where the system can tell."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return given or (len(devices) if kind_of(devices[0]) == "cuda" else cores)
