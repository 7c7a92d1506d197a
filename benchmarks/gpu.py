"""Measure one GPU: training, sampling, encoding and decoding at the sizes of the paper and of SONAR, random weights.

    python benchmarks/gpu.py [--only train sample encode decode] [--minutes 6]
    python benchmarks/gpu.py --tiny          (the toy configurations, on whatever there is: tries the script)

Prints a JSON line a case, and Markdown tables of all at the end. What would start after --minutes is left out, which
is said.

train   whole optimizer steps as `lcm train` makes them (bf16 autocast, fp32 weights and AdamW), on rows without
        padding, the most of ROWS that fit; the median of 10 after 3. Reading the data is not in it.
        MFU = concepts/s · `ConceptModel.training_flops` / 989 TFLOP/s, an H100: 6 · N + 12 · width · slots a
        layer of attention for each concept. N are the parameters that a concept goes through: both towers of a
        Two-Tower; the blocks of One-Tower and Quant twice, clean and in the making; without modulators and timestep
        embeddings. What is computed again for the backward pass counts for nothing, and causality halves nothing.
        draw_ms: the CPU drawing the noise of one step, which is part of ms. graphs: that were compiled.
sample  seconds for one new concept of every prompt, after 128 concepts each: `next` and `extend`.
encode  sentences of the example corpus, cut into pieces by the embedded codec's vocabulary, which needs more of them
        than SONAR's would; tokenizer and copies included.
decode  the same, greedily and with 5 beams. Random weights never end a sentence: SONAR's size stops at 32 pieces.
"""

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from statistics import median

import torch
from gpu_cases import Bench, Case
from gpu_codec import decode, encode
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from lcm.batch import Batch
from lcm.config import Config, load_config
from lcm.models import ConceptModel, build_model
from lcm.models.interface import Sampling
from lcm.training.engine import build_optimizer
from lcm.training.module import LCMModule

CONFIGS = Path(__file__).parents[1] / "configs"
PEAK = 989e12
"""An H100's bf16 products without sparsity, by its data sheet; an H200 has as much."""
ROWS = (112, 56, 28, 14, 7)
COMPILED = ("two_tower", "base")
FAMILIES = (*COMPILED, "one_tower", "quant_d", "quant_c")
PROMPTS, CONTEXT = (1, 32, 128), 128
DDIM, DPM = Sampling(steps=40, guidance=3.0), Sampling(steps=10, guidance=3.0, sampler="dpm")
SAMPLINGS = {"two_tower": {"ddim 40": DDIM, "dpm 10": DPM}, "base": {"": Sampling()}}


def fresh(bench: Bench, family: str) -> tuple[Config, ConceptModel]:
    """Made on the device, with codebooks that are not all zeros."""
    config = load_config(CONFIGS / f"{family}_{'toy' if bench.tiny else '1.6b'}.yaml")
    torch.manual_seed(0)
    with bench.device:
        model = build_model(config.model)
    if family.startswith("quant"):
        model.quantizer.set(model.quantizer.codebooks.normal_())
    return config, model


# ---- training ----


def train(bench: Bench) -> None:
    for family in FAMILIES:
        if time.perf_counter() > bench.until:
            bench.case("train", {"family": family}, dict)
            continue
        try:
            train_family(bench, family)
        except Exception:  # the next family may fit
            traceback.print_exc()
        bench.free()


def train_family(bench: Bench, family: str) -> None:
    """Compiled blocks stay compiled, so they come last."""
    config, model = fresh(bench, family)
    slow = config.optimizer.model_copy(update={"lr": 1e-6})  # as in the warm-up: nothing diverges
    optimizer, rows = build_optimizer(model, slow), [1] if bench.tiny else list(ROWS)
    for compiled, recompute in ((False, False), (False, True), (True, False)):
        if compiled and (bench.tiny or family not in COMPILED):
            continue
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        trainer = config.trainer.model_copy(update={"compile": compiled, "checkpoint_activations": recompute})
        module = LCMModule(config.model_copy(update={"trainer": trainer}), model).train()
        # Compiled for the rows that fitted before: a second number would make it a compilation for any number.
        tried = list(ROWS) if recompute and not bench.tiny else rows
        name = {"family": family, "compile": compiled, "recompute": recompute}
        bench.case("train", name, lambda m=module, rows=tried: trained(bench, m, optimizer, rows))


