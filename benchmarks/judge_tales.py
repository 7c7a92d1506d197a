"""Judge one model on stories and gists by their truth, as families.py and curve.py need it, in one thread.

    python benchmarks/judge_tales.py --model DIR --data STORIES GISTS --output judged.json [--limit 100] [--steps 10 …]

DIR is a run of `lcm train`, or of token_model.py. Writes the `truth` of `lcm evaluate --truth`, the number of
parameters, and seconds a sentence: SPOKEN sentences after each of TIMED prompts, one prompt at a time, with text.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import lcm
from lcm.evaluation import finite
from lcm.evaluation.examples import Example, from_folders
from lcm.evaluation.truth import judge_truth
from lcm.evaluation.truth_judge import PROMPT, TruthJudge, read_tales
from lcm.models import Sampling
from lcm.options import add_options, options_from

BOOTSTRAP = 1000
TIMED, SPOKEN = 8, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder of the model")
    parser.add_argument("--data", required=True, nargs=2, help="prepared stories, prepared gists")
    parser.add_argument("--output", required=True, type=Path, help="the file to write")
    parser.add_argument("--limit", type=int, default=100, help="stories, and gists, to judge (%(default)s)")
    add_options(parser, Sampling)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    judge = open_judge(args.model, options_from(args, Sampling))
    stories, gists = (from_folders([folder], judge.lcm, None, args.limit, 0) for folder in args.data)
    truth, _ = judge_truth(judge, stories.documents, gists.pairs)
    found = {
        "truth": truth,
        "parameters": sum(p.numel() for p in getattr(judge, "model", judge.lcm.model).parameters()),
        "seconds_a_sentence": seconds_a_sentence(judge, stories.documents),
        "seconds": time.perf_counter() - start,
    }
    args.output.write_text(json.dumps(finite(found), indent=2) + "\n", encoding="utf-8")


def open_judge(folder: Path, sampling: Sampling) -> TruthJudge:
    if (folder / "token.json").is_file():
        from token_judge import token_judge  # needs transformers

        return token_judge(folder, BOOTSTRAP, 0)
    return TruthJudge(lcm.load(folder), sampling, BOOTSTRAP, 0)


def seconds_a_sentence(judge: TruthJudge, documents: Sequence[Example]) -> float:
    tales = read_tales(documents, judge.lcm.config.data.slots)[: 1 + TIMED]
    seconds, sentences = 0.0, 0
    for number, tale in enumerate(tales):
        start = time.perf_counter()
        ((written, ended),) = judge.continued([tale], [PROMPT], SPOKEN, judge.sampling.seed)
        if number:  # the first one warms up
            seconds, sentences = seconds + time.perf_counter() - start, sentences + len(written) + ended
    return seconds / max(1, sentences)


if __name__ == "__main__":
    main()
