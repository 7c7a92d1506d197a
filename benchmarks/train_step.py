"""Measure an optimizer step, packed as `lcm train` packs, beside a plain implementation with equal weights.

    python benchmarks/train_step.py --size S --model two_tower

The plain form (benchmarks/naive.py) pads documents to the longest. AdamW, clipping and dropout are the same, all fp32.
Prints one JSON line: real concepts per second, padding not counted, the median over rounds in turns.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from naive import naive_of
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence

from lcm.batch import PAD, Batch
from lcm.config import BaseLCMConfig, ModelConfig, OneTowerConfig, OptimizerConfig, TwoTowerConfig
from lcm.data.packing import best_fit
from lcm.models import ConceptModel, build_model
from lcm.training.engine import build_optimizer

DIM, SLOTS = 1024, 128
SIZES = {"S": (512, 8), "M": (1024, 16)}
"""Width and heads; Base and One-Tower have 8 layers, Two-Tower 4 and 4."""


def config_of(model: str, size: str) -> ModelConfig:
    width, heads = SIZES[size]
    match model:
        case "base":
            return BaseLCMConfig(kind="base", dim=DIM, width=width, heads=heads, layers=8)
        case "one_tower":
            return OneTowerConfig(kind="one_tower", dim=DIM, width=width, heads=heads, layers=8)
    return TwoTowerConfig(kind="two_tower", dim=DIM, width=width, heads=heads, context_layers=4, denoiser_layers=4)


def packed(documents: list[Tensor]) -> Batch:
    """Rows of documents, packed as in training."""
    chosen = best_fit(np.array([len(d) for d in documents]), SLOTS)
    rows = int(chosen.max()) + 1
    emb, doc = torch.zeros(rows, SLOTS, DIM), torch.full((rows, SLOTS), PAD)
    pos, used = torch.zeros(rows, SLOTS, dtype=torch.long), [0] * rows
    for number, (row, document) in enumerate(zip(chosen.tolist(), documents, strict=True)):
        here = slice(used[row], used[row] + len(document))
        emb[row, here], doc[row, here], pos[row, here] = document, number, torch.arange(len(document))
        used[row] = here.stop
    return Batch(emb, doc, pos, doc != PAD, torch.arange(rows), torch.tensor(sum(used)))


def step_of(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One optimizer step; loss: of each target."""
    config = OptimizerConfig()
    optimizer = build_optimizer(model, config)

    def step() -> None:
        optimizer.zero_grad()
        loss().mean().backward()
        clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()

    return step


def sides(model: ConceptModel, documents: list[Tensor]) -> dict[str, Callable[[], None]]:
    batch, naive = packed(documents), naive_of(model)
    emb = pad_sequence(documents, batch_first=True)
    real = torch.arange(emb.shape[1]) < torch.tensor([len(d) for d in documents])[:, None]
    print(f"{batch.doc.numel()} slots packed, {real.numel()} padded, for {int(real.sum())} concepts", file=sys.stderr)
    return {
        "ours": step_of(model, lambda: model.loss(batch).per_target),
        "plain": step_of(naive, lambda: naive.loss(emb, real)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="S", help="S: 512 wide. M: 1024 wide. Default: S")
    parser.add_argument("--model", choices=("base", "two_tower", "one_tower"), default="two_tower")
    parser.add_argument("--documents", type=int, default=32, help="of 4 to 64 concepts each (default: 32)")
    parser.add_argument("--uniform", type=int, help="so many concepts in every document instead")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side that are timed (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    drawn = np.random.default_rng(0).integers(4, 65, args.documents).tolist()
    lengths = [args.uniform] * args.documents if args.uniform else drawn
    both = sides(build_model(config_of(args.model, args.size)).train(), [torch.randn(n, DIM) for n in lengths])
    seconds: dict[str, list[float]] = {name: [] for name in both}
    for number in range(args.rounds + 1):
        for name, step in both.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
        told = ", ".join(f"{k} {v[-1]:.2f} s" for k, v in seconds.items())
        print(f"round {number}: {told}" if number else f"warm-up: {told}", file=sys.stderr)
    ours, other = (sum(lengths) / median(times[1:]) for times in seconds.values())
    result = {
        "name": f"train_step {args.model}",
        "size": args.size,
        "ours": round(ours, 1),
        "other": round(other, 1),
        "other_name": "plain form, padded",
        "unit": "concepts/s",
        "ratio": round(ours / other, 2),
        "documents": args.documents,
        "concepts": sum(lengths),
        "uniform": args.uniform,
        "threads": args.threads,
        "torch": torch.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
