"""Train a codec, new or existing: YAML and text files → a folder for `load_codec`.

    python data_prep/train_codec.py --config configs/codec/mini.yaml [--data.text FILES] [--SETTING VALUE …]

The same command resumes an interrupted run.
"""

import argparse
import sys

from lcm.cli import run_command
from lcm.codec_lab.settings import CodecTraining
from lcm.codec_lab.training import ablate, dry_run_codec, train_codec


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a YAML file, such as configs/codec/mini.yaml")
    parser.add_argument("--dry-run", action="store_true", help="read everything, train one step, write nothing")
    parser.add_argument(
        "--ablation",
        type=int,
        default=0,
        metavar="STEPS",
        help="train STEPS steps with each term switched, print one table",
    )
    args, overrides = parser.parse_known_args(argv)
    interrupted = "interrupted; the same command goes on from the last checkpoint"
    return run_command("train_codec", lambda: train(args, overrides), interrupted)


def train(args: argparse.Namespace, overrides: list[str]) -> int:
    settings = CodecTraining.load(args.config, overrides)
    if args.dry_run:
        dry_run_codec(settings)
    elif args.ablation:
        print(ablate(settings, args.ablation))
    else:
        print(train_codec(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
