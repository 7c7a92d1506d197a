"""python examples/shorter_corpus.py FOLDER: every document of examples/corpus, cut to a tenth of its text."""

import json
import lzma
import sys
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"

for path in CORPUS.rglob("*.jsonl.xz"):
    shorter = Path(sys.argv[1]) / path.relative_to(CORPUS)
    shorter.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(path, "rt", encoding="utf-8") as rows, lzma.open(shorter, "wt", encoding="utf-8") as file:
        for row in map(json.loads, rows):
            for column in {"text", "document"} & row.keys():
                row[column] = row[column][: max(150, len(row[column]) // 10)]
            print(json.dumps(row), file=file)
