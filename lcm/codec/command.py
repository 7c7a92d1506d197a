"""The commands `lcm encode` and `lcm decode`: sentences, one a line, to vectors in a .npy, and back."""

import json
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from lcm.codec.codec import load_codec
from lcm.errors import UserError
from lcm.files import atomic_result, write_result
from lcm.options import Option, add_options, check_fields, existing_file, options_from, writable_file
from lcm.streams import read_lines


@dataclass(frozen=True, kw_only=True)
class CodecOptions:
    codec: Annotated[str, Option("NAME|DIR", place=True, read=True)] = "mini"
    """'mini', 'sonar', or a codec's folder."""
    lang: Annotated[str, Option("CODE")] = "eng_Latn"
    """FLORES code of the language."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class EncodeOptions(CodecOptions):
    input: Annotated[str, Option("F.txt", place=True, read=True)]
    """UTF-8 text, one sentence a line."""
    output: Annotated[str, Option("F.npy", place=True)]
    """(lines, dim) float32."""
    compile: bool = False
    """Compile the encoder first: for many sentences."""


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(CodecOptions):
    input: Annotated[str, Option("F.npy", place=True, read=True)]
    """(n, dim) vectors."""
    output: Annotated[str | None, Option("F.txt", place=True)] = None
    """One sentence a line (default: stdout)."""
    beam: Annotated[int, Option(least=1)] = 1
    """Beams of the decoder; 1 is greedy."""


def add_encode_arguments(parser: ArgumentParser) -> None:
    add_options(parser, EncodeOptions)


def encode(args: Namespace) -> int:
    options = options_from(args, EncodeOptions)
    sentences = list(read_lines(existing_file(options.input, "--input"), "--input"))
    if not sentences:
        raise UserError(f"--input={options.input}: empty; expected one sentence a line")
    output = writable_file(options.output)
    vectors = load_codec(options.codec, compile_encoder=options.compile).encode(sentences, lang=options.lang)
    # Through an open file, because numpy adds ".npy" to a name that lacks it.
    with atomic_result(output) as part, part.open("wb") as file:
        np.save(file, vectors.numpy())
    print(json.dumps({"sentences": len(sentences), "dim": vectors.shape[1], "output": options.output}))
    return 0


def add_decode_arguments(parser: ArgumentParser) -> None:
    add_options(parser, DecodeOptions)


def decode(args: Namespace) -> int:
    options = options_from(args, DecodeOptions)
    vectors = read_vectors(existing_file(options.input, "--input"))
    output = None if options.output is None else writable_file(options.output)
    codec = load_codec(options.codec)
    if vectors.ndim != 2 or vectors.shape[1] != codec.dim:
        shape = f"shape {vectors.shape}, expected (n, {codec.dim}) for codec '{options.codec}'"
        raise UserError(f"--input={options.input}: {shape}")
    sentences = codec.decode(torch.from_numpy(vectors).float(), lang=options.lang, beam=options.beam)
    text = "".join(sentence + "\n" for sentence in sentences)
    if output:
        write_result(output, text)
    else:
        sys.stdout.write(text)
    return 0


def read_vectors(path: Path) -> Any:
    """The array of a .npy file. Raises UserError for anything that is not one array of numbers."""
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"--input={path}: not a .npy file of numbers") from error
    if not isinstance(vectors, np.ndarray):
        raise UserError(f"--input={path}: an .npz archive of several arrays; expected a .npy file of one")
    if vectors.dtype.kind not in "fiu":
        raise UserError(f"--input={path}: not a .npy file of numbers: it holds {vectors.dtype}")
    if len(bad := np.argwhere(~np.isfinite(vectors))):
        raise UserError(f"--input={path}: not finite at {bad[0].tolist()}; expected numbers")
    return vectors
