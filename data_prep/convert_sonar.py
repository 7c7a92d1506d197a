"""Official SONAR checkpoints on the disk → a codec's folder, for machines without a network.

python data_prep/convert_sonar.py --encoder sonar_text_encoder.pt --decoder sonar_text_decoder.pt \\
    --vocabulary sentencepiece.source.256000.model --output FOLDER        then: lcm encode --codec FOLDER
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from lcm.cli import run_command, starting

with starting("convert_sonar"):
    import torch

    from lcm.codec import LANGUAGES, convert
    from lcm.files import disk_errors, read_text
    from lcm.options import Option, add_options, check_fields, existing_file, options_from

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Options:
    encoder: Annotated[str, Option("F.pt", place=True, read=True)]
    """Checkpoint of the text encoder."""
    decoder: Annotated[str, Option("F.pt", place=True, read=True)]
    """Checkpoint of a text decoder."""
    vocabulary: Annotated[str, Option("F.model", place=True, read=True)]
    """SentencePiece model of both."""
    output: Annotated[str, Option("DIR", place=True)]
    """Folder of the codec, made here."""
    languages: Annotated[str | None, Option("F.txt", place=True, read=True)] = None
    """Codes by their tokens' order (default: SONAR's 202)."""
    heads: Annotated[int, Option(least=1)] = 16
    """Heads of every attention (default: 16, SONAR's)."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision on the disk."""

    def __post_init__(self) -> None:
        check_fields(self)


def convert_files(options: Options) -> int:
    encoder, decoder = existing_file(options.encoder, "--encoder"), existing_file(options.decoder, "--decoder")
    vocabulary = existing_file(options.vocabulary, "--vocabulary")
    languages = existing_file(options.languages, "--languages") if options.languages else LANGUAGES
    codes = read_text(languages, "--languages").split()
    folder, dtype = Path(options.output), PRECISIONS[options.precision]
    with disk_errors(folder):
        convert(encoder, decoder, vocabulary, codes, folder, heads=options.heads, dtype=dtype)
    print(folder)
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_options(parser, Options)
    return run_command("convert_sonar", lambda: convert_files(options_from(parser.parse_args(argv), Options)))


if __name__ == "__main__":
    sys.exit(main())
