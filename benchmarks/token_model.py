"""A token language model beside concept models of the same size: transformers' Llama on the pieces of the data's codec.

    python benchmarks/token_model.py --data STORIES GISTS --run DIR --steps 300 [--seed 1] [--checkpoints 1]

It reads what a concept model reads: the sentences of prepared documents and pairs, each as its pieces and </s>, with
"[MODEL]:" between a story and its gist and "End of text." after everything; and it learns what they learn: all of a
document, the answer of a pair. A batch holds texts of similar length, one a row. Optimizer and schedule are lcm's.
Writes model.safetensors, config.json and token.json; with several checkpoints, folders step-00000100, …, of the same.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from lcm.codec import load_codec
from lcm.codec.text import Tokenizer
from lcm.config import OptimizerConfig
from lcm.data.dataset import PreparedData
from lcm.data.shards import read_documents
from lcm.training.engine import build_optimizer, learning_rate

try:
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError:
    sys.exit("the token model needs transformers: pip install 'transformers>=4.56,<5', or --kinds without token")

SIZE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
"""With the codec's 8,000 pieces, read and written by the same matrix, 5.46 million parameters."""
OPTIMIZER = OptimizerConfig(lr=2e-3, final_lr=1e-5, warmup_steps=50, clip=1.0)
PIECES = 2048
"""Pieces in a batch, padding included."""
IGNORED = -100
"""The target where there is nothing to learn."""
RECORD = "token.json"


@dataclass(frozen=True)
class Text:
    """The pieces of some sentences, each followed by </s>; the first `given` pieces are read and not learned."""

    pieces: list[int]
    sentences: int
    given: int = 0

    @staticmethod
    def of(sentences: Sequence[str], source_length: int, tokenizer: Tokenizer) -> "Text":
        rows = [[*row, tokenizer.end] for row in tokenizer.encode(sentences)]
        return Text([piece for row in rows for piece in row], len(rows), sum(map(len, rows[:source_length])))


def build(vocab: int) -> LlamaForCausalLM:
    shared = {"tie_word_embeddings": True, "max_position_embeddings": 2048}
    # On a CPU the backward pass of fused attention is many times slower in bf16.
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, attn_implementation="eager", **shared, **SIZE))


def batches(texts: Sequence[Text], pieces: int, seed: int) -> Iterator[list[Text]]:
    """Epoch after epoch, every text once in each: batches of similar lengths, at most so many pieces with padding."""
    for epoch in range(sys.maxsize):
        shuffle = random.Random(f"{seed} {epoch}")
        rows: list[list[Text]] = [[]]
        # Sorting keeps the shuffled order of texts that are equally long.
        for text in sorted(shuffle.sample(texts, len(texts)), key=lambda text: len(text.pieces)):
            if rows[-1] and (len(rows[-1]) + 1) * len(text.pieces) > pieces:
                rows.append([])
            rows[-1].append(text)
        shuffle.shuffle(rows)
        yield from rows


def inputs_and_targets(texts: Sequence[Text], start: int) -> tuple[Tensor, Tensor]:
    """Both are texts by pieces. `start` comes before the first piece; what is given or empty has no target."""
    inputs = [torch.tensor([start, *text.pieces[:-1]]) for text in texts]
    targets = [torch.tensor([IGNORED] * text.given + text.pieces[text.given :]) for text in texts]
    return pad_sequence(inputs, True, start), pad_sequence(targets, True, IGNORED)


def loss(model: LlamaForCausalLM, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the targets, in nats. Padding comes last, so causal attention never sees it."""
    learned = targets != IGNORED
    states = model.model(inputs, use_cache=False).last_hidden_state[learned]
    return cross_entropy(model.lm_head(states).float(), targets[learned])


def train(args: argparse.Namespace) -> None:
    """Train and save; the record has (step, seconds of training so far, loss) of every step."""
    data = PreparedData(args.data)
    codec = load_codec(data.codec.name)
    texts = [
        Text.of(document.sentences, document.source_length, codec.tokenizer)
        for folder in args.data
        for document in read_documents(folder, "train")
    ]
    torch.manual_seed(args.seed)
    model = build(codec.config["model"]["vocab"]).train()
    optimizer, source = build_optimizer(model, OPTIMIZER), batches(texts, PIECES, args.seed)
    log: list[tuple[int, float, float]] = []
    sentences, seconds = 0, 0.0
    for step in range(1, args.steps + 1):
        start, batch = time.perf_counter(), next(source)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - 1, OPTIMIZER, args.steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            value = loss(model, *inputs_and_targets(batch, codec.tokenizer.end))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip)
        optimizer.step()
        sentences, seconds = sentences + sum(text.sentences for text in batch), seconds + time.perf_counter() - start
        log.append((step, seconds, value.item()))
        if step % 50 == 0:
            print(f"step {step} of {args.steps}  loss {value.item():.3f}  {seconds:.0f} s", file=sys.stderr, flush=True)
        record = {"steps": step, "per_second": sentences / seconds, "codec": data.codec.model_dump(mode="json")}
        if step == args.steps:
            save(args.run, model, record | {"log": log})
        elif step % -(-args.steps // args.checkpoints) == 0:
            save(args.run / f"step-{step:08}", model, record)


def save(folder: Path, model: LlamaForCausalLM, record: dict[str, object]) -> None:
    model.save_pretrained(folder)
    (folder / RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs="+", help="prepared folders")
    parser.add_argument("--run", required=True, type=Path, help="folder of the model")
    parser.add_argument("--steps", required=True, type=int, help=f"optimizer steps of {PIECES:,} pieces")
    parser.add_argument("--seed", type=int, default=1, help="seed of everything random (%(default)s)")
    parser.add_argument("--checkpoints", type=int, default=1, help="times to save, evenly spread (%(default)s)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="fp32", help="of products (%(default)s)")
    args = parser.parse_args()
    path = args.run / RECORD
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["steps"] == args.steps:
        print(f"{args.run}: all {args.steps:,} steps are done", file=sys.stderr)
    else:
        train(args)


if __name__ == "__main__":
    main()
