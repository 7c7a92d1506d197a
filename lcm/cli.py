"""The `lcm` command: a command's name, then its own options. Each command imports only what it needs.

Exit status: 0 success · 1 an error that the user can fix, in one line · 2 wrong usage · 130 interrupted.
"""

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from lcm import __version__
from lcm.errors import UserError

COMMANDS = {
    "doctor": "what is installed, what works, what to run to fix it",
    "prepare": "text files → sentences → vectors → shards",
    "verify": "check a data set's shards against its manifest",
    "plan": "can a training run fit, and how long does it take? without a GPU",
    "train": "train a concept model from a YAML file",
    "generate": "continue a text, or answer it",
    "evaluate": "score a model; writes results.json and report.html",
    "encode": "one sentence a line → .npy of vectors",
    "decode": ".npy of vectors → one sentence a line",
    "export": "a training checkpoint → model.safetensors and config.yaml",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. An error that the user can fix is one line, without a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print("usage: lcm COMMAND [options]        (lcm COMMAND --help lists them)\n")
        for name, summary in COMMANDS.items():
            print(f"  {name:10}{summary}")
        return 0 if words else 2
    if words[0] == "--version":
        print(__version__)
        return 0
    return run_command(f"lcm {words[0]}", lambda: _run(words[0], words[1:]))


def run_command(program: str, work: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Run `work` and return its exit status. A user's mistake ends in one line on stderr, never in a traceback.

    1 for a UserError · 130 for Ctrl-C, with `interrupted` as the line
    """
    try:
        return work()
    except UserError as error:
        for line in str(error).splitlines():
            print(f"{program}: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: {interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has ended: not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(name: str, rest: list[str]) -> int:
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]
    match name:
        case "train":
            from lcm.training.signals import listen

            listen()  # before torch is imported, which takes seconds
            from lcm.training.run import main as train

            return train(rest)
        case "plan":
            from lcm.plan.command import main as plan

            return plan(rest)
        case "doctor":
            from lcm.doctor import add_arguments, run
        case "prepare":
            from lcm.prepare.command import add_arguments, run
        case "verify":
            from lcm.data.verify import add_arguments, run
        case "generate":
            from lcm.inference.command import add_arguments, run
        case "evaluate":
            from lcm.evaluation.command import add_arguments, run
        case "encode":
            add_arguments, run = _encode_arguments, _encode
        case "decode":
            add_arguments, run = _decode_arguments, _decode
        case "export":
            from lcm.training.checkpoint import add_arguments, run
        case _:
            raise UserError(f"no such command; one of: {', '.join(COMMANDS)}")
    parser = ArgumentParser(prog=f"lcm {name}", description=COMMANDS[name], allow_abbrev=False)
    add_arguments(parser)
    return run(parser.parse_args(rest))


def _encode_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--input", required=True, metavar="F.txt", help="UTF-8 text, one sentence a line")
    parser.add_argument("--output", required=True, metavar="F.npy", help="(lines, dim) float32")
    parser.add_argument("--compile", action="store_true", help="compile the encoder first: for many sentences")
    _codec_arguments(parser)


def _encode(args: Namespace) -> int:
    import numpy as np

    from lcm.codec import load_codec
    from lcm.options import existing_file

    try:
        sentences = existing_file(args.input, "--input").read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--input={args.input}: not UTF-8 at byte {error.start}; convert it first") from error
    if not sentences:
        raise UserError(f"--input={args.input}: empty; expected one sentence a line")
    output = _writable(args.output)
    vectors = load_codec(args.codec, compile_encoder=args.compile).encode(sentences, lang=args.lang)
    # Through an open file, because numpy adds ".npy" to a name that lacks it.
    with output.open("wb") as file:
        np.save(file, vectors.numpy())
    print(json.dumps({"sentences": len(sentences), "dim": vectors.shape[1], "output": args.output}))
    return 0


def _decode_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--input", required=True, metavar="F.npy", help="(n, dim) vectors")
    parser.add_argument("--output", metavar="F.txt", help="one sentence a line (default: stdout)")
    parser.add_argument("--beam", type=int, default=1, metavar="N", help="1 is greedy (default: 1)")
    _codec_arguments(parser)


def _decode(args: Namespace) -> int:
    import numpy as np
    import torch

    from lcm.codec import load_codec
    from lcm.options import existing_file

    path = existing_file(args.input, "--input")
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"--input={path}: not a .npy file of numbers") from error
    output = _writable(args.output) if args.output else None
    codec = load_codec(args.codec)
    if vectors.ndim != 2 or vectors.shape[1] != codec.dim:
        raise UserError(f"--input={path}: shape {vectors.shape}, expected (n, {codec.dim}) for codec '{args.codec}'")
    text = "".join(s + "\n" for s in codec.decode(torch.from_numpy(vectors).float(), lang=args.lang, beam=args.beam))
    if output:
        output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def _codec_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--codec", default="mini", help="'mini', 'sonar', or a codec's folder (default: mini)")
    parser.add_argument("--lang", default="eng_Latn", help="FLORES code of the language (default: eng_Latn)")


def _writable(path: str) -> Path:
    if not Path(path).absolute().parent.is_dir():
        raise UserError(f"--output={path}: its folder does not exist")
    return Path(path)


if __name__ == "__main__":
    sys.exit(main())
