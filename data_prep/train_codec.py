"""Train a codec, new or existing: YAML and text files → a folder for `load_codec`.

    python data_prep/train_codec.py --config configs/codec/mini.yaml [--data.text FILES] [--SETTING VALUE …]

The same command resumes an interrupted run.
"""

import argparse
import sys
from dataclasses import dataclass
from typing import Annotated

from lcm.cli import run_command, starting

with starting("train_codec"):
    from lcm.codec_lab.settings import CodecTraining
    from lcm.codec_lab.training import ablate, dry_run_codec, train_codec
    from lcm.options import Option, add_options, check_fields, options_from, refuse_idle


@dataclass(frozen=True, kw_only=True)
class Options:
    dry_run: bool = False
    """Read everything, train one step, write nothing."""
    ablation: Annotated[int, Option("STEPS", least=0)] = 0
    """Train STEPS steps with each term switched, print one table."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.dry_run:
            refuse_idle(self, ("ablation",), "not with --dry-run; give one of them")


def train(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_options(parser, Options)
    args, settings = CodecTraining.from_command_line(parser, argv)
    options = options_from(args, Options)
    if options.dry_run:
        dry_run_codec(settings)
    elif options.ablation:
        print(ablate(settings, options.ablation))
    else:
        print(train_codec(settings))
    return 0


def main(argv: list[str] | None = None) -> int:
    interrupted = "interrupted; the same command goes on from the last checkpoint"
    return run_command("train_codec", lambda: train(argv), interrupted)


if __name__ == "__main__":
    sys.exit(main())
