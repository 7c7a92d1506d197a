"""Spoil inputs, configurations, checkpoints, manifests, models and environment, by seed, and run the commands on them.

    python tests/faults/fuzz.py --seeds 0 2000 [--case prepare] [--jobs 2]

A traceback, a line that calls its error a fault of lcm, a signal, a hang, exit 0 with less than was given, or a folder
that a second run cannot mend is a failure: it is printed with its seed, which makes it again. Commands run in processes
forked from one that has imported torch.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random

sys.path.append(str(Path(__file__).parents[1]))  # the modules that tests share

from cases import CASES, make_bench
from commands import Case, Fault, result_of


def run_case(case: Case, seed: int, bench: Path) -> str:
    """Run a case; return what is wrong with it, or ""."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    commands = case(Random(seed), folder, bench)
    told: list[str] = []
    try:
        run = next(commands)
        while True:
            told.append(
                "lcm " + " ".join(map(repr, run.words)) + (f"  with {dict(run.environment)}" * bool(run.environment))
            )
            run = commands.send(result_of(run, folder, len(told)))
    except StopIteration:
        return ""
    except Fault as fault:
        return "\n".join([str(fault), *told])
    except Exception as error:  # of the case, which did not find what a command should have left
        return "\n".join([f"{type(error).__name__}: {error}", *told])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fuzz(cases: Mapping[str, Case], seeds: Sequence[int], bench: Path, jobs: int = 2) -> dict[int, str]:
    """Run case number seed % len(cases) with each seed; return what failed."""
    by_number = list(cases.items())

    def one(seed: int) -> tuple[int, str]:
        name, case = by_number[seed % len(by_number)]
        found = run_case(case, seed, bench)
        return seed, found and f"seed {seed}, {name}: {found}"

    failed = {}
    with ThreadPoolExecutor(jobs) as pool:
        for seed, found in pool.map(one, seeds):
            if found:
                failed[seed] = found
                print(found, end="\n\n", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs=2, type=int, default=(0, 200), metavar=("FIRST", "END"))
    parser.add_argument("--case", choices=CASES, help="only this one")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    cases = {args.case: CASES[args.case]} if args.case else CASES
    with tempfile.TemporaryDirectory() as folder:
        bench = Path(folder)
        make_bench(bench, partial(result_of, folder=bench, number=0))
        failed = fuzz(cases, range(*args.seeds), bench, args.jobs)
    print(f"{args.seeds[1] - args.seeds[0]} cases, {len(failed)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
