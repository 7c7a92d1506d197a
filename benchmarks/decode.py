"""Measure how fast vectors become sentences, beside sonar-space's pipeline on the same weights, vectors and threads.

    python benchmarks/decode.py --size S --beam 5          (needs pip install 'lcm-train[sonar]')

Prints two JSON lines: beside sonar-space as it comes (batches of 5), and beside its best batch size, which is
looked for first. Both must write the same texts. Random weights never end a sentence: both are stopped at 32 pieces.
"""

import argparse

import torch
from codec_sizes import SIZES, codec_of, in_turns, outside_products, sentences, tell
from official_sonar import pipelines_of

BATCHES = (16, 64, 128, 256)
"""Sentences of a batch that are tried for sonar-space."""
MOST = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="S", help="; ".join(f"{k}: {v}" for k, v in SIZES.items()))
    parser.add_argument("--beam", type=int, default=5, help="1 is greedy (default: 5)")
    parser.add_argument("--sentences", type=int, default=256, help="default: 256")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side decodes all (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    with codec_of(args.size, torch.float32) as codec:
        official = pipelines_of(codec)
        if args.size != "S":
            codec.config["max_generated"] = MOST
        most = (0.0, codec.rules.limit + 1)
        vectors = codec.encode(sentences(args.sentences))

        def theirs(batch: int) -> list[str]:
            return official.decode(vectors, "eng_Latn", beam=args.beam, batch_size=batch, max_gen_len=most)

        written, expected = codec.decode(vectors, beam=args.beam), theirs(5)
        alike = sum(a == b for a, b in zip(written, expected, strict=True)) / len(written)
        assert alike > 0.98, f"only {alike:.0%} of the texts agree: nothing to compare"
        tried = {str(n): lambda n=n: theirs(n) for n in BATCHES if n <= args.sentences}
        found = in_turns(tried, rounds=1)
        best = min(found, key=lambda name: found[name])
        defaults = "sonar-space 0.5.0, batches of 5"
        sides = {"ours": lambda: codec.decode(vectors, beam=args.beam), defaults: lambda: theirs(5)}
        seconds = in_turns({**sides, "best": tried[best]}, args.rounds)
        more = {
            "beam": args.beam,
            "threads": args.threads,
            "same_texts": round(alike, 4),
            "outside_products": outside_products(lambda: codec.decode(vectors, beam=args.beam)),
        }
        tell("decode", args.size, len(vectors), seconds["ours"], seconds[defaults], defaults, more)
        name = f"sonar-space 0.5.0, best of {len(tried)}: batches of {best}"
        tell("decode", args.size, len(vectors), seconds["ours"], seconds["best"], name, more)


if __name__ == "__main__":
    main()
