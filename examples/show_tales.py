"""Print what `lcm evaluate --truth` wrote: stories and gists with wrong words marked, and what would have been right.

Usage: python examples/show_tales.py demo/tales/report/examples.jsonl [--count 3]
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lcm.tales.judging import marked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("examples", type=Path, help="examples.jsonl of a report")
    parser.add_argument("--count", type=int, default=3, help="stories, and gists, to print (default: 3)")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.examples.read_text("utf-8").splitlines()]
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for row in [row for row in rows if row["kind"] == "tale"][: args.count]:
        console.print(Text(f"\n{' '.join(row['prompt'])} …", style="dim"))
        for line in story(row):
            console.print(line)
    for row in [row for row in rows if row["kind"] == "summary"][: args.count]:
        console.print(Text(f"\n{' '.join(row['prompt'])}", style="dim"))
        console.print(gist(row))


def story(row: dict[str, Any]) -> Iterator[Text]:
    """A line for each sentence: right, or with its wrong words in [brackets] and what might have been said."""
    for verdict in row["verdicts"]:
        words = [f"[{word}]" if wrong else word for word, wrong in verdict["words"]]
        if verdict["consistent"]:
            yield Text(f"  right  {' '.join(words)}", style="green")
        else:
            yield Text(f"  wrong  {' '.join(words)}    (possible: {verdict['instead']})", style="red")


def gist(row: dict[str, Any]) -> Text:
    """The model's gist, marked beside the true one."""
    said, true = " ".join(row["model"]), " ".join(row["reference"])
    if said == true:
        return Text(f"  right  In short: {said}", style="green")
    words = [f"[{word}]" if wrong else word for word, wrong in marked(said, true)]
    return Text(f"  wrong  In short: {' '.join(words)}    (true: {true})", style="red")


if __name__ == "__main__":
    main()