def trained(bench: Bench, module: LCMModule, optimizer: Optimizer, rows: list[int]) -> Case:
    """Measure with the most rows that fit; those that do not are taken off `rows`."""
    slots = module.config.data.slots // (8 if bench.tiny else 1)
    while rows:
        try:
            return steps_of(bench, module, optimizer, full_batch(bench, rows[0], slots, module.model.dim))
        except torch.cuda.OutOfMemoryError:
            print(f"{rows.pop(0)} rows do not fit", file=sys.stderr, flush=True)
        optimizer.zero_grad()
        optimizer.state.clear()  # it may have failed half way into making it
        bench.free()
    raise MemoryError("no number of rows fits")


def full_batch(bench: Bench, rows: int, slots: int, dim: int) -> Batch:
    """No slot is empty: four documents a row."""
    place = torch.arange(slots).expand(rows, -1)
    doc, pos = place // (slots // 4), place % (slots // 4)
    everything, emb = torch.ones(rows, slots, dtype=torch.bool), torch.randn(rows, slots, dim)
    return Batch(emb, doc, pos, everything, torch.arange(rows), torch.tensor(rows * slots)).to(bench.device)


def steps_of(bench: Bench, module: LCMModule, optimizer: Optimizer, batch: Batch) -> Case:
    model, clip, losses = module.model, module.config.optimizer.clip, list[Tensor]()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = model.loss(batch).per_target.sum() / batch.step_targets
        loss.backward()
        clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.detach())

    first = bench.seconds(step)
    warm = [bench.seconds(step) for _ in range(0 if bench.tiny else 2)]
    times = [bench.seconds(step) for _ in range(2 if bench.tiny else 10)]
    seconds, (rows, slots) = median(times), batch.doc.shape
    found: Case = {
        "rows": rows,
        "ms": round(1000 * seconds, 1),
        "concepts_per_second": round(rows * slots / seconds),
        "mfu": round(rows * slots / seconds * model.training_flops(slots) / PEAK, 4),
        "peak_gb": bench.peak_gb(),
        "first_s": round(first + sum(warm), 1),
        "loss": round(float(losses[-1]), 2),
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
    }
    if hasattr(model, "diffusion"):
        drawn = [bench.seconds(lambda: model.diffusion.draw_noising(batch.row, slots, drops=True)) for _ in "123"]
        found["draw_ms"] = round(1000 * median(drawn), 1)
    return found


# ---- sampling ----


def sample(bench: Bench) -> None:
    for family, settings in SAMPLINGS.items():
        _, model = fresh(bench, family)
        model.eval()
        for precision in ("bf16", "fp32"):
            for how, sampling in settings.items():
                for prompts in PROMPTS[: 1 if bench.tiny else 3]:
                    name = {"family": family, "precision": precision, "sampling": how, "prompts": prompts}
                    given = (bench, model, prompts, sampling, precision == "bf16")
                    bench.case("sample", name, lambda given=given: sampled(*given))
        del model, given
        bench.free()


@torch.no_grad()
def sampled(bench: Bench, model: ConceptModel, prompts: int, sampling: Sampling, half: bool) -> Case:
    concepts = list(torch.randn(prompts, 4 if bench.tiny else CONTEXT, model.dim, device=bench.device))
    with torch.autocast(bench.device.type, torch.bfloat16, enabled=half):
        contexts = []
        prefill = bench.seconds(lambda: contexts.append(model.prefill(concepts)))

        def new() -> None:
            context = contexts.pop()
            contexts.append(model.extend(context, model.next(context, sampling)))

        new()
        seconds = median(bench.seconds(new) for _ in range(1 if bench.tiny else 5))
    found = {"seconds": round(seconds, 4), "concepts_per_second": round(prompts / seconds, 1)}
    return {**found, "first_prefill_s": round(prefill, 3), "peak_gb": bench.peak_gb()}


SECTIONS = {"train": train, "sample": sample, "encode": encode, "decode": decode}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all four")
    parser.add_argument("--minutes", type=float, default=6.0, help="start nothing after so many (default: 6)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes and few steps, to try the script")
    args = parser.parse_args()

    bench = Bench(args.tiny, args.minutes)
    device = torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU"
    print(json.dumps({"device": device, "torch": torch.__version__, "tiny": args.tiny}), flush=True)
    for name in args.only:
        try:
            SECTIONS[name](bench)
        except Exception:  # the next section may work
            traceback.print_exc()
        bench.free()
    print(bench.tables(), flush=True)


if __name__ == "__main__":
    main()
