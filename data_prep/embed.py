"""Text files → shards of sentence vectors: the first job of data preparation, the same as `lcm prepare`.

python data_prep/embed.py --input corpus.jsonl.xz --output data/corpus
"""

import sys

from lcm.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
