"""Judge a codec on sentences it has not seen: a page to read, results.json, and a row a sentence.

    python data_prep/codec_report.py --codec mini --input heldout.txt --output report

Inputs are .txt, .jsonl, .tsv and .parquet with a sentence a line or row. `--compare` puts the results.json of other
reports beside this one's. sentences.parquet has each sentence's fragility, by which data can be filtered.
"""

import argparse
import sys

from lcm.cli import run_command
from lcm.codec import load_codec
from lcm.codec_lab.judging import ReportOptions, judge
from lcm.codec_lab.sentences import load_public_encoder, read_sentences
from lcm.codec_lab.writing import headline, read_results, systems_of, write
from lcm.evaluation import output_folder
from lcm.options import add_options, options_from


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="judge a codec on sentences it has not seen")
    parser.add_argument("--codec", default="mini", metavar="NAME|DIR", help="(%(default)s)")
    parser.add_argument("--input", required=True, nargs="+", metavar="F", help="a sentence a line or row")
    parser.add_argument("--output", required=True, metavar="DIR", help="results.json, report.html, sentences.parquet")
    parser.add_argument("--text-column", metavar="C", help="name, or number in .tsv (text; the last in .tsv)")
    parser.add_argument("--lang-column", default="lang", metavar="C", help="(%(default)s)")
    parser.add_argument("--lang", default="eng_Latn", metavar="CODE", help="of rows without one (%(default)s)")
    add_options(parser, ReportOptions, skip=("noise",))
    parser.add_argument(
        "--noise",
        type=float,
        nargs="*",
        default=argparse.SUPPRESS,
        metavar="X",
        help="multiples of each channel's σ; without a value, none (default: 0.1 0.2 0.3 0.5 1)",
    )
    parser.add_argument("--public-encoder", metavar="DIR", help="a sentence-transformers model (all-MiniLM-L6-v2)")
    parser.add_argument("--no-public-encoder", action="store_true", help="leave out what needs it")
    parser.add_argument("--compare", nargs="+", default=(), metavar="F", help="results.json of other reports")
    return parser


def report(args: argparse.Namespace) -> int:
    """Judge as `arguments` says; the table goes to stdout, the place of the page to stderr."""
    options = options_from(args, ReportOptions)
    others = [read_results(path) for path in args.compare]
    output = output_folder(args.output)
    sentences = read_sentences(args.input, text_column=args.text_column, lang_column=args.lang_column, lang=args.lang)
    codec = load_codec(args.codec)
    public = None if args.no_public_encoder else load_public_encoder(args.public_encoder)
    judged = judge(codec, sentences, options, public)
    write(judged, output, others)
    print(headline(systems_of(judged.results, others)))
    print(output / "report.html", file=sys.stderr)
    return 0


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    return run_command("codec_report", lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
