"""The `lcm generate` command: one text to stdout, or a file of texts to a file of continuations."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcm.errors import UserError, existing_file
from lcm.inference.nearest import Bank
from lcm.inference.pipeline import LCM, Generation, load
from lcm.inference.sampling import add_sampling_arguments, sampling_of

CHUNK = 512
"""Texts of a file that are continued and written together."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a run's folder, or one written by lcm export")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="what to continue; prints the continuation only")
    source.add_argument("--input", metavar="F.jsonl", help="one {id, text} a line; without an id, the line's number")
    parser.add_argument("--output", metavar="F.jsonl", help="{id, text, sentences, nearest, similarity, stop} (stdout)")
    parser.add_argument("--max-sentences", type=int, metavar="N", help="(16, or half of the model's slots)")
    parser.add_argument("--min-sentences", type=int, default=1, metavar="N", help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything that is drawn (%(default)s)")
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="draw N, keep the best (%(default)s)")
    parser.add_argument(
        "--decode",
        choices=("codec", "nearest", "both"),
        default="codec",
        help="codec: what the decoder says; nearest: the closest real sentence of a bank (%(default)s)",
    )
    parser.add_argument("--bank", nargs="+", metavar="DIR", help="prepared folders for nearest (the training shards)")
    parser.add_argument(
        "--beam", type=int, default=1, metavar="N", help="beams of the decoder; 1 is greedy (%(default)s)"
    )
    parser.add_argument(
        "--task",
        choices=("continue", "answer"),
        help="answer: as after the documents of the pairs that it was trained on (the model's default)",
    )
    parser.add_argument("--codec", metavar="NAME", help="another with the same encoder, such as sonar-finetuned")
    parser.add_argument("--lang", metavar="CODE", help="FLORES code of the text (the training data's)")
    parser.add_argument("--output-lang", metavar="CODE", help="of the continuation (the text's)")
    parser.add_argument("--json", action="store_true", help="with --text: one JSON object instead of plain text")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    _check(args)
    prompts = read_prompts(args.input) if args.input else [Prompt(id="text", text=args.text)]
    lcm = load(args.model, codec=args.codec)
    if args.bank:
        lcm.bank = Bank.from_shards(args.bank, codec=lcm.record.fingerprint)
    if args.text is not None:
        (generation,) = _generate(lcm, prompts, args)
        print(json.dumps(as_row(prompts[0], generation), ensure_ascii=False) if args.json else plain(generation))
        return 0
    with open(args.output, "w", encoding="utf-8") if args.output else nullcontext(sys.stdout) as out:
        for start in range(0, len(prompts), CHUNK):
            batch = prompts[start : start + CHUNK]
            for prompt, generation in zip(batch, _generate(lcm, batch, args), strict=True):
                print(json.dumps(as_row(prompt, generation), ensure_ascii=False), file=out)
            out.flush()
            print(f"{start + len(batch)} of {len(prompts)} texts", file=sys.stderr)
    return 0


@dataclass(frozen=True)
class Prompt:
    """A row of the input file. An id is kept as it was written: text or number."""

    id: str | int
    text: str


def read_prompts(path: str | Path) -> list[Prompt]:
    """Every line of a .jsonl file. Raises UserError with the line's number where one is not {id, text}."""
    path = existing_file(path, "--input")
    prompts = [_prompt(f"{path}:{number}", number, line) for number, line in _lines(path)]
    if not prompts:
        raise UserError(f"--input={path}: empty; expected one {{id, text}} a line")
    return prompts


def as_row(prompt: Prompt, generation: Generation) -> dict[str, Any]:
    """The output file's line for one prompt."""
    return {
        "id": prompt.id,
        "text": generation.text,
        "sentences": generation.sentences,
        "nearest": generation.nearest,
        "similarity": None if generation.similarity is None else [round(s, 4) for s in generation.similarity],
        "stop": generation.stop_reason,
        **({} if generation.roundtrip is None else {"roundtrip": round(generation.roundtrip, 4)}),
    }


def plain(generation: Generation) -> str:
    """The continuation; with decode="both" a line a sentence, and the nearest real one under it."""
    if generation.nearest is None or generation.similarity is None or generation.nearest == generation.sentences:
        return generation.text
    rows = zip(generation.sentences, generation.nearest, generation.similarity, strict=True)
    return "\n".join(f"{sentence}\n    nearest {similarity:.2f}: {near}" for sentence, near, similarity in rows)


def _generate(lcm: LCM, prompts: Sequence[Prompt], args: argparse.Namespace) -> list[Generation]:
    return lcm.generate_many(
        [prompt.text for prompt in prompts],
        max_sentences=args.max_sentences,
        min_sentences=args.min_sentences,
        sampling=sampling_of(args),
        samples=args.samples,
        decode=args.decode,
        beam=args.beam,
        task=args.task,
        lang=args.lang,
        output_lang=args.output_lang,
    )


def _check(args: argparse.Namespace) -> None:
    """What can be told before a model is loaded."""
    sampling_of(args)
    for name, least in (("max_sentences", 1), ("min_sentences", 0), ("seed", 0), ("samples", 1), ("beam", 1)):
        value = getattr(args, name)
        if value is not None and not value >= least:
            raise UserError(f"--{name.replace('_', '-')}={value}: expected {least} or more")
    if args.text is not None and not args.text.strip():
        raise UserError("--text is empty; expected at least one sentence")
    if args.text is not None and args.output:
        raise UserError(f"--output={args.output} goes with --input; the continuation of --text is printed")
    if args.output and not Path(args.output).absolute().parent.is_dir():
        raise UserError(f"--output={args.output}: its folder does not exist")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"--input={path}: not UTF-8; convert it first") from error


def _prompt(where: str, number: int, line: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error.msg}); expected {{id, text}}") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{where}: expected {{"id": …, "text": "…"}} with a text that is not empty')
    name = row.get("id", number)
    if not isinstance(name, str | int):
        raise UserError(f"{where}: id={name!r}: expected text or a number")
    return Prompt(id=name, text=text)
