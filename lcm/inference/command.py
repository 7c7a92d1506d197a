"""The `lcm generate` command: one text to stdout, or a file of texts to a file of continuations."""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from lcm.errors import UserError
from lcm.inference.many import Many, as_row
from lcm.inference.nearest import Bank
from lcm.inference.options import GenerateOptions
from lcm.inference.pipeline import load
from lcm.inference.rows import check_languages, read_input
from lcm.inference.texts import Generation
from lcm.models import Sampling
from lcm.options import Option, add_options, check_fields, options_from, refuse_idle, writable_file
from lcm.prepare import share_of
from lcm.sampling import SAMPLING_HELP


@dataclass(frozen=True, kw_only=True)
class Source:
    """The source of prompts: one of these options."""

    text: Annotated[str | None, Option("TEXT", read=True)] = None
    """Text to continue; prints the continuation only."""
    input: Annotated[str | None, Option("F.jsonl", place=True, read=True)] = None
    """Texts to continue: one {text} a line, with id (default: the line's number), and lang and output_lang where they
    differ from line to line."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.text is not None and not self.text.strip():
            raise UserError("--text is empty; expected at least one sentence")


@dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """The options of `lcm generate` besides `Source`, `GenerateOptions` and `Sampling`."""

    model: Annotated[str, Option("DIR", place=True, read=True)]
    """A run's folder, one written by lcm export, or the name of a packaged model: tales."""
    output: Annotated[str | None, Option("F.jsonl", place=True)] = None
    """File for --input: one {id, text, sentences, nearest, similarity, stop} a line (default: stdout). Run the command
    again where it was interrupted, and it resumes."""
    part: Annotated[str | None, Option("I/N")] = None
    """Continue every N-th unit of the input, from the I-th on, for example 2/16; the part that ends last writes
    --output."""
    bank: Annotated[tuple[str, ...], Option("DIR", place=True)] = ()
    """Prepared folders whose sentences --decode nearest chooses among (default: the training shards)."""
    codec: Annotated[str | None, Option("NAME", place=True, read=True)] = None
    """Another codec with the same encoder, such as sonar-finetuned."""
    json: bool = False
    """With --text: one JSON object instead of plain text."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.output is not None:
            writable_file(self.output)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, CommandOptions)
    add_options(parser.add_mutually_exclusive_group(required=True), Source)
    add_options(parser, GenerateOptions, skip=["sampling"])
    sampling = parser.add_argument_group("sampling", SAMPLING_HELP)
    add_options(sampling, Sampling)


def run(args: argparse.Namespace) -> int:
    source, command = options_from(args, Source), options_from(args, CommandOptions)
    options = replace(options_from(args, GenerateOptions), sampling=options_from(args, Sampling))
    if source.text is not None and command.output:
        raise UserError(f"--output={command.output} goes with --input; the continuation of --text is printed")
    if source.input is not None:
        refuse_idle(command, ("json",), "goes with --text; --input gives JSON lines anyway")
    if options.decode == "codec":
        refuse_idle(command, ("bank",), "is read by --decode nearest and both; add one of them")
    if command.part and not command.output:
        raise UserError(f"--part={command.part}: goes with --output, where the parts meet")
    given = read_input(source.input) if source.input is not None else None
    lcm = load(command.model, codec=command.codec)
    if command.bank:
        lcm.bank = Bank.from_shards(command.bank, codec=lcm.record.fingerprint)
    if given is None:
        (generation,) = lcm.continue_texts([source.text or ""], options)
        print(as_json("text", generation) if command.json else plain(generation))
        return 0
    many = Many(lcm, check_languages(lcm, given), options)
    if command.output is None or _is_stream(command.output):
        return many.stream(command.output)
    return many.write(Path(command.output), share_of(command.part), command.bank)


def _is_stream(output: str) -> bool:
    """True for a pipe or a device: what is written there cannot be resumed."""
    return Path(output).exists() and not Path(output).is_file()


def as_json(name: str | int, generation: Generation) -> str:
    return json.dumps(as_row(name, generation), ensure_ascii=False)


def plain(generation: Generation) -> str:
    """Format for a terminal: the text; with decode="both" a sentence a line, the nearest real one under it."""
    if generation.nearest is None or generation.similarity is None or generation.nearest == generation.sentences:
        return generation.text
    rows = zip(generation.sentences, generation.nearest, generation.similarity, strict=True)
    return "\n".join(f"{sentence}\n    nearest {similarity:.2f}: {near}" for sentence, near, similarity in rows)
