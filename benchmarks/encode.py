"""Measure how fast sentences become vectors, beside sonar-space on the same weights, sentences and threads.

    python benchmarks/encode.py --size S          (needs pip install 'lcm-train[sonar]')

Prints two JSON lines: beside sonar-space as it comes (batches of 5 sentences), and beside its best batch size, which is
looked for first. The vectors of both are compared before anything is timed.
"""

import argparse

import torch
from codec_sizes import SIZES, codec_of, in_turns, outside_products, sentences, tell
from official_sonar import pipelines_of

from lcm.codec.codec import PIECES, Codec, batches

TOKENS = (256, 512, 1024, 2048, 4096, 8192)
"""Pieces of a batch that are tried for sonar-space."""


def padding(codec: Codec, texts: list[str]) -> float:
    """The share of our batches that is padding."""
    lengths = [len(row) + 2 for row in codec.tokenizer.encode(texts)]
    slots = sum(len(batch) * lengths[batch[0]] for batch in batches(lengths, PIECES["cpu"]))
    return round(1 - sum(lengths) / slots, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="S", help="; ".join(f"{k}: {v}" for k, v in SIZES.items()))
    parser.add_argument("--sentences", type=int, default=2000, help="default: 2000")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side encodes all (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--bf16", action="store_true", help="also our side with products in bfloat16")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    texts = sentences(args.sentences)
    with codec_of(args.size, torch.float32) as codec:
        official = pipelines_of(codec)
        few = texts[:: max(1, len(texts) // 20)]
        theirs = official.encode(few, "eng_Latn")
        difference = float((codec.encode(few) - theirs).abs().max() / theirs.abs().max())
        assert difference < 1e-5, f"the vectors differ by {difference}: nothing to compare"
        tried = {f"{n} pieces": lambda n=n: official.encode(texts, "eng_Latn", None, n) for n in TOKENS}
        found = in_turns(tried, rounds=1)
        best = min(found, key=lambda name: found[name])
        defaults = "sonar-space 0.5.0, batches of 5"
        sides = {"ours": lambda: codec.encode(texts), defaults: lambda: official.encode(texts, "eng_Latn")}
        if args.bf16:
            half = torch.bfloat16
            rounded = type(codec)(codec.name, codec.folder, codec.device, half)
            sides["bf16"] = lambda: rounded.encode(texts)
        seconds = in_turns({**sides, "best": tried[best]}, args.rounds)
        more = {
            "threads": args.threads,
            "difference": difference,
            "padding": padding(codec, texts),
            "outside_products": outside_products(lambda: codec.encode(texts)),
        }
        if args.bf16:
            more["bf16"] = round(len(texts) / seconds["bf16"], 1)
        tell("encode", args.size, len(texts), seconds["ours"], seconds[defaults], defaults, more)
        name = f"sonar-space 0.5.0, best of {len(TOKENS)}: batches of {best}"
        tell("encode", args.size, len(texts), seconds["ours"], seconds["best"], name, more)


if __name__ == "__main__":
    main()
