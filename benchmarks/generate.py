"""Measure how fast Two-Tower generates, beside a plain implementation with equal weights and noise.

    python benchmarks/generate.py --size S

The plain form (benchmarks/naive.py) keeps the contextualizer's keys and values, and projects those of the denoiser anew
at every step. Prints one JSON line a context: seconds for one new concept of every prompt, 40 steps with guidance,
without those for reading the prompts.
What both make is compared before anything is timed.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from naive import NaiveTwoTower, naive_of
from torch import Tensor, nn
from train_step import DIM, SIZES, config_of

from lcm.batch import Draws
from lcm.models import build_model
from lcm.models.diffusion import DiffusionSampling
from lcm.models.interface import Sampling, prompt_number
from lcm.models.two_tower import TwoTowerContext, TwoTowerLCM

CONTEXTS = (16, 128, 512)
SETTINGS = DiffusionSampling()
CHECKED = 2
"""New concepts that are compared."""


def randomized(size: str) -> TwoTowerLCM:
    """A fresh model's modulators are zero, so that it would not read its context: these are not."""
    torch.manual_seed(0)
    model = build_model(config_of("two_tower", size)).eval()
    assert isinstance(model, TwoTowerLCM)
    for name, parameter in model.named_parameters():
        if ".modulator." in name:
            nn.init.normal_(parameter, std=0.02)
    return model


def ours(model: TwoTowerLCM, prompts: Tensor, count: int, steps: int) -> tuple[Tensor, TwoTowerContext]:
    """The new concepts, and the context after them."""
    context, made = model.prefill(list(prompts)), []
    for _ in range(count):
        made.append(model.next(context, Sampling(steps=steps)))
        context = model.extend(context, made[-1])
    return torch.stack(made, dim=1), context


def noise_of(model: TwoTowerLCM, prompts: Tensor, count: int) -> list[Tensor]:
    """The noise that our model starts each concept from."""
    number, length = prompt_number(model.normalizer(prompts[:, -1])), prompts.shape[1]
    keys = [torch.stack([number, torch.full_like(number, length + i)], dim=1) for i in range(count)]
    return [Draws(0, key).gaussian(0, model.dim) for key in keys]


def naively(naive: NaiveTwoTower, prompts: Tensor, noise: list[Tensor], steps: int) -> Tensor:
    return naive.generate(prompts, noise, replace(SETTINGS, steps=steps))


def difference(model: TwoTowerLCM, naive: NaiveTwoTower, prompts: Tensor, steps: int) -> float:
    """The largest, as a share of the largest number."""
    made, _ = ours(model, prompts, CHECKED, steps)
    plain = naively(naive, prompts, noise_of(model, prompts, CHECKED), steps)
    return float((made - plain).abs().max() / plain.abs().max())


def seconds_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


@torch.no_grad()
def read_plainly(naive: NaiveTwoTower, prompts: Tensor) -> Tensor:
    """The part of `naively` that comes before the first new concept."""
    return naive.contextualiser(naive.pre(naive.normalizer(prompts)), cache=[])


def kept_bytes(context: TwoTowerContext) -> int:
    """Keys and values of the concepts that are there, not of the room for more."""
    return sum(
        int(cache.lengths.sum()) * 2 * layer.keys[0, :, 0].numel() * layer.keys.element_size()
        for cache in (context.cache, context.memory)
        for layer in cache.layers
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="S", help="S: 512 wide. M: 1024 wide. Default: S")
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS, help="default: 16 128 512")
    parser.add_argument("--prompts", type=int, default=4, help="default: 4")
    parser.add_argument("--concepts", type=int, default=16, help="new ones of each prompt (default: 16)")
    parser.add_argument("--plain-concepts", type=int, default=2, help="the same for the plain form (default: 2)")
    parser.add_argument("--steps", type=int, default=SETTINGS.steps, help="default: 40")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side is timed (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    model = randomized(args.size)
    naive = naive_of(model)
    assert isinstance(naive, NaiveTwoTower)
    for length in args.contexts:
        prompts = torch.randn(args.prompts, length, DIM)
        found = difference(model, naive, prompts, steps=10)
        assert found < 1e-4, f"what is made differs by {found}: nothing to compare"
        noise = noise_of(model, prompts, args.plain_concepts)
        times: dict[str, list[float]] = {"ours": [], "plain": []}
        for number in range(1, args.rounds + 1):
            run = seconds_of(lambda p=prompts: ours(model, p, args.concepts, args.steps))
            read = seconds_of(lambda p=prompts: model.prefill(list(p)))
            times["ours"].append((run - read) / args.concepts)
            run = seconds_of(lambda p=prompts, n=noise: naively(naive, p, n, args.steps))
            read = seconds_of(lambda p=prompts: read_plainly(naive, p))
            times["plain"].append((run - read) / args.plain_concepts)
            told = ", ".join(f"{k} {v[-1]:.3f} s" for k, v in times.items())
            print(f"context {length}, round {number}: {told} a concept", file=sys.stderr)
        mine, plain = (median(values) for values in times.values())
        _, context = ours(model, prompts, 1, steps=1)
        result = {
            "name": "generate two_tower",
            "size": args.size,
            "ours": round(mine, 4),
            "other": round(plain, 4),
            "other_name": "plain form",
            "unit": "s a new concept of every prompt",
            "ratio": round(plain / mine, 2),
            "context": length,
            "prompts": args.prompts,
            "steps": args.steps,
            "concepts": args.concepts,
            "other_concepts": args.plain_concepts,
            "kept_bytes": kept_bytes(context),
            "difference": found,
            "threads": args.threads,
            "torch": torch.__version__,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
