"""python train.py --config configs/base_toy.yaml [overrides]: the same as `lcm train`. See lcm/training/run.py."""

import sys

from lcm.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
