"""Print the output of `lcm generate --decode both`: the end of each prompt, decoded and nearest sentences in columns.

Usage: python examples/show_continuations.py demo/continuations.jsonl examples/prompts.jsonl
"""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table


def main(continuations: str, prompts: str) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    texts = {row["id"]: row["text"] for row in map(json.loads, Path(prompts).read_text("utf-8").splitlines())}
    for row in map(json.loads, Path(continuations).read_text("utf-8").splitlines()):
        table = Table(title=f"{row['id']}\n… {texts[row['id']][-150:]}", title_justify="left", show_lines=True)
        table.add_column("decoded: what the vector says", ratio=1)
        table.add_column("nearest: the closest sentence of the training text", ratio=1)
        table.add_column("cosine", justify="right")
        for decoded, nearest, similarity in zip(row["sentences"], row["nearest"], row["similarity"], strict=True):
            table.add_row(decoded, nearest, f"{similarity:.2f}")
        console.print(table)


if __name__ == "__main__":
    main(*sys.argv[1:])
