"""Worker processes: every task is done once, no more start than are needed, none outlives the pool."""

import multiprocessing as mp
import os
import sys
import time

import psutil
import pytest

from lcm.errors import UserError
from lcm.prepare.script import end_while_imported
from lcm.prepare.worker import Pool


class Doubler:
    """Doubles numbers, and reports every step."""

    info = "a doubler"

    def __call__(self, task, progress):
        for _ in range(task):
            progress(1)
            time.sleep(0.01)
        return os.getpid(), 2 * task


def no_such_codec():
    raise UserError("no such codec")


def is_worker(child):
    """One that has ended and is not yet fetched counts: it was one."""
    try:
        return "spawn_main" in " ".join(child.cmdline())
    except psutil.ZombieProcess:
        return True


def test_tasks_are_done_by_no_more_workers_than_they_need():
    reported, before = [], psutil.Process().children()
    with Pool([Doubler], 8, reported.append) as pool:
        assert pool.info() == "a doubler"
        results = list(pool.run((50, 40)))
        workers = [child for child in psutil.Process().children() if child not in before and is_worker(child)]
        assert len(workers) <= 3
    assert sorted(double for _, double in results) == [80, 100]
    assert sum(reported) == 90
    assert not psutil.wait_procs(workers, timeout=5)[1]


def test_a_user_error_in_a_worker_keeps_its_line():
    with Pool([no_such_codec], 2, print) as pool, pytest.raises(UserError, match=r"^no such codec$"):
        pool.info()


def imports_the_script():
    """Ends as a worker does whose start imports a script without a main guard, which prepares again."""
    mp.current_process()._inheriting = True
    end_while_imported()


def test_a_script_without_a_main_guard_is_named_as_the_cause():
    with Pool([imports_the_script], 1, print) as pool, pytest.raises(UserError) as caught:
        pool.info()
    assert str(caught.value) == (
        "each worker imports your script for `load`, and the script then prepares again; "
        'put the call under if __name__ == "__main__":'
    )
    end_while_imported()  # here, where nothing is imported, it does nothing


@pytest.mark.parametrize("file", ["<stdin>", "no_guard.py"])
def test_a_script_is_not_imported_by_workers_that_need_nothing_of_it(file, tmp_path, monkeypatch):
    """From stdin it has no file, and without a main guard it would prepare again."""
    main = sys.modules["__main__"]
    (tmp_path / "no_guard.py").write_text("raise SystemExit('imported')")
    monkeypatch.setattr(main, "__file__", str(tmp_path / file), raising=False)
    monkeypatch.setattr(main, "__spec__", None)
    with Pool([Doubler], 1, print) as pool:
        assert pool.info() == "a doubler"
    assert main.__file__ == str(tmp_path / file), "hidden only while a process starts"


def test_a_script_that_defines_what_workers_need_is_imported(tmp_path, monkeypatch):
    main = sys.modules["__main__"]
    (tmp_path / "mine.py").write_text("class Mine:\n    info = 'of the script'\n")
    monkeypatch.setattr(main, "__file__", str(tmp_path / "mine.py"), raising=False)
    monkeypatch.setattr(main, "__spec__", None)
    mine = type("Mine", (), {"__module__": "__main__", "__qualname__": "Mine"})
    monkeypatch.setattr(main, "Mine", mine, raising=False)
    with Pool([mine], 1, print) as pool:
        assert pool.info() == "of the script"
