"""Whatever is spoiled, input, settings, checkpoint or environment, no command ends in a traceback or in silence."""

from functools import partial
from random import Random

import pytest
from cases import CASES, make_bench
from commands import result_of
from fuzz import fuzz
from spoil import as_jsonl, documents, spoiled

CASES_RUN = 200


@pytest.mark.slow
def test_no_spoiled_input_ends_in_a_traceback_a_hang_or_a_silent_loss(tmp_path):
    make_bench(tmp_path, partial(result_of, folder=tmp_path, number=0))
    failed = fuzz(CASES, range(CASES_RUN), tmp_path)
    assert not failed, "\n\n".join(failed.values())


def test_a_seed_makes_the_same_case_again():
    def made(seed):
        random = Random(seed)
        return spoiled(random, as_jsonl(random, documents(random)))

    assert [made(seed) for seed in range(50)] == [made(seed) for seed in range(50)]
    assert len({made(seed) for seed in range(50)}) == 50
