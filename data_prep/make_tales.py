"""Write stories whose truth is known, as text to prepare: documents, and pairs of a story and its gist.

    python data_prep/make_tales.py --level errand --documents 12000 --seed 1 --output tales/

documents.jsonl has {id, text, split}, pairs.jsonl {id, document, summary, split}. The same seed gives the same bytes,
and the same stories in every language. Stories whose first sentence combines certain words are validation and test:
these combinations are never in training.
"""

import argparse
import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Literal

from lcm.cli import run_command, starting

with starting("make_tales"):
    from lcm.data.manifest import local_folder
    from lcm.errors import UserError
    from lcm.files import atomic, disk_errors
    from lcm.options import Option, add_options, check_fields, options_from
    from lcm.tales import LEVELS, Language, tales


@dataclass(frozen=True, kw_only=True)
class Options:
    level: Literal["errand", "inventory", "friends", "promise"] = "errand"
    """Level of the stories (docs/tales.md)."""
    documents: Annotated[int, Option("N", least=1)] = 12000
    """Stories, of all splits."""
    language: Language = "eng_Latn"
    """Language of the stories."""
    seed: Annotated[int, Option("N", least=0)] = 0
    """Another seed, other stories."""
    gist: Literal["one", "three", "expand"] = "one"
    """Pairs of a story with its gist of one sentence, of three, or of a gist of three with its story."""
    output: Annotated[str, Option("DIR", place=True)]
    """Folder of documents.jsonl and pairs.jsonl, which are replaced."""

    def __post_init__(self) -> None:
        check_fields(self)


def make(options: Options) -> int:
    folder = local_folder(options.output, "--output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={folder}: {error.strerror}; expected a folder that can be written") from error
    (level,) = (level for level in LEVELS if level.name == options.level)
    splits: dict[str, int] = {}
    with disk_errors(folder), ExitStack() as stack:
        documents, pairs = (stack.enter_context(atomic(folder / f"{name}.jsonl")) for name in ("documents", "pairs"))
        for tale in tales(level, options.documents, options.language, options.seed):
            for file, row in ((documents, tale.document()), (pairs, tale.pair(options.gist))):
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            splits[tale.split] = splits.get(tale.split, 0) + 1
    print(json.dumps({"level": level.name, **splits, "output": options.output}))
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="write stories whose truth is known, and gists", allow_abbrev=False)
    add_options(parser, Options)
    return run_command("make_tales", lambda: make(options_from(parser.parse_args(argv), Options)))


if __name__ == "__main__":
    sys.exit(main())
