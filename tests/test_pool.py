"""Worker processes: every task is done once, no more are started than there is use for, none outlives the pool."""

import os
import time

import psutil
import pytest

from lcm.errors import UserError
from lcm.pool import Pool


class Doubler:
    """Doubles numbers, telling each step of the way."""

    info = "a doubler"

    def __call__(self, task, tell):
        for _ in range(task):
            tell(1)
            time.sleep(0.01)
        return os.getpid(), 2 * task


def no_such_codec():
    raise UserError("no such codec")


def test_tasks_are_done_by_no_more_workers_than_they_need():
    results, told = [], []
    with Pool([Doubler], 8, results.append, told.append) as pool:
        assert pool.first_info() == "a doubler"
        for task in (50, 40):
            pool.submit(task)
        pool.finish()
        children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        assert len(workers) <= 3
    assert sorted(double for _, double in results) == [80, 100]
    assert sum(told) == 90
    assert not psutil.wait_procs(workers, timeout=5)[1]


def test_what_a_person_can_put_right_keeps_its_line():
    with Pool([no_such_codec], 2, print, print) as pool, pytest.raises(UserError, match=r"^no such codec$"):
        pool.first_info()
