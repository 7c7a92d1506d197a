"""The `lcm generate` command: one text to stdout, or a file of texts to a file of continuations."""

import argparse
import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from lcm.errors import UserError
from lcm.inference.nearest import Bank
from lcm.inference.pipeline import GenerateOptions, Generation, load
from lcm.models import Sampling
from lcm.options import Option, add_options, check_fields, existing_file, options_from, refuse_idle, writable_file
from lcm.prepare import Refused, read_rows
from lcm.sampling import SAMPLING_HELP

CHUNK = 512
"""Texts of a file that are continued together; the output is written after each chunk."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The source of prompts: one of these options."""

    text: Annotated[str | None, Option("TEXT", read=True)] = None
    """Text to continue; prints the continuation only."""
    input: Annotated[str | None, Option("F.jsonl", place=True, read=True)] = None
    """Texts to continue: one {id, text} a line; without an id, the line's number."""

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
    """File for --input: one {id, text, sentences, nearest, similarity, stop} a line (default: stdout)."""
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
    prompts = [("text", source.text)] if source.text is not None else read_prompts(source.input or "")
    lcm = load(command.model, codec=command.codec)
    if command.bank:
        lcm.bank = Bank.from_shards(command.bank, codec=lcm.record.fingerprint)
    if source.text is not None:
        (generation,) = lcm.continue_texts([source.text], options)
        print(as_json("text", generation) if command.json else plain(generation))
        return 0
    with open(command.output, "w", encoding="utf-8") if command.output else nullcontext(sys.stdout) as out:
        for start in range(0, len(prompts), CHUNK):
            batch = prompts[start : start + CHUNK]
            generations = lcm.continue_texts([text for _, text in batch], options)
            for (name, _), generation in zip(batch, generations, strict=True):
                print(as_json(name, generation), file=out)
            out.flush()
            print(f"{start + len(batch)} of {len(prompts)} texts", file=sys.stderr)
    return 0


def read_prompts(path: str | Path) -> list[tuple[str | int, str]]:
    """Read a file of {id, text}; an id stays text or a number, as it was written.

    Raises UserError with the number of the first row that is something else.
    """
    path = existing_file(path, "--input")
    prompts = []
    for number, row in read_rows(path):
        if isinstance(row, Refused):
            raise UserError(f"--input={row.example}: {row.reason}; expected {{id, text}}")
        text, name = row.get("text"), row.get("id", number)
        if not isinstance(text, str) or not text.strip():
            raise UserError(f'--input={path}:{number}: expected {{"id": …, "text": "…"}} with a text that is not empty')
        if not isinstance(name, str | int):
            raise UserError(f"--input={path}:{number}: id={name!r}: expected text or a number")
        prompts.append((name, text))
    if not prompts:
        raise UserError(f"--input={path}: empty; expected one {{id, text}} a line")
    return prompts


def as_json(name: str | int, generation: Generation) -> str:
    row = {
        "id": name,
        "text": generation.text,
        "sentences": generation.sentences,
        "nearest": generation.nearest,
        "similarity": None if generation.similarity is None else [round(s, 4) for s in generation.similarity],
        "stop": generation.stop_reason,
        **({} if generation.roundtrip is None else {"roundtrip": round(generation.roundtrip, 4)}),
    }
    return json.dumps(row, ensure_ascii=False)


def plain(generation: Generation) -> str:
    """Format for a terminal: the text; with decode="both" a sentence a line, the nearest real one under it."""
    if generation.nearest is None or generation.similarity is None or generation.nearest == generation.sentences:
        return generation.text
    rows = zip(generation.sentences, generation.nearest, generation.similarity, strict=True)
    return "\n".join(f"{sentence}\n    nearest {similarity:.2f}: {near}" for sentence, near, similarity in rows)
