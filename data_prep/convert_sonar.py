"""Official SONAR checkpoints on the disk → a codec's folder, for machines without a network.

python data_prep/convert_sonar.py --encoder sonar_text_encoder.pt --decoder sonar_text_decoder.pt \\
    --vocabulary sentencepiece.source.256000.model --output FOLDER        then: lcm encode --codec FOLDER
"""

import argparse
import sys
from pathlib import Path

import torch

from lcm.cli import run_command
from lcm.codec import LANGUAGES, convert
from lcm.files import disk_errors
from lcm.options import existing_file

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, metavar="F.pt", help="checkpoint of the text encoder")
    parser.add_argument("--decoder", required=True, metavar="F.pt", help="checkpoint of a text decoder")
    parser.add_argument("--vocabulary", required=True, metavar="F.model", help="SentencePiece model of both")
    parser.add_argument("--output", required=True, metavar="DIR", help="the codec's folder, made here")
    parser.add_argument("--languages", metavar="F.txt", help="codes by their tokens' order (default: SONAR's 202)")
    parser.add_argument("--heads", type=int, default=16, metavar="N", help="of every attention (default: 16, SONAR's)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="on the disk (default: float32)")
    args = parser.parse_args(argv)
    return run_command("convert_sonar", lambda: convert_files(args))


def convert_files(args: argparse.Namespace) -> int:
    encoder, decoder = existing_file(args.encoder, "--encoder"), existing_file(args.decoder, "--decoder")
    vocabulary = existing_file(args.vocabulary, "--vocabulary")
    languages = existing_file(args.languages, "--languages") if args.languages else LANGUAGES
    codes = languages.read_text(encoding="utf-8").split()
    folder, dtype = Path(args.output), PRECISIONS[args.precision]
    with disk_errors(folder):
        convert(encoder, decoder, vocabulary, codes, folder, heads=args.heads, dtype=dtype)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
