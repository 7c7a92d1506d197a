"""Judge a codec on sentences it has not seen: a page to read, results.json, and a row a sentence.

    python data_prep/codec_report.py --codec mini --input heldout.txt --output report

Inputs are .txt, .jsonl, .tsv and .parquet with a sentence a line or row. `--compare` puts the results.json of other
reports beside this one's. sentences.parquet has each sentence's fragility, by which data can be filtered.
"""

import argparse
import sys
from dataclasses import dataclass
from typing import Annotated

from lcm.cli import run_command, starting

with starting("codec_report"):
    from lcm.codec import load_codec
    from lcm.codec_lab.judging import ReportOptions, judge
    from lcm.codec_lab.sentences import load_public_encoder, read_sentences
    from lcm.codec_lab.writing import headline, read_results, systems_of, write
    from lcm.evaluation import output_folder
    from lcm.options import Option, add_options, check_fields, options_from, refuse_idle


@dataclass(frozen=True, kw_only=True)
class Options:
    codec: Annotated[str, Option("NAME|DIR", place=True, read=True)] = "mini"
    """The codec to judge."""
    input: Annotated[tuple[str, ...], Option("F", place=True)]
    """Files with a sentence a line or row."""
    output: Annotated[str, Option("DIR", place=True)]
    """Folder of results.json, report.html, sentences.parquet."""
    text_column: Annotated[str | None, Option("C")] = None
    """Name, or number in .tsv (default: text; the last in .tsv)."""
    lang_column: Annotated[str, Option("C")] = "lang"
    """Column with the language."""
    lang: Annotated[str, Option("CODE")] = "eng_Latn"
    """Language of rows without one."""
    public_encoder: Annotated[str | None, Option("DIR", place=True, read=True)] = None
    """A sentence-transformers model (default: all-MiniLM-L6-v2)."""
    no_public_encoder: bool = False
    """Leave out what needs it."""
    compare: Annotated[tuple[str, ...], Option("F", place=True)] = ()
    """Other reports' results.json, to put beside this one's."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.no_public_encoder:
            refuse_idle(self, ("public_encoder",), "not with --no-public-encoder")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="judge a codec on sentences it has not seen", allow_abbrev=False)
    add_options(parser, Options)
    add_options(parser, ReportOptions, skip=("noise",))
    parser.add_argument(
        "--noise",
        type=float,
        nargs="*",
        action="extend",
        default=argparse.SUPPRESS,
        metavar="X",
        help="multiples of each channel's σ; without a value, none (default: 0.1 0.2 0.3 0.5 1)",
    )
    return parser


def report(args: argparse.Namespace) -> int:
    """Judge as `arguments` says; the table goes to stdout, the place of the page to stderr."""
    asked, options = options_from(args, Options), options_from(args, ReportOptions)
    others = [read_results(path) for path in asked.compare]
    columns = {"text_column": asked.text_column, "lang_column": asked.lang_column, "lang": asked.lang}
    sentences = read_sentences(asked.input, **columns)
    codec = load_codec(asked.codec)
    public = None if asked.no_public_encoder else load_public_encoder(asked.public_encoder)
    output = output_folder(asked.output)
    judged = judge(codec, sentences, options, public)
    write(judged, output, others)
    print(headline(systems_of(judged.results, others)))
    print(output / "report.html", file=sys.stderr)
    return 0


def main(argv: list[str] | None = None) -> int:
    return run_command("codec_report", lambda: report(arguments().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
