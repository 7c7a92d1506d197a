"""What `lcm prepare` can be asked for, and its command line."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch

from lcm.codec import SatSettings, SplitterSettings
from lcm.errors import UserError
from lcm.prepare.inputs import AUDIO, KINDS
from lcm.prepare.rows import Columns, bound
from lcm.prepare.speech import MAX_SECONDS

NOT_DECISIVE = ("input", "output", "workers", "devices", "streaming", "part")
"""Whatever they are, the shards are the same."""
RECORDED_APART = ("splitter", "sat_model", "sat_threshold", "dataset", "dataset_config", "dataset_split", "revision")
"""In the manifest as what was found and used, not as what was asked for."""


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What `lcm prepare` is asked for; each field is an option of the same name."""

    input: tuple[str, ...] = ()
    output: str
    codec: str = "mini"
    workers: int | None = None
    """None: one a GPU, or without any one a processor."""
    devices: tuple[str, ...] = ()
    """Worker i gets device i, modulo their number. Empty: all visible GPUs, else the CPU."""
    compile: bool | None = None
    """The encoder of text: other last bits, and so other data. None, not False, so that manifests without it stay."""
    lang: str = "eng_Latn"
    text_column: str = "text"
    id_column: str = "id"
    title_column: str = "title"
    split_column: str = "split"
    pairs: bool = False
    document_column: str = "document"
    summary_column: str = "summary"
    lang_column: str | None = None
    summary_lang_column: str | None = None
    audio_column: str | None = None
    max_seconds: float | None = None
    speech_encoder: str | None = None
    drop_above: tuple[str, ...] = ()
    drop_below: tuple[str, ...] = ()
    file_documents: bool = False
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_split: str = "train"
    revision: str | None = None
    streaming: bool = True
    splitter: Literal["nupunkt", "sat", "sat-or-nupunkt"] = "nupunkt"
    sat_model: str = "sat-3l"
    sat_threshold: float = 0.02
    max_characters: int = 256
    shard_documents: int = 10_000
    part: str | None = None
    """"2/16": of the shards, which is which in input order, every 16th from the second on. None: all of them."""
    shard_characters: int = 0
    """A shard is full when it has either. 0: a 64th of the input's bytes, at least 100,000 and at most 1,000,000."""

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("max_characters", 1), ("shard_documents", 1), ("shard_characters", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')}={value}: expected {least} or more")
        if self.max_seconds is not None and not 1 <= self.max_seconds <= 60:
            raise UserError(f"--max-seconds={self.max_seconds:g}: expected 1 to 60")
        if not 0 <= self.sat_threshold <= 1:
            raise UserError(f"--sat-threshold={self.sat_threshold}: expected a probability, from 0 to 1")
        if self.summary_lang_column and not self.pairs:
            raise UserError(f"--summary-lang-column={self.summary_lang_column}: only --pairs have summaries")
        if self.input and self.dataset:
            raise UserError(f"--dataset={self.dataset}: expected either files (--input) or a data set, not both")
        self.columns  # noqa: B018 (raises for a bound that is none)
        self.share  # noqa: B018 (raises for a part that is none)

    @property
    def share(self) -> tuple[int, int] | None:
        """(which part from 0, of how many)"""
        if self.part is None:
            return None
        number, _, parts = self.part.partition("/")
        if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
            raise UserError(f"--part={self.part}: expected such as 2/16, from 1/16 to 16/16")
        return int(number) - 1, int(parts)

    @property
    def decisive(self) -> dict[str, str | int | float | bool]:
        """Those that decide what is in the shards. What came later than the format is there where it is used."""
        given = {name: value for name, value in asdict(self).items() if name not in (*NOT_DECISIVE, *RECORDED_APART)}
        texts = {name: " ".join(value) if isinstance(value, tuple) else value for name, value in given.items()}
        return {name: value for name, value in texts.items() if value not in (None, "")}

    def sized_for(self, total_bytes: int) -> "PrepareOptions":
        """With a number for `shard_characters`: small inputs give work to several workers, big ones big shards."""
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

    @property
    def asked_splitter(self) -> SplitterSettings | SatSettings:
        """Before it is known whether SaT can be had."""
        if self.splitter == "nupunkt":
            return SplitterSettings(max_characters=self.max_characters)
        return SatSettings(model=self.sat_model, threshold=self.sat_threshold, max_characters=self.max_characters)


def devices_for(given: Sequence[str]) -> tuple[str, ...]:
    """The devices that `given` means, such as ("cuda:0", "cuda:1") for ("cuda",): all visible GPUs, else the CPU.

    Raises UserError for a device that is not there, and for GPUs beside the CPU: their vectors differ in the last bits.
    """
    gpus = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    found = tuple(device for name in given for device in (gpus if name == "cuda" else (name,))) or gpus or ("cpu",)
    if given and not gpus and "cpu" not in given:
        raise UserError(f"--devices={','.join(given)}: there is no GPU to be seen here; leave it out, or say cpu")
    if unknown := [device for device in found if device not in ("cpu", *gpus)]:
        raise UserError(f"--devices={','.join(given)}: no device '{unknown[0]}'; expected of cpu, {', '.join(gpus)}")
    if len({kind_of(device) for device in found}) > 1:
        raise UserError(f"--devices={','.join(given)}: expected the CPU or GPUs, not both")
    return found


def kind_of(device: str) -> str:
    return device.partition(":")[0]


def workers_for(given: int | None, devices: Sequence[str]) -> int:
    """As many as asked for, else one a GPU or processor."""
    return given or (len(devices) if kind_of(devices[0]) == "cuda" else processors())


def processors() -> int:
    """Those that this process may use, where the system can tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lcm prepare`. Those not given are left to PrepareOptions."""
    add, default = parser.add_argument, PrepareOptions
    add("--input", nargs="+", metavar="F", help=f"files ({KINDS}; {', '.join(AUDIO)}), folders, globs")
    add("--output", required=True, metavar="DIR", help="folder of the data set: new, or one to go on with")
    add("--codec", metavar="NAME", help=f"'mini', 'sonar' or a codec's folder (default: {default.codec})")
    add("--part", metavar="I/N", help="of the shards, such as 2/16; whichever part is done last completes the data set")
    add("--workers", type=int, metavar="N", help="processes (default: one a GPU, else one a processor)")
    add("--devices", metavar="D,…", help="cpu, cuda or cuda:0,cuda:1, dealt out to workers (default: all GPUs)")
    add("--compile", action="store_true", default=None, help="the encoder, once a process: for big corpora")
    add("--lang", metavar="CODE", help=f"FLORES code of the text's language (default: {default.lang})")
    add("--text-column", metavar="C", help=f"of .jsonl and .parquet (default: {default.text_column})")
    add("--id-column", metavar="C", help=f"default: {default.id_column}; rows without one get FILE:ROW")
    add("--title-column", metavar="C", help=f"default: {default.title_column}")
    add("--split-column", metavar="C", help=f"train, validation or test (default: {default.split_column}; else by id)")
    add("--pairs", action="store_true", default=None, help="each row is a document and its summary")
    add("--document-column", metavar="C", help=f"of pairs (default: {default.document_column})")
    add("--summary-column", metavar="C", help=f"of pairs (default: {default.summary_column})")
    add("--lang-column", metavar="C", help="FLORES code of each row's language, instead of --lang")
    add("--summary-lang-column", metavar="C", help="of its summary's, where that is another one")
    add("--drop-above", action="append", metavar="C=X", help="refuse rows with more than X in column C; repeatable")
    add("--drop-below", action="append", metavar="C=X", help="refuse rows with less than X in column C; repeatable")
    add(
        "--audio-column",
        metavar="C",
        help="path, or list of paths, of 16 kHz mono audio that is read instead of a text",
    )
    add(
        "--max-seconds",
        type=float,
        metavar="X",
        help=f"of audio in a concept; cut at pauses (default: {MAX_SECONDS:g})",
    )
    add("--speech-encoder", metavar="CARD", help="of sonar-space (default: sonar_speech_encoder_LANG)")
    add("--file-documents", action="store_true", default=None, help=".txt: each file is one document")
    add("--dataset", metavar="NAME", help="a Hugging Face data set, by name or folder, instead of --input")
    add("--dataset-config", metavar="C", help="its configuration, where it has several")
    add("--dataset-split", metavar="S", help=f"the part of it that is read (default: {default.dataset_split})")
    add("--revision", metavar="R", help="branch, tag or commit on the hub (default: the newest)")
    add("--no-streaming", dest="streaming", action="store_false", default=None, help="download all of it before")
    add("--splitter", choices=("nupunkt", "sat", "sat-or-nupunkt"),
        help="sat: the boundary model of the paper (§2.2), which also removes emojis; sat-or-nupunkt: nupunkt, with a "
        f"line on stderr, where sat cannot be had (default: {default.splitter})")  # fmt: skip
    add("--sat-model", metavar="M", help=f"sat's name, or a folder (default: {default.sat_model})")
    add("--sat-threshold", type=float, metavar="P", help=f"of a boundary's probability ({default.sat_threshold})")
    add("--max-characters", type=int, metavar="N", help=f"longest sentence (default: {default.max_characters})")
    add("--shard-documents", type=int, metavar="N", help=f"documents a shard (default: {default.shard_documents:,})")
    add("--shard-characters", type=int, metavar="N", help="characters a shard (default: by the input's size)")


def options_from(args: argparse.Namespace) -> PrepareOptions:
    """The options that were given on the command line."""
    given: dict[str, Any] = {f.name: getattr(args, f.name) for f in fields(PrepareOptions)}
    if given["devices"] is not None:
        given["devices"] = [name.strip() for name in given["devices"].split(",") if name.strip()]
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return PrepareOptions(**{name: value for name, value in values.items() if value is not None})
